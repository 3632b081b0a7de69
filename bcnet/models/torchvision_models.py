"""torchvision's networks by name, freshly initialised or with torchvision's own trained weights."""

import difflib
import inspect
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import nn

from bcnet.errors import ModelError, one_line
from bcnet.models.checkpoint import read_checkpoint
from bcnet.models.weights import load_tensors, report_weights
from bcnet.progress import working

MAKES = "torchvision.models.get_model"


def names() -> list[str]:
    """The names of all of torchvision's networks."""
    from torchvision import models

    return list(models.list_models())


def build(name: str, in_channels: int, num_classes: int, *, pretrained: bool, **args: Any) -> nn.Module:
    """The network for that many classes. Raises ModelError: no such network, or no weights available."""
    from torchvision import models

    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        raise ModelError(f"torchvision has no model '{name}'; similar names: {', '.join(near) or 'none'}")
    if in_channels != 3:
        raise ModelError(f"torchvision's models take 3 channels, the images have {in_channels}")
    given = arguments(name, in_channels, num_classes, pretrained=pretrained)
    model: nn.Module = models.get_model(name, **{**given, **args})
    if pretrained:
        file = _fetched(name)
        loaded = load_tensors(model, read_checkpoint(file).tensors, str(file))
        report_weights(model, f"torchvision, {file.name}", *loaded)
    return model


def arguments(name: str, in_channels: int, num_classes: int, *, pretrained: bool) -> dict[str, Any]:
    """What `MAKES` is called with beside the name, where the configuration says nothing else."""
    from torchvision import models

    takes = inspect.signature(models.get_model_builder(name)).parameters
    given: dict[str, Any] = {"num_classes": num_classes, "weights": None}
    if "weights_backbone" in takes:
        given["weights_backbone"] = None  # torchvision would download them otherwise
    if name in ("googlenet", "inception_v3"):
        given["init_weights"] = True  # torchvision wants it set explicitly
        # Their weights are TensorFlow's: the network converts inputs normalised for others.
        given["transform_input"] = pretrained
    if pretrained and "aux_loss" in takes:
        given["aux_loss"] = True  # the weights include the auxiliary head
    return given


def statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation per channel that the weights expect, for pixels scaled to 0..1."""
    preset = _weights(name).transforms()
    mean, std = getattr(preset, "mean", None), getattr(preset, "std", None)
    return (tuple(mean), tuple(std)) if mean and std else None


def _weights(name: str) -> Any:
    from torchvision import models

    try:
        return models.get_model_weights(name).DEFAULT
    except (AttributeError, ValueError) as cause:
        raise ModelError(f"torchvision has no weights for '{name}' ({one_line(cause)})") from None


def _fetched(name: str) -> Path:
    """The weights' file in torch.hub's cache, fetched if it is not there."""
    url = _weights(name).url
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not path.exists():
        hashed = torch.hub.HASH_REGEX.search(path.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with working(f"fetching {url}"):
                torch.hub.download_url_to_file(url, str(path), hashed[1] if hashed else None, progress=False)
        except Exception as cause:
            raise ModelError(
                f"the weights of 'torchvision:{name}' could not be fetched from {url} ({one_line(cause)}); "
                f"put that file into {path.parent}, or give a file as model.weights"
            ) from None
    return path
