"""Train several subnets at once, each on its part of a batch: PSE-Net (arXiv 2408.16233).

In: a supernet's paths, subnets, a batch. Out: each subnet's loss; gradients of their mean, added. With masks,
the whole network runs once: of each image, channels outside of its subnet are zero wherever a layer would
mix them, and batch norms take the statistics of each part (ghost batch norm). On slices, the subnets run one
after the other. Both give the same gradients. How PSE-Net treats batch norm was not available to us; this is
our own choice.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from bcnet.data.splits import Item
from bcnet.errors import TrainingError
from bcnet.plain import milliseconds
from bcnet.progress import say
from bcnet.space.inputs import entries
from bcnet.space.subnet import Subnet, membership
from bcnet.space.supernet import NarrowNetwork
from bcnet.training.distributed import average
from bcnet.training.faster_ways import (
    EXACT,
    attempt,
    difference,
    double,
    in_float64,
    nothing_drawn,
    seconds_of,
    tried,
    unfit,
)
from bcnet.training.supernet_step import Parts, SlicedPaths
from bcnet.training.task import bound_to

Norm = nn.modules.batchnorm._BatchNorm
Conv = nn.modules.conv._ConvNd
Forward = Callable[[Tensor], Tensor]


def part_of(batch: Item, place: int, count: int) -> Item:
    """The part of a batch that the subnet at `place` of `count` trains on: every `count`-th image.

    Raises TrainingError if there are fewer images, or inputs and targets are not tensors with a row for each.
    """
    inputs, targets = batch
    rows = entries(inputs)
    alone = "train.method shares every batch out to several subnets: "
    if rows < count:
        raise TrainingError(
            f"{alone}{rows} images are too few for {count}; lower train.parallel or raise train.batch_size"
        )
    leaves = tree_leaves((inputs, targets))
    whole = all(isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == rows for leaf in leaves)
    if not whole or isinstance(inputs, list) or isinstance(targets, list):
        raise TrainingError(
            f"{alone}inputs and targets have to be tensors with a row for each image; choose another method"
        )
    part: Item = tree_map(lambda leaf: leaf[place::count], (inputs, targets))
    return part


class SlicedParts:
    """Trains the subnets one after the other on their slices: as much work as the narrow networks'."""

    def __init__(self, paths: SlicedPaths) -> None:
        self.paths, self.space = paths, paths.space

    def __call__(self, subnets: Sequence[Subnet], inputs: Any, targets: Any) -> list[Tensor]:
        """The loss of each subnet on its part; adds the gradients of their mean."""
        count, losses = len(subnets), []
        for place, subnet in enumerate(subnets):
            own_inputs, own_targets = part_of((inputs, targets), place, count)
            losses.append(self.paths(subnet, own_inputs, own_targets, count)[0])
        return losses


class MaskedParts:
    """Trains the subnets in one forward and backward pass of the whole network, with a mask for each image.

    Channels outside of an image's subnet are set to zero in what convolutions and linear layers read, which
    are the layers that mix channels. Image i belongs to subnet i % n: so a part's statistics need no copy of
    the activations. Batch norms' running statistics stay as they are: candidates have their own. Batches that
    cannot be divided equally are trained on slices.
    """

    def __init__(self, sliced: SlicedPaths) -> None:
        self.space, self._sliced = sliced.space, sliced
        modules = dict(sliced.model.named_modules())
        axes, _ = self.space.distinct
        self._norms = [module for module in modules.values() if isinstance(module, Norm)]
        self._mixing: list[tuple[nn.Module, int, int]] = []  # module, number of a dimension, repetitions
        for name, along in axes.items():
            module = modules[name.rpartition(".")[0]]
            if not name.endswith(".weight") or not isinstance(module, Conv | nn.Linear):
                continue
            transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
            read = dict(along).get(0 if transposed else 1)
            if read is not None:
                # A convolution's weight has the channels of one of its groups.
                times = module.groups if isinstance(module, Conv) and not transposed else 1
                self._mixing.append((module, read, times))
        self._device = next(iter(sliced.parameters.values())).device
        own = [torch.from_numpy(entry) for entry in self.space.entries]
        self._sizes = [len(entry) for entry in own]
        self._entries = torch.cat(own).to(self._device)

    def __call__(self, subnets: Sequence[Subnet], inputs: Any, targets: Any) -> list[Tensor]:
        """The loss of each subnet on its part; adds the gradients of their mean."""
        sliced, count = self._sliced, len(subnets)
        if entries(inputs) % count:
            return SlicedParts(sliced)(subnets, inputs, targets)
        state = {**sliced.parameters, **sliced.buffers}
        called = bound_to(sliced.model.forward, NarrowNetwork(sliced.model, self.space, state).run)
        with _forwards(self._masked(subnets)):
            _, outputs = sliced.recipe.training_loss(called, inputs, targets)
        parts = [part_of((outputs, targets), place, count) for place in range(count)]
        losses = [sliced.recipe.loss(*part) for part in parts]
        sliced.scaler.scale(torch.stack(losses).mean()).backward()  # type: ignore[no-untyped-call]
        return [loss.detach() for loss in losses]

    def _masked(self, subnets: Sequence[Subnet]) -> dict[nn.Module, Forward]:
        """What modules compute in place of their own forward, for these subnets' parts."""
        count = len(subnets)
        members = torch.from_numpy(np.stack([membership(self.space, subnet) for subnet in subnets]))
        outside = ~members.to(self._device)[:, self._entries]
        masks = torch.split(outside, self._sizes, 1)
        found: dict[nn.Module, Forward] = {
            module: partial(_zeroed, module.forward, masks[number].repeat(1, times), isinstance(module, Conv))
            for module, number, times in self._mixing
        }
        return found | {norm: partial(_ghost, norm, norm.forward, count) for norm in self._norms}


def _zeroed(forward: Forward, outside: Tensor, spatial: bool, x: Tensor) -> Tensor:
    """A layer's output for inputs whose channels are zero where they are `outside` (parts, channels).

    Channels are the second dimension of a `spatial` layer's input, the last one of others.
    """
    count, channels = outside.shape
    between = x.ndim - 2
    shape = (count, channels, *[1] * between) if spatial else (count, *[1] * between, channels)
    rows = x.view(-1, count, *x.shape[1:]).masked_fill(outside.view(shape), 0)
    return forward(rows.flatten(0, 1))


def _ghost(norm: Any, forward: Forward, count: int, x: Tensor) -> Tensor:
    """A batch norm that normalises each of `count` parts by its own statistics, as if by further channels."""
    if not norm.training:
        return forward(x)
    parts = x.reshape(-1, count * x.shape[1], *x.shape[2:])
    weight, bias = (None if own is None else own.repeat(count) for own in (norm.weight, norm.bias))
    normalised = nn.functional.batch_norm(parts, None, None, weight, bias, training=True, eps=norm.eps)
    return normalised.reshape(x.shape)


@contextmanager
def _forwards(replaced: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Let modules compute something else, for the length of a block."""
    before = {module: vars(module).get("forward") for module in replaced}
    try:
        for module, forward in replaced.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module, own in before.items():
            if own is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = own


def fastest_parts(sliced: SlicedPaths, inputs: Any, targets: Any, count: int) -> Parts:
    """How `count` subnets of a step are trained: with masks where that is right and faster, else on slices.

    Both ways are tried on this batch; parameters and buffers are unchanged. Reports the choice and why.
    """
    trial = partial(_trial, sliced, inputs, targets, count)
    masked, reason = attempt(sliced, trial, "masks failed")
    how = "in one pass with masks" if masked else "one after the other on slices"
    say(f"training the {count} subnets of a step {how}: {reason}")
    return masked or SlicedParts(sliced)


def _trial(sliced: SlicedPaths, inputs: Any, targets: Any, count: int) -> tuple[MaskedParts | None, str]:
    """Masked parts if they are right and faster, and why they are or are not."""
    reason = "they learn from another network" if sliced.objective else unfit(sliced, inputs, targets)
    if reason is None and entries(inputs) % count:
        reason = f"{entries(inputs)} images cannot be divided equally"
    if reason is not None:
        return None, reason
    subnets = [subnet for _ in range(count) for subnet in tried(sliced)][:count]
    plain = in_float64(sliced)
    wide = tree_map_only(Tensor, double, inputs)
    with nothing_drawn(sliced.model):
        apart = difference(
            plain.parameters,
            lambda: SlicedParts(plain)(subnets, wide, targets),
            lambda: MaskedParts(plain)(subnets, wide, targets),
        )
    if not apart <= EXACT:
        return None, f"with masks gradients are off by {apart:.1%}"
    masked = MaskedParts(sliced)
    seconds = torch.tensor([_seconds(way, subnets, inputs, targets) for way in (masked, SlicedParts(sliced))])
    average([seconds])  # all processes choose the same
    masked_ms, sliced_ms = (1e3 * seconds).tolist()
    times = f"a step takes {milliseconds(masked_ms)} ms with masks, {milliseconds(sliced_ms)} on slices"
    return masked if masked_ms < sliced_ms else None, times


def _seconds(parts: Parts, subnets: Sequence[Subnet], inputs: Any, targets: Any) -> float:
    """Seconds of a step, the fastest of a few."""
    return seconds_of(lambda: torch.stack(parts(subnets, inputs, targets)).sum())
