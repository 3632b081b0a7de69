"""Whether a group's channels are alike: any of them can be dropped, and their order does not matter.

In: a network as it ran (`chains.py`) and its space. Out: the groups for which that does not hold, and where.
A path and its cut share their arithmetic, so comparing the two proves nothing. Instead the network is
compared with itself with its channels in another order, and a narrow path with the whole network in which
all other channels are zero. Random tensors are used for that: fresh weights may be zero, and hide what a
layer does.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from bcnet.seeds import seeded
from bcnet.supernet.chains import Seen
from bcnet.supernet.drawn import Operator, Watcher, doubled, drawn_state, of_unit_size, varied
from bcnet.supernet.importance import reordered
from bcnet.supernet.paths import State, forward_path, path_of, path_state, ranges, run_with, tensors_of
from bcnet.supernet.space import Widths, WidthSpace
from bcnet.supernet.trace import running_modules

NEAR = 2e-5  # in float32, relative to an output's largest value: above rounding errors
EXACT = 1e-7  # in float64, used where the difference in float32 is larger than NEAR
COARSE = 1e-2  # in float32, where a network does not run in float64


@dataclass(frozen=True)
class Unlike:
    """The findings by group number: groups that have to stay, and why; other groups that are marked.

    Narrow paths of `mixed` groups differ from the whole network with masked channels: it computes with the
    number of channels.
    """

    frozen: dict[int, str]
    mixed: frozenset[int]


def unlike(seen: Seen, space: WidthSpace) -> Unlike:
    """The groups of the space whose channels are not alike.

    Networks whose outputs vary in shape, are random or not finite cannot be compared: nothing is reported.
    """
    comparable = not (seen.trace.dynamic or seen.random) and space.groups
    trial = _Trial.of(seen, space.without_extra()) if comparable else None
    if trial is None:
        return Unlike({}, frozenset())
    frozen: dict[int, str] = {}
    unordered = [i for i, group in enumerate(space.groups) if not group.ordered]
    for group in _at_fault(trial.keeps_under_order, unordered):
        frozen[group] = trial.why_ordered(group)
    left = [i for i in unordered if not space.groups[i].mixed and i not in frozen]
    mixed: set[int] = set()
    for group in _at_fault(trial.keeps_under_mask, left):
        reason = trial.other_way([group])
        if reason is None:
            mixed.add(group)
        else:
            frozen[group] = reason
    # Where a layer works across channels, masks prove nothing, but the operators that run do.
    across = [i for i, group in enumerate(space.groups) if group.mixed and i not in frozen]
    for group in _at_fault(lambda groups: trial.other_way(groups) is None, across):
        frozen[group] = trial.other_way([group]) or ""
    return Unlike(frozen, frozenset(mixed))


def _at_fault(holds: Callable[[Sequence[int]], bool], groups: Sequence[int]) -> set[int]:
    """The groups for which it does not hold: one test of all, and of halves only where that fails."""
    if not groups or holds(groups):
        return set()
    if len(groups) == 1:
        return set(groups)
    half = len(groups) // 2
    return _at_fault(holds, groups[:half]) | _at_fault(holds, groups[half:])


@dataclass(frozen=True)
class _Trial:
    """A network with random tensors, and the outputs that it gives with them."""

    seen: Seen
    space: WidthSpace
    state: State
    inputs: Any
    output: Any
    sizes: list[Tensor]  # of its layers' outputs, see `of_unit_size`
    orders: tuple[Tensor, ...]

    @classmethod
    def of(cls, seen: Seen, space: WidthSpace) -> "_Trial | None":
        """Random tensors and inputs, or the network's own where the outputs are not finite with those."""
        tensors = drawn_state(seen.probe), tensors_of(seen.probe)
        for state, inputs in product(tensors, (tree_map(varied, seen.inputs), seen.inputs)):
            try:
                with torch.no_grad(), seeded(0), of_unit_size(seen.probe) as sizes:
                    output = run_with(seen.probe, space, state, inputs)
            except Exception:  # the user's own forward may reject the random inputs
                continue
            if all(bool(leaf.isfinite().all()) for leaf in tree_leaves(output)):
                break
        else:
            return None
        generator = torch.Generator().manual_seed(1)
        orders = []
        for group in space.groups:
            units = group.channels // group.unit
            cycle = torch.randperm(units, generator=generator)
            order = torch.empty_like(cycle)
            order[cycle] = cycle.roll(1)  # every unit moves
            orders.append((order[:, None] * group.unit + torch.arange(group.unit)).flatten())
        return cls(seen, space, state, inputs, output, sizes, tuple(orders))

    def keeps_under_order(self, groups: Sequence[int]) -> bool:
        """Whether the network's outputs stay the same when the channels of these groups are permuted."""

        def other(state: State, inputs: Any) -> Any:
            return self._run(self._in_order(state, groups), inputs)

        return self._equal(self._run, other, (self.output, self.sizes))

    def keeps_under_mask(self, groups: Sequence[int]) -> bool:
        """Whether the network narrowed in these groups equals the whole one with other channels at zero."""
        widths = self._narrow(groups)
        path = path_of(self.space, widths, "right")

        def narrow(state: State, inputs: Any) -> Any:
            return forward_path(self.seen.probe, self.space, widths, inputs, "right", state)

        def wide(produced: bool) -> Callable[[State, Any], Any]:
            return lambda state, inputs: self._run(self._masked(state, path, groups, produced), inputs)

        # Channels that no weight reads, such as queries, are set to zero themselves; so are others where not
        # only weights read them. Where a layer cannot compute with zeros, only the weights are.
        return self._equal(narrow, wide(False)) or self._equal(narrow, wide(True))

    def why_ordered(self, group: int) -> str:
        """Name the first operator whose values change when the group's channels are permuted."""
        first = self._watched(self.state, values=True)
        second = self._watched(self._in_order(self.state, [group]), values=True)
        place = next(
            (
                f"'{one.name}' in {one.where}"
                for one, other in zip(first, second, strict=False)
                if one.name != other.name or not one.near(other)
            ),
            "its network",
        )
        return (
            f"its channels are not alike: {place} depends on the positions of some of them, so that a narrow "
            "network would be another function of the same weights"
        )

    def other_way(self, groups: Sequence[int]) -> str | None:
        """Which other operators the network runs when these groups are narrow; None where there are none."""
        first = self._watched(self.state)
        widths = self._narrow(groups)
        second = self._watched(path_state(self.state, self.space, path_of(self.space, widths, "right")))
        for one, other in zip(first, second, strict=False):
            if one.name != other.name:
                return (
                    f"the network behaves differently when it is narrow: {other.where} runs '{other.name}' "
                    f"instead of '{one.name}', depending on the number of channels"
                )
        return None

    def _narrow(self, groups: Sequence[int]) -> Widths:
        low, high = self.space.smallest(), self.space.largest()
        return Widths(low[i] if i in groups else high[i] for i in range(len(high)))

    def _in_order(self, state: State, groups: Sequence[int]) -> State:
        orders = [order if i in groups else torch.arange(len(order)) for i, order in enumerate(self.orders)]
        return reordered(state, self.space, orders)

    def _masked(
        self, state: State, path: tuple[tuple[int, int], ...], groups: Sequence[int], produced: bool
    ) -> State:
        """The whole network's tensors; weights that read channels outside the path are zero.

        With `produced`, so are those that make these channels; else only for groups that no weight reads.
        """
        out_axes: dict[str, int] = {use.weight: use.out_axis for use in self.seen.trace.layers}
        reads = {
            (name, axis)
            for name, axes in self.space.dimensions.items()
            for axis in axes
            if name in out_axes and axis in (0, 1) and axis != out_axes[name]
        }
        read = {s.group for name, axis in reads for s in self.space.dimensions[name][axis]}
        masked = dict(state)
        for name, axes in self.space.dimensions.items():
            if not state[name].is_floating_point() or name.endswith("running_var"):
                continue
            for axis, dimension in axes.items():
                own = {s.group for s in dimension} & set(groups)
                if not own or not ((name, axis) in reads or produced or own - read):
                    continue
                keep = torch.zeros(state[name].shape[axis], dtype=torch.bool)
                for low, high in ranges(self.space, dimension, path):
                    keep[low:high] = True
                if masked[name] is state[name]:
                    masked[name] = state[name].clone()
                masked[name].transpose(0, axis)[~keep] = 0
        return masked

    def _run(self, state: State, inputs: Any) -> Any:
        return run_with(self.seen.probe, self.space, state, inputs)

    def _equal(
        self,
        one: Callable[[State, Any], Any],
        other: Callable[[State, Any], Any],
        known: tuple[Any, list[Tensor]] | None = None,
    ) -> bool:
        """Whether two ways to run the network agree; `known` is the result of one of them, and its sizes.

        Where they do not agree in float32, both run in float64.
        """

        def apart(state: State, inputs: Any, known: tuple[Any, list[Tensor]] | None) -> float:
            if known is None:
                with seeded(0), of_unit_size(self.seen.probe) as sizes:
                    known = one(state, inputs), sizes
            try:
                with seeded(0), of_unit_size(self.seen.probe, known[1]):
                    return _apart(known[0], other(state, inputs))
            except Exception:  # a forward that checks its values
                return math.inf

        with torch.no_grad():
            rounded = apart(self.state, self.inputs, known)
            if rounded <= NEAR:
                return True
            state = {name: doubled(tensor) for name, tensor in self.state.items()}
            try:
                return apart(state, tree_map(doubled, self.inputs), None) <= EXACT
            except Exception:  # the forward makes float32 tensors of its own
                return rounded <= COARSE

    def _watched(self, state: State, *, values: bool = False) -> "list[Operator]":
        """Every operator of a run, with a summary of the values that it gave if they are asked for.

        Of a run that fails, those until then.
        """
        watcher = Watcher(values)
        with (
            suppress(Exception),
            torch.no_grad(),
            seeded(0),
            running_modules(self.seen.probe) as watcher.inside,
            of_unit_size(self.seen.probe, self.sizes),
            watcher,
        ):
            self._run(state, self.inputs)
        return watcher.found


def _apart(one: Any, other: Any) -> float:
    """The largest difference of corresponding floating outputs, relative to the largest value."""
    worst = 0.0
    for a, b in zip(tree_leaves(one), tree_leaves(other), strict=True):
        if not (isinstance(a, Tensor) and a.is_floating_point() and a.numel()):
            continue
        a, b = a.nan_to_num(), b.nan_to_num()
        worst = max(
            worst, float((a - b).abs().max() / torch.maximum(a.abs().max(), b.abs().max()).clamp_min(1e-12))
        )
    return worst
