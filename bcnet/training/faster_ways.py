"""Try ways to train subnets that may be faster than on slices: on whole tensors with masks, or recorded.

In: a supernet's paths, another way to train them, a batch. Out: how far the gradients are apart, seconds, or
why that way cannot be used.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bcnet.errors import FOREIGN, one_line
from bcnet.space.subnet import Subnet
from bcnet.training.supernet_step import SlicedPaths

# Tolerance relative to the gradients' norm, in float64: in TF32 they differ more, because of rounding
# (decision 20).
EXACT = 1e-3
TIMED = 3  # number of timings of each way, of which the fastest counts
Way = TypeVar("Way")


def attempt(
    sliced: SlicedPaths, trial: Callable[[], tuple[Way | None, str]], failed: str
) -> tuple[Way | None, str]:
    """The way that a trial finds, or None, and the reason; parameters and buffers are unchanged afterwards.

    Where the trial raises, the reason begins with `failed`: the user's own forward may raise anything on
    tensors of another size, or where channels are masked.
    """
    parameters = sliced.parameters.values()
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    before = {name: buffer.clone() for name, buffer in sliced.buffers.items()}
    try:
        return trial()
    except FOREIGN as cause:
        return None, f"{failed} ({one_line(cause)})"
    finally:
        for name, buffer in sliced.buffers.items():
            buffer.copy_(before[name])
        for parameter in parameters:
            gradient_of(parameter).zero_()


def gradient_of(parameter: nn.Parameter) -> Tensor:
    """The parameter's gradient, which must exist: a captured graph has its address."""
    assert parameter.grad is not None
    return parameter.grad


def unfit(sliced: SlicedPaths, inputs: Any, targets: Any) -> str | None:
    """Why paths cannot be masked or recorded, where that is known beforehand."""
    mixed = [group.name for group in sliced.space.groups if group.mixed]
    if mixed:
        return f"a layer normalises across the channels of {mixed[0]}, or computes with their number"
    if not sliced.recipe.task.by_cross_entropy:
        return "the loss is your own"
    for name in sorted(sliced.space.dimensions.keys() & sliced.buffers.keys()):
        module = sliced.model.get_submodule(name.rpartition(".")[0])
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            return f"{name} is neither trained nor recalibrated for each candidate"
    if not all(isinstance(leaf, Tensor) for leaf in tree_leaves((inputs, targets))):
        return "batches hold more than tensors"
    return None


def in_float64(sliced: SlicedPaths) -> SlicedPaths:
    """The same paths on tensors of their own."""
    parameters = {name: nn.Parameter(double(own.detach())) for name, own in sliced.parameters.items()}
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    # Statistics are changed in place: those that are double already are copied, too.
    buffers = {name: double(buffer).clone() for name, buffer in sliced.buffers.items()}
    supernet = replace(sliced.supernet, state={**parameters, **buffers})
    return SlicedPaths(supernet, replace(sliced.recipe, amp=False))


def double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def tried(sliced: SlicedPaths) -> list[Subnet]:
    """Paths to try: all of the channels, half and the fewest, on each side."""
    space = sliced.space
    return [
        Subnet.at(space, widths, side)
        for widths in (space.largest(), space.uniform(0.5), space.smallest())
        for side in space.rule.sides
    ]


@contextmanager
def nothing_drawn(model: nn.Module) -> Iterator[None]:
    """Within the block, only the batch norms of a network are in training mode: there is no dropout."""
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    try:
        yield
    finally:
        model.train()


def difference(
    parameters: Mapping[str, nn.Parameter], one: Callable[[], Any], other: Callable[[], Any]
) -> float:
    """How far the gradients of two ways are apart, relative to the norm of the first one's; may be NaN."""
    found = []
    devices = [torch.cuda.current_device()] if next(iter(parameters.values())).is_cuda else []
    with torch.random.fork_rng(devices):
        for way in (one, other):
            for parameter in parameters.values():
                gradient_of(parameter).zero_()
            torch.manual_seed(0)
            way()
            found.append(torch.cat([gradient_of(each).flatten() for each in parameters.values()]))
    norm, apart = float(found[0].norm()), float((found[1] - found[0]).norm())
    return apart / norm if norm else apart


def seconds_of(step: Callable[[], Tensor]) -> float:
    """Seconds until a step's loss, a scalar, is known; the fastest of a few."""
    times = []
    for _ in range(TIMED):
        start = time.perf_counter()
        float(step())  # waits for the GPU
        times.append(time.perf_counter() - start)
    return min(times)
