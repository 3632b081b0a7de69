"""Training paths by a recorded CUDA graph: for networks that are too small to keep a GPU busy.

In: the paths on slices, and a batch. Out: the same by one call of the GPU, where that is right and faster.
Slices have another size each time, so the processor starts every kernel anew, and the GPU waits for it. Here
what a path leaves out is multiplied by zero instead: all paths are one piece of work, recorded once.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from bcnet.errors import one_line
from bcnet.progress import say
from bcnet.supernet.paths import Path, path_of, run_with
from bcnet.supernet.step import Paths, SlicedPaths
from bcnet.supernet.task import bound_to

Replay = Callable[[], None]
TOLERANCE, TOLERANCE_AMP = 0.02, 0.2  # by which gradients may differ, of their norm: float32, bfloat16
TIMED = 3  # times that each path is taken, of which the fastest counts


class MaskedPaths:
    """Trains a path on whole tensors, in which what the path leaves out is zero.

    Gradients are those of `SlicedPaths`, but for rounding: a channel whose normalisation has weight and bias
    zero is zero, and weights that would read it are zero, too. Batch-norm statistics of the channels that
    are left out are updated with what zeros give; candidates get statistics of their own before they are
    scored. Not for groups that some layer normalises across.
    """

    def __init__(self, sliced: SlicedPaths) -> None:
        self._sliced = sliced
        axes, _ = sliced.space.distinct
        device = next(iter(sliced.parameters.values())).device
        self._axes = {name: along for name, along in axes.items() if name in sliced.parameters}
        self._entries = [
            (torch.from_numpy(groups).to(device), torch.from_numpy(channels).to(device))
            for groups, channels in sliced.space.entries
        ]
        # Rows are groups; the last is that of fixed entries, which are channel 0 of it.
        self._bounds = torch.zeros(len(sliced.space.groups) + 1, 2, dtype=torch.int64, device=device)

    def choose(self, path: Path) -> None:
        """Make this the path that calls take."""
        self._bounds.copy_(torch.tensor([*path, (0, 1)]))

    def __call__(self, inputs: Any, targets: Any, count: int) -> Tensor:
        """Add the gradients of the chosen path, one of `count`, to the parameters'; its loss, a scalar."""
        sliced, parameters = self._sliced, self._sliced.parameters
        low, high = self._bounds.T
        kept = [
            ((channels >= low[groups]) & (channels < high[groups])).float()
            for groups, channels in self._entries
        ]
        masks: dict[str, Tensor] = {}
        for name, along in self._axes.items():
            for axis, number in along:
                shape = [-1 if each == axis else 1 for each in range(parameters[name].ndim)]
                mask = kept[number].view(shape)
                masks[name] = masks[name] * mask if name in masks else mask
        leaves = {
            name: (own.detach() * masks[name] if name in masks else own.detach()).requires_grad_()
            for name, own in parameters.items()
        }
        state = {**leaves, **sliced.buffers}
        called = bound_to(sliced.model.forward, partial(run_with, sliced.model, sliced.space, state))
        loss, _ = sliced.recipe.training_loss(called, inputs, targets)
        gradients = torch.autograd.grad(loss / count, list(leaves.values()), allow_unused=True)
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            if gradient is None:
                continue
            assert parameter.grad is not None
            if name in masks:
                parameter.grad.addcmul_(gradient, masks[name])
            else:
                parameter.grad.add_(gradient)
        return loss.detach()


class RecordedPaths:
    """Trains a path as `MaskedPaths` does, recorded for batches of one shape; others go to the sliced paths.

    The graph knows only addresses: parameters and their gradients, which must be there, are never replaced.
    Outputs are not handed out. `capture` records work that is done in its argument and returns its replay.
    """

    def __init__(
        self,
        sliced: SlicedPaths,
        inputs: Any,
        targets: Any,
        count: int,
        capture: Callable[[Replay], Replay] | None = None,
    ) -> None:
        self.space = sliced.space
        self._sliced, self._masked, self._count = sliced, MaskedPaths(sliced), count
        self._batch: tuple[Any, Any] = tree_map_only(Tensor, torch.clone, (inputs, targets))
        self._masked.choose(path_of(self.space, self.space.largest()))

        def work() -> None:
            self._loss = self._masked(self._batch[0], self._batch[1], count)

        self._work = work  # kept, as everything is that the graph has the address of
        self._replay = (capture or captured)(work)

    def __call__(
        self, path: Path, inputs: Any, targets: Any, count: int = 1, teacher: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """As `SlicedPaths` does, but for the outputs."""
        batch = (inputs, targets)
        if teacher is not None or count != self._count or _shapes(batch) != _shapes(self._batch):
            return self._sliced(path, inputs, targets, count, teacher)
        self._masked.choose(path)
        for static, new in zip(tree_leaves(self._batch), tree_leaves(batch), strict=True):
            static.copy_(new)
        self._replay()
        return self._loss.clone(), None


def captured(work: Replay) -> Replay:
    """Record work on the GPU as a CUDA graph; what it makes lies at the same addresses in every replay."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # libraries choose and allocate at their first calls, which no graph may hold
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    replay: Replay = graph.replay
    return replay


def fastest_paths(
    sliced: SlicedPaths,
    inputs: Any,
    targets: Any,
    count: int,
    capture: Callable[[Replay], Replay] | None = None,
) -> Paths:
    """Recorded paths, where they give the gradients that sliced ones give, sooner; the sliced ones elsewhere.

    Both are tried on this batch, each path one of `count`: wide, middling and narrow ones. Parameters and
    buffers stay as they are. Says what it chose and why.
    """
    space = sliced.space
    tried = [
        path_of(space, widths, side)
        for widths in (space.largest(), space.uniform(0.5), space.smallest())
        for side in space.rule.sides
    ]
    parameters = sliced.parameters.values()
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    before = {name: buffer.clone() for name, buffer in sliced.buffers.items()}
    batch = (inputs, targets, count)
    try:
        reason = _unfit(sliced, inputs, targets)
        if reason is None:
            recorded = RecordedPaths(sliced, *batch, capture)
            difference = max(_difference(recorded, sliced, path, *batch) for path in tried)
            limit = TOLERANCE_AMP if sliced.recipe.amp else TOLERANCE
            own, others = (_seconds(paths, tried, *batch) for paths in (recorded, sliced))
            if not difference <= limit:
                reason = f"gradients of recorded paths differ by {difference:.0%}"
            elif own >= others:
                reason = f"recorded, a path takes {own * 1e3:.1f} ms for {others * 1e3:.1f}"
    except RuntimeError as cause:
        reason = f"recording failed: {one_line(cause)}"
    finally:
        for name, buffer in sliced.buffers.items():
            buffer.copy_(before[name])
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad.zero_()
    if reason is not None:
        say(f"training on slices, not by a recorded CUDA graph: {reason}")
        return sliced
    say(f"training by a recorded CUDA graph: a path takes {own * 1e3:.1f} ms for {others * 1e3:.1f}")
    return recorded


def _unfit(sliced: SlicedPaths, inputs: Any, targets: Any) -> str | None:
    """Why paths cannot be masked or recorded, where that is known beforehand."""
    mixed = [group.name for group in sliced.space.groups if group.mixed]
    if mixed:
        return f"a layer normalises across the channels of {mixed[0]}"
    if sliced.recipe.task.loss is not None or sliced.recipe.task.train_step is not None:
        return "the loss is your own"
    if not all(isinstance(leaf, Tensor) for leaf in tree_leaves((inputs, targets))):
        return "batches hold more than tensors"
    return None


def _difference(
    recorded: Paths, sliced: SlicedPaths, path: Path, inputs: Any, targets: Any, count: int
) -> float:
    """How far the two gradients of a path are apart, as a part of the sliced one's norm."""
    found = []
    for paths in (sliced, recorded):
        for parameter in sliced.parameters.values():
            assert parameter.grad is not None
            parameter.grad.zero_()
        paths(path, inputs, targets, count)
        found.append(torch.cat([p.grad.flatten() for p in sliced.parameters.values() if p.grad is not None]))
    norm = float(found[0].norm())
    return float((found[1] - found[0]).norm()) / norm if norm else math.inf


def _seconds(paths: Paths, tried: Sequence[Path], inputs: Any, targets: Any, count: int) -> float:
    """Mean seconds of the paths, the fastest of a few times each."""
    total = 0.0
    for path in tried:
        times = []
        for _ in range(TIMED):
            start = time.perf_counter()
            loss, _ = paths(path, inputs, targets, count)
            float(loss)  # waits for the GPU
            times.append(time.perf_counter() - start)
        total += min(times)
    return total / len(tried)


def _shapes(tree: Any) -> list[Any]:
    """The structure of a batch, as far as a recording depends on it."""
    return [(leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in tree_leaves(tree)]
