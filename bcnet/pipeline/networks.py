"""The configured network, as it is given or freshly initialised, and its space. In: a configuration, data.

Networks that cannot be used are refused here, before anything is trained on them.
"""

import copy
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from bcnet.config import Config, TaskConfig
from bcnet.data.image_data import ImageData
from bcnet.data.splits import Split
from bcnet.errors import FOREIGN, ModelError, TrainingError, one_line
from bcnet.hw_profiles import HwProfile
from bcnet.models import build_model
from bcnet.pipeline.binned_space import space_by_bins
from bcnet.space.discover import discover_space
from bcnet.space.inputs import arguments
from bcnet.space.unsupported import check_initialised
from bcnet.space.widen import widened
from bcnet.space.width_space import WidthSpace
from bcnet.training.task import logits_of


def searched_space(
    config: Config, profiles: Sequence[HwProfile], model: nn.Module, example_of: Callable[[int], Any]
) -> tuple[nn.Module, WidthSpace, WidthSpace | None]:
    """The network, widened by `space.expand`, its space, and the given network's space if it was widened.

    Widths are multiples of every device's channel multiple; equal steps of latency are those on the first
    device. `example_of(n)` gives inputs of `n` items.
    """
    multiple = channel_multiple(config, profiles)

    def discover(model: nn.Module) -> WidthSpace:
        def with_bins(bins: int) -> WidthSpace:
            return discover_space(
                model,
                example_of(1),
                bins=bins,
                channel_multiple=multiple,
                min_width=config.space.min_width,
                method=config.train.method,
                freeze=config.space.freeze,
                tie=config.space.tie,
            )

        return space_by_bins(config.space, with_bins, profiles[0], model, example_of)

    narrow = discover(model)
    if config.space.expand == 1:
        return model, narrow, None
    model = widened_as_configured(config, model, narrow, multiple)
    own = {group.name: group.channels for group in narrow.groups}
    space = discover(model)
    groups = []
    for group in space.groups:
        original = own.get(group.name, group.channels)
        # The given network is among the choices; so is its complement, which keeps the channels' use even.
        complement = space.rule.complement(group.choices, original)
        added = {original, complement or original}
        groups.append(replace(group, original=original, choices=tuple(sorted({*group.choices, *added}))))
    return model, replace(space, groups=tuple(groups)), narrow


def channel_multiple(config: Config, profiles: Sequence[HwProfile]) -> int:
    """The channel multiple of widths: the configured one, else one that suits all devices."""
    return config.space.channel_multiple or math.lcm(*(own.channel_multiple for own in profiles))


def widened_as_configured(
    config: Config, model: nn.Module, narrow: WidthSpace | None, multiple: int
) -> nn.Module:
    """A network widened by `space.expand`; `narrow` is its original space, None if it is not widened."""
    if narrow is None:
        return model
    return widened(
        model,
        narrow,
        config.space.expand,
        channel_multiple=multiple,
        copies=config.train.channel_order != "as-is",
        seed=config.seed,
    )


def given_model(config: Config, data: ImageData) -> nn.Module:
    """The configured network as it is given: with `model.weights`, if set, otherwise with initial weights.

    The same for the same seed.
    """

    def run(model: nn.Module) -> Any:
        args, kwargs = arguments(data.example(1))
        return model(*args, **kwargs)

    kept = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            random.seed(config.seed)
            np.random.seed(config.seed)
            model = build_model(config.model, data.input_shape[0], len(data.classes), run)
            check_initialised(model)
            return model
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])


def fresh_model(config: Config, data: ImageData, seed: int | None = None) -> nn.Module:
    """The network that the function returns for a seed (default: the configured), without `model.weights`."""
    own = config.model.model_copy(update={"weights": None})
    seed = config.seed if seed is None else seed
    return given_model(config.model_copy(update={"model": own, "seed": seed}), data)


def check_network(config: Config, data: ImageData, model: nn.Module) -> None:
    """Raise ModelError where the network does not run on the images, or its outputs do not fit the task."""
    args, kwargs = arguments(data.example(1))
    try:
        with torch.no_grad():
            model.eval()
            output = model(*args, **kwargs)
    except FOREIGN as cause:
        raise ModelError(
            f"model '{config.model.name}' does not run on images of {tuple(data.input_shape)}: "
            f"{one_line(cause)}"
        ) from None
    if config.task.loss == TaskConfig().loss and config.task.train_step is None:
        _check_outputs(config, data, output)


def _check_outputs(config: Config, data: ImageData, output: Any) -> None:
    """Cross entropy needs one logit a class. Raises ModelError."""
    train, count = data.train, len(data.classes)
    try:
        logits = logits_of(output)
    except TrainingError as cause:
        raise ModelError(f"model '{config.model.name}': {cause}") from None
    classified = isinstance(train, Split) and train.classified and count
    if (classified and logits.shape != (1, count)) or (count and logits.shape[1:2] != (count,)):
        raise ModelError(
            f"model '{config.model.name}' gives outputs of shape {tuple(logits.shape)}, "
            f"the data has {count} classes: set num_classes in [model] args"
        )


def check_training_mode(config: Config, model: nn.Module, inputs: Any) -> None:
    """Some networks do other things while they are trained. Raises ModelError where that cannot be used."""
    args, kwargs = arguments(inputs)
    name = f"model '{config.model.name}'"
    try:
        with torch.no_grad():
            probe = copy.deepcopy(model)
            probe.train()
            output = probe(*args, **kwargs)
    except ValueError:
        return  # batch statistics of so few values: batches in training are larger
    except FOREIGN as cause:
        raise ModelError(
            f"{name} runs, but not in training mode ({one_line(cause)}); where it takes targets then, "
            "set task.train_step"
        ) from cause
    try:
        if config.task.loss == TaskConfig().loss:
            logits_of(output)
    except TrainingError:
        raise ModelError(
            f"{name} returns {type(output).__name__} in training, not one tensor, logits with auxiliary "
            "ones, or a dict with 'out'; set task.loss or task.train_step to your own"
        ) from None
