"""timm's networks by name, freshly initialised or with timm's own trained weights; timm is an extra."""

import difflib
import logging
from typing import Any

from torch import nn

from bcnet.errors import ModelError, one_line
from bcnet.models.weights import report_weights
from bcnet.progress import working

MAKES = "timm.create_model"


def build(name: str, in_channels: int, num_classes: int, *, pretrained: bool, **args: Any) -> nn.Module:
    """The network for that many channels and classes: timm adapts pretrained weights to other channels.

    Raises ModelError: no timm, no such network, or no weights available.
    """
    timm = _timm(name)
    given = {**arguments(name, in_channels, num_classes, pretrained=pretrained), **args}
    if not pretrained:
        return timm.create_model(name, pretrained=False, **given)  # type: ignore[no-any-return]
    config = _pretrained(name)
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.CRITICAL)  # it reports each of many attempts
    try:
        with working(f"fetching the weights of {name}"):
            model: nn.Module = timm.create_model(name, pretrained=True, **given)
    except Exception as cause:
        source = config.hf_hub_id or config.url or "nowhere"
        raise ModelError(
            f"the weights of 'timm:{name}' could not be loaded from {source} ({one_line(cause)}); "
            "give a file of them as model.weights"
        ) from None
    finally:
        log.setLevel(level)
    heads = [config.classifier] if isinstance(config.classifier, str) else list(config.classifier or ())
    outputs = given["num_classes"]
    fresh = [f"'{head}' ({config.num_classes} outputs there, {outputs} here)" for head in heads]
    tensors = len(model.state_dict())
    source = f"timm, {config.hf_hub_id or config.url}"
    report_weights(model, source, tensors, fresh if outputs != config.num_classes else [])
    return model


def arguments(name: str, in_channels: int, num_classes: int, *, pretrained: bool) -> dict[str, Any]:
    """What `MAKES` is called with beside the name, where the configuration says nothing else."""
    return {"in_chans": in_channels, "num_classes": num_classes}


def statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation per channel that the weights expect, for pixels scaled to 0..1."""
    config = _pretrained(name)
    return tuple(config.mean), tuple(config.std)


def _timm(name: str) -> Any:
    try:
        import timm
    except ImportError as cause:
        raise ModelError(f"'timm:{name}' needs timm ({cause}): pip install 'bcnet[timm]'") from None
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ModelError(f"timm has no model '{name}'; similar names: {', '.join(near) or 'none'}")
    return timm


def _pretrained(name: str) -> Any:
    """timm's record of the weights of a network."""
    try:
        config = _timm(name).get_pretrained_cfg(name)
    except (RuntimeError, ValueError) as cause:
        raise ModelError(f"timm has no weights for '{name}' ({one_line(cause)})") from None
    if config is None or not config.has_weights:
        raise ModelError(f"timm has no weights for '{name}'; give a file of them as model.weights")
    return config
