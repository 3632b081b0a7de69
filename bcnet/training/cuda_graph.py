"""Train paths with a captured CUDA graph, for networks that are too small to keep a GPU busy.

In: paths on slices, and a batch. Out: the same with a single graph launch, if that is correct and faster.
Slices differ in size, so the processor has to launch every kernel, and the GPU waits for it. Here the
channels outside a path are multiplied by zero instead: all paths are the same work, which is captured once.
"""

import pickle
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only

from bcnet.errors import TrainingError
from bcnet.plain import milliseconds
from bcnet.progress import say
from bcnet.space.subnet import Subnet, membership
from bcnet.space.supernet import NarrowNetwork
from bcnet.training.faster_ways import (
    EXACT,
    attempt,
    difference,
    double,
    gradient_of,
    in_float64,
    nothing_drawn,
    seconds_of,
    tried,
    unfit,
)
from bcnet.training.supernet_step import Paths, SlicedPaths
from bcnet.training.task import bound_to

Work = Callable[[], None]
Capture = Callable[[Work], Work]  # records work and returns its replay
REPLAYED = 0.02  # tolerance of gradients relative to their norm, between the work and its replay


class MaskedPath:
    """Trains the chosen subnet on whole tensors that are masked with zeros outside of the subnet.

    Gradients equal those of `SlicedPaths` except for rounding: a channel whose normalisation has zero weight
    and bias is zero, and weights that would read it are zero, too. Batch-norm statistics of masked channels
    are updated with values of zeros, but candidates are recalibrated before they are scored. Not for groups
    across which a layer normalises.
    """

    def __init__(self, sliced: SlicedPaths) -> None:
        self.sliced = sliced
        space, parameters = sliced.space, sliced.parameters
        axes, _ = space.distinct
        first = next(iter(parameters.values()))
        # Every entry of every distinct dimension, and last a fixed one, which every subnet takes.
        ends = np.cumsum([0, *map(len, space.entries)])
        whole = int(ends[-1])
        self._channels = torch.from_numpy(np.append(np.concatenate(space.entries), space.starts[-1]))
        self._channels = self._channels.to(first.device)
        # One for each channel of the supernet that the subnet takes, else zero.
        self._member = torch.zeros(space.starts[-1] + 1, device=first.device)
        self._masked = [name for name in parameters if name in axes]
        self._whole = [name for name in parameters if name not in axes]
        # For each value of each masked tensor the entries that it belongs to, one of each of its axes.
        most = max(len(axes[name]) for name in self._masked)
        places: list[list[Tensor]] = [[] for _ in range(most)]
        for name in self._masked:
            shape = parameters[name].shape
            found = [torch.tensor(whole).expand(shape)] * most
            for number, (axis, dimension) in enumerate(axes[name]):
                start, end = ends[dimension], ends[dimension + 1]
                view = [-1 if each == axis else 1 for each in range(len(shape))]
                found[number] = torch.arange(start, end).view(view).expand(shape)
            for all_places, own in zip(places, found, strict=True):
                all_places.append(own.reshape(-1))
        self._places = [torch.cat(own).to(first.device) for own in places]

    def choose(self, subnet: Subnet) -> None:
        """Make this the subnet that calls take."""
        on_gpu = self._member.is_cuda
        member = torch.from_numpy(membership(self.sliced.space, subnet)).float()
        self._member.copy_(member.pin_memory() if on_gpu else member, non_blocking=on_gpu)

    def __call__(self, inputs: Any, targets: Any, count: int) -> Tensor:
        """Add the gradients of the path, one of `count`, to the parameters'; its loss, a scalar."""
        sliced, parameters = self.sliced, self.sliced.parameters
        masks = self._masks()
        values = torch._foreach_mul([parameters[name].detach() for name in self._masked], masks)
        leaves = dict(zip(self._masked, values, strict=True))
        leaves |= {name: parameters[name].detach() for name in self._whole}
        for leaf in leaves.values():
            leaf.requires_grad_()
        state = {**leaves, **sliced.buffers}
        called = bound_to(sliced.model.forward, NarrowNetwork(sliced.model, sliced.space, state).run)
        loss, _ = sliced.recipe.training_loss(called, inputs, targets)
        found = torch.autograd.grad(
            sliced.scaler.scale(loss / count),
            list(leaves.values()),
            allow_unused=True,
            materialize_grads=True,
        )
        split = len(self._masked)
        torch._foreach_addcmul_(
            [gradient_of(parameters[name]) for name in self._masked],
            # In the parameters' layout: what is of another is not added in one piece.
            [gradient.contiguous() for gradient in found[:split]],
            masks,
        )
        for name, gradient in zip(self._whole, found[split:], strict=True):
            gradient_of(parameters[name]).add_(gradient)
        return loss.detach()

    def _masks(self) -> list[Tensor]:
        """For each masked parameter a tensor of its shape: one where the subnet takes it, else zero."""
        numbers = self._member[self._channels]
        flat = numbers[self._places[0]]
        for places in self._places[1:]:
            flat = flat * numbers[places]
        tensors = [self.sliced.parameters[name] for name in self._masked]
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


class RecordedPaths:
    """Trains paths like `MaskedPath`, captured for batches of one shape; others use the sliced paths.

    The graph has only addresses: parameters and their gradients, which must exist, are never replaced.
    Capturing executes the work, which changes gradients and statistics. Outputs are not returned.
    """

    def __init__(
        self, sliced: SlicedPaths, inputs: Any, targets: Any, count: int, capture: Capture | None = None
    ) -> None:
        self.space, self._sliced, self._count = sliced.space, sliced, count
        self.masked = masked = MaskedPath(sliced)
        masked.choose(Subnet.at(self.space, self.space.largest()))
        self._batch = batch = tree_map_only(Tensor, torch.clone, (inputs, targets))
        self._loss = loss = torch.zeros((), device=next(iter(sliced.parameters.values())).device)

        def work() -> None:
            loss.copy_(masked(batch[0], batch[1], count))

        _refuse_draws(work, loss.is_cuda)
        self._replay = (capture or captured)(work)

    def __call__(
        self, path: Subnet, inputs: Any, targets: Any, count: int = 1, teacher: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """As `SlicedPaths` does, but for the outputs."""
        batch = (inputs, targets)
        if teacher is not None or count != self._count or _shapes(batch) != _shapes(self._batch):
            return self._sliced(path, inputs, targets, count, teacher)
        self.masked.choose(path)
        for static, new in zip(tree_leaves(self._batch), tree_leaves(batch), strict=True):
            static.copy_(new)
        self._replay()
        return self._loss.clone(), None


def _refuse_draws(work: Work, on_gpu: bool) -> None:
    """Do the work. Raises TrainingError where it draws random numbers that a recording would repeat.

    A GPU's own, as of dropout, are drawn again in each replay.
    """

    def state() -> bytes:
        own = torch.get_rng_state().numpy().tobytes() if on_gpu else b""
        return pickle.dumps((random.getstate(), np.random.get_state(), own))

    before = state()
    work()
    if state() != before:
        raise TrainingError("the network draws random numbers on the processor")


def captured(work: Work) -> Work:
    """Capture work on the GPU as a CUDA graph; its results have the same addresses in every replay.

    Raises RuntimeError if the work waits for the GPU, which cannot be captured.
    """
    current = torch.cuda.current_stream()
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(current)
    try:
        with torch.cuda.stream(side), _fastest_kernels():
            work()  # libraries choose and allocate at their first calls
            work()
            # Before it is recorded: a recording that fails leaves PyTorch's memory in disorder.
            with _waiting_refused():
                work()
    finally:
        current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # The outer one restores the stream.
    with torch.cuda.stream(current), _fastest_kernels(), torch.cuda.graph(graph):
        work()
    replay: Work = graph.replay
    return replay


@contextmanager
def _fastest_kernels() -> Iterator[None]:
    """cuDNN times its algorithms, for the length of a block: worth it where shapes stay what they are."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def _waiting_refused() -> Iterator[None]:
    """Within the block, work that waits for the GPU raises RuntimeError."""
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that not every kind is found
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def fastest_paths(
    sliced: SlicedPaths, inputs: Any, targets: Any, count: int, capture: Capture | None = None
) -> Paths:
    """Captured paths, if they give the same gradients as sliced ones, and faster; otherwise the sliced ones.

    Both are tried on this batch, on wide, medium and narrow paths, each one of `count`. Parameters and
    buffers are unchanged. Reports the choice and the reason.
    """
    trial = partial(_trial, sliced, inputs, targets, count, capture)
    recorded, reason = attempt(sliced, trial, "recording failed")
    say(f"training {'by a' if recorded else 'on slices, not by a'} recorded CUDA graph: {reason}")
    return recorded or sliced


def _trial(
    sliced: SlicedPaths, inputs: Any, targets: Any, count: int, capture: Capture | None
) -> tuple[RecordedPaths | None, str]:
    """The recorded paths if they are right and faster, and why they are or are not."""
    batch = (inputs, targets, count)
    reason = unfit(sliced, inputs, targets)
    if reason is not None:
        return None, reason
    recorded = RecordedPaths(sliced, *batch, capture)
    reason = _different(recorded, sliced, *batch)
    if reason is not None:
        return None, reason
    own_s, sliced_s = (_seconds(paths, tried(sliced), *batch) for paths in (recorded, sliced))
    times = f"a path takes {milliseconds(own_s * 1e3)} ms recorded, "
    times += f"{milliseconds(sliced_s * 1e3)} on slices"
    return recorded if own_s < sliced_s else None, times


def _different(
    recorded: RecordedPaths, sliced: SlicedPaths, inputs: Any, targets: Any, count: int
) -> str | None:
    """Why the recorded paths do not give the gradients of the sliced ones; None where they do.

    Masks against slices in float64, with nothing drawn at random; the replay against the same masks as they
    are trained, with the same random numbers.
    """
    plain = in_float64(sliced)
    exact, as_trained = MaskedPath(plain), recorded.masked
    wide = tree_map_only(Tensor, double, inputs)
    for path in tried(sliced):
        exact.choose(path)
        as_trained.choose(path)
        with nothing_drawn(sliced.model):
            apart = difference(
                plain.parameters,
                lambda path=path: plain(path, wide, targets, count),  # type: ignore[misc]
                lambda: exact(wide, targets, count),
            )
        if not apart <= EXACT:
            return f"with masks gradients are off by {apart:.1%}"
        with _fastest_kernels():  # as in the recording
            apart = difference(
                sliced.parameters,
                lambda: as_trained(inputs, targets, count),
                lambda path=path: recorded(path, inputs, targets, count),  # type: ignore[misc]
            )
        if not apart <= REPLAYED:
            return f"what was recorded gives gradients that are off by {apart:.1%}"
    return None


def _seconds(paths: Paths, tried: Sequence[Subnet], inputs: Any, targets: Any, count: int) -> float:
    """Mean seconds of the `tried` paths, the fastest of a few times each."""

    def loss_of(path: Subnet) -> Tensor:
        return paths(path, inputs, targets, count)[0]

    return sum(seconds_of(partial(loss_of, path)) for path in tried) / len(tried)


def _shapes(tree: Any) -> list[Any]:
    """What a recording depends on of a batch: how it is built, and each tensor's shape and type."""
    leaves, structure = tree_flatten(tree)
    return [structure, *((leaf.shape, leaf.dtype) for leaf in leaves if isinstance(leaf, Tensor))]
