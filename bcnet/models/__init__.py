"""Reference networks by name, torchvision's, or a user's own function."""

import difflib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from bcnet.config import ModelConfig
from bcnet.errors import ModelError, one_line
from bcnet.imports import import_function
from bcnet.models.channel_bench_macro import mobilenet, resnet
from bcnet.models.digits import digits
from bcnet.models.weights import load_weights

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "digits": digits,
    "cbm-mobilenet": mobilenet,
    "cbm-resnet": resnet,
}


def build_model(config: ModelConfig, in_channels: int, num_classes: int) -> nn.Module:
    """A freshly initialised network for images of `in_channels` and `num_classes` classes.

    Raises ModelError: unknown name, wrong arguments.
    """
    name, _, argument = config.name.partition(":")
    if config.name in NETWORKS:
        function = NETWORKS[config.name]
        given: dict[str, Any] = {"in_channels": in_channels, "num_classes": num_classes}
    elif name == "torchvision":
        from torchvision import models

        known = models.list_models()
        if argument not in known:
            near = difflib.get_close_matches(argument, known, n=3)
            raise ModelError(
                f"torchvision has no model '{argument}'; near it: {', '.join(near) or 'nothing'}"
            )
        if in_channels != 3:
            raise ModelError(f"torchvision's models take 3 channels, the images have {in_channels}")

        def function(**args: object) -> nn.Module:
            return models.get_model(argument, **args)  # type: ignore[no-any-return]

        given = {"num_classes": num_classes, "weights": None}
        if "weights_backbone" in inspect.signature(models.get_model_builder(argument)).parameters:
            given["weights_backbone"] = None  # torchvision would fetch them otherwise
        if argument in ("googlenet", "inception_v3"):
            given["init_weights"] = True  # torchvision asks for a choice
    elif argument:
        function = import_function(config.name, ModelError)
        given = {}
    else:
        there = ", ".join((*NETWORKS, "torchvision:NAME", "package.module:function"))
        raise ModelError(f"unknown model '{config.name}'; there is: {there}")
    try:
        model = function(**{**given, **config.args})
    except (Exception, SystemExit) as cause:
        raise ModelError(f"model '{config.name}' with args {config.args}: {one_line(cause)}") from cause
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"'{config.name}' returned {type(model).__name__}, not a torch.nn.Module; "
            "it must return the network"
        )
    if config.weights is not None:
        load_weights(model, Path(config.weights))
    return model
