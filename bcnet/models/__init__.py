"""Reference networks by name, torchvision's, timm's, or a user's own function; trained weights for them."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from bcnet.config import PRETRAINED, ModelConfig
from bcnet.errors import FOREIGN, ModelError, one_line
from bcnet.models import timm_models, torchvision_models
from bcnet.models.channel_bench_macro import mobilenet, resnet
from bcnet.models.digits import digit_scenes, digits
from bcnet.models.reactnet import reactnet_a, reactnet_small
from bcnet.models.weights import Run, load_weights
from bcnet.nearest import did_you_mean
from bcnet.plain import shown
from bcnet.user_code import import_function

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "digits": digits,
    "digit-scenes": digit_scenes,
    "cbm-mobilenet": mobilenet,
    "cbm-resnet": resnet,
    "reactnet-a": reactnet_a,
    "reactnet-small": reactnet_small,
}


@dataclass(frozen=True)
class Packaged:
    """Trained weights that the package carries, and the statistics of the images that they expect."""

    file: Path
    mean: tuple[float, ...]
    std: tuple[float, ...]


PACKAGED = {
    "digit-scenes": Packaged(Path(__file__).parent / "digit_scenes.safetensors", (0.18,), (0.17,)),
}
LIBRARIES: dict[str, Any] = {"torchvision": torchvision_models, "timm": timm_models}


def build_model(config: ModelConfig, in_channels: int, num_classes: int, run: Run | None = None) -> nn.Module:
    """A network for images of `in_channels` and `num_classes` classes, with its initial weights or `weights`.

    `run` runs a network once on an example, which helps to tell whether weights are another network's.
    Raises ModelError: unknown name, wrong arguments, weights that are unavailable or of another network.
    """
    library, _, argument = config.name.partition(":")
    pretrained = config.weights == PRETRAINED
    packaged = PACKAGED.get(config.name) if pretrained else None
    if pretrained and packaged is None and library not in LIBRARIES:
        names = ", ".join((*PACKAGED, *(f"{name}:NAME" for name in LIBRARIES)))
        raise ModelError(
            f"model.weights = '{PRETRAINED}' is for {names}; give a file of weights, or load them in the "
            f"function of '{config.name}'"
        )
    given: dict[str, Any] = {"in_channels": in_channels, "num_classes": num_classes}
    if config.name in NETWORKS:
        function = NETWORKS[config.name]
        _check_names(config, function)
    elif library in LIBRARIES:
        function = partial(LIBRARIES[library].build, argument, pretrained=pretrained)
    elif argument:
        function, given = import_function(config.name, ModelError), {}
    else:
        there = (*NETWORKS, *(f"{name}:NAME" for name in LIBRARIES), "package.module:function")
        near = did_you_mean(config.name, NETWORKS, "")
        if config.name in torchvision_models.names():
            near = f"did you mean 'torchvision:{config.name}'?"
        raise ModelError(
            f"unknown model '{config.name}'; {near}{' ' if near else ''}known: {', '.join(there)}"
        )
    try:
        model = function(**{**given, **config.args})
    except ModelError:
        raise
    except FOREIGN as cause:
        raise ModelError(f"model '{config.name}' with args {config.args}: {one_line(cause)}") from cause
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"'{config.name}' returned {type(model).__name__}, not a torch.nn.Module; "
            "it must return the network"
        )
    if packaged is not None:
        load_weights(model, packaged.file, run, own=True)
    elif config.weights is not None and not pretrained:
        load_weights(model, Path(config.weights), run)
    return model


def _check_names(config: ModelConfig, function: Callable[..., nn.Module]) -> None:
    """Raise ModelError for an argument that one of the reference networks does not have."""
    known = inspect.signature(function).parameters
    for name in config.args:
        if name not in known:
            hint = did_you_mean(name, known, f"known: {', '.join(known)}")
            raise ModelError(f"model.args: '{config.name}' has no argument {shown(name)}; {hint}")


def expression(config: ModelConfig, in_channels: int, num_classes: int) -> tuple[str, str]:
    """A line of Python that imports what makes a network, and the expression that makes it.

    Its weights are initial ones, unless a function of the user's own loads others.
    """
    library, _, argument = config.name.partition(":")
    given: dict[str, Any] = {"in_channels": in_channels, "num_classes": num_classes}
    words: list[str] = []
    if config.name in NETWORKS:
        line, maker = "from bcnet.models import NETWORKS", f"NETWORKS[{config.name!r}]"
    elif library in LIBRARIES:
        own = LIBRARIES[library]
        given = own.arguments(argument, *given.values(), pretrained=config.weights == PRETRAINED)
        line, maker, words = f"import {library}", own.MAKES, [repr(argument)]
    else:
        line, maker, given = f"from {library} import {argument}", argument, {}
    words += [f"{key}={value!r}" for key, value in {**given, **config.args}.items()]
    return line, f"{maker}({', '.join(words)})"


def statistics(config: ModelConfig) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation per channel that pretrained weights expect; None where unknown."""
    library, _, argument = config.name.partition(":")
    if config.weights == PRETRAINED and config.name in PACKAGED:
        return PACKAGED[config.name].mean, PACKAGED[config.name].std
    if config.weights != PRETRAINED or library not in LIBRARIES:
        return None
    return LIBRARIES[library].statistics(argument)  # type: ignore[no-any-return]
