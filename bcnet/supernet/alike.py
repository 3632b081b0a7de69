"""Whether a group's channels are alike: any of them can be dropped, and their order does not matter.

In: a network as it ran (`chains.py`) and its space. Out: the groups for which that does not hold, and where.
A path and its cut share their arithmetic, so comparing the two proves nothing. Instead the network is
compared with itself with its channels in another order, and a narrow path with the whole network in which
all other channels are zero. Random tensors are used for that: fresh weights may be zero, and hide what a
layer does.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from bcnet.supernet.chains import Seen
from bcnet.supernet.drawn import Run, Watcher, doubled, drawn_state, varied, watched
from bcnet.supernet.importance import reordered
from bcnet.supernet.paths import State, path_of, path_state, ranges, tensors_of
from bcnet.supernet.space import Widths, WidthSpace

NEAR = 2e-5  # in float32, relative to an output's largest value: above rounding errors
EXACT = 1e-7  # in float64, used where the difference in float32 is larger than NEAR
COARSE = 1e-2  # in float32, where a network does not run in float64
CROSSED = 2  # random widths that are tried
MASKED = 4  # of the widths that are tried, every fourth is compared with the whole network's masks


@dataclass(frozen=True)
class Unlike:
    """The findings by group number: groups that have to stay, and why; other groups that are marked.

    Narrow paths of `mixed` groups differ from the whole network with masked channels: it computes with the
    number of channels.
    """

    frozen: dict[int, str]
    mixed: frozenset[int]


def unlike(seen: Seen, space: WidthSpace) -> Unlike:
    """The groups of the space whose channels are not alike."""
    trial = _Trial.of(seen, space.without_extra()) if space.groups else None
    if trial is None:
        return Unlike({}, frozenset())
    frozen: dict[int, str] = {}
    unordered = [i for i, group in enumerate(space.groups) if not group.ordered]
    for group in _at_fault(trial.keeps_under_order, unordered):
        frozen[group] = trial.why_ordered(group)
    mixed: set[int] = set()
    for number, widths in enumerate(_tried(space)):
        left = [i for i in range(len(space.groups)) if i not in frozen]
        found = _at_fault(partial(trial.runs_the_same, widths), left)
        for group in found:
            others = [i for i in left if i not in found]
            reasons = (trial.other_way(widths, [group, *more]) for more in ([], others, left))
            frozen[group] = next(reason for reason in reasons if reason is not None)
        # Where a layer works across channels, masks prove nothing.
        left = [i for i in unordered if not space.groups[i].mixed and i not in frozen and i not in mixed]
        if number % MASKED == 0 or not trial.has_the_same_numbers(widths, left):
            mixed |= _at_fault(partial(trial.keeps_under_mask, widths), left)
    return Unlike(frozen, frozenset(mixed))


def _tried(space: WidthSpace) -> list[Widths]:
    """Widths to try: all groups at their first choice, two crossed ones, all at their second and so on."""
    low, high = space.smallest(), space.largest()
    most = max(len(group.choices) for group in space.groups)
    found = [
        low,
        *(Widths((low, high)[(i + odd) % 2][i] for i in range(len(low))) for odd in (0, 1)),
        *(space.random(seed) for seed in range(CROSSED)),
    ]
    for number in range(1, most - 1):
        found.append(Widths(group.choices[min(number, len(group.choices) - 1)] for group in space.groups))
    return [widths for widths in dict.fromkeys(found) if widths != high]


def _at_fault(
    holds: Callable[[Sequence[int]], bool], groups: Sequence[int], fine: Sequence[int] = ()
) -> set[int]:
    """The groups for which it does not hold, together with the `fine` ones: it holds for all others together.

    One test of all, and of halves only where that fails.
    """
    if not groups or holds([*fine, *groups]):
        return set()
    if len(groups) == 1:
        return set(groups)
    half = len(groups) // 2
    found = _at_fault(holds, groups[:half], fine)
    fine = [*fine, *(group for group in groups[:half] if group not in found)]
    return found | _at_fault(holds, groups[half:], fine)


@dataclass(frozen=True)
class _Trial:
    """A network with random tensors, and how it runs with them."""

    seen: Seen
    space: WidthSpace
    state: State
    inputs: Any
    whole: Run
    orders: tuple[Tensor, ...]
    narrow: dict[Widths, Run] = field(default_factory=dict)  # the last one

    @classmethod
    def of(cls, seen: Seen, space: WidthSpace) -> "_Trial | None":
        """Random tensors and inputs, or the network's own where the outputs are not finite with those."""
        best: tuple[State, Any, Run] | None = None
        tensors = drawn_state(seen.probe), tensors_of(seen.probe)
        for state, inputs in product(tensors, (tree_map(varied, seen.inputs), seen.inputs)):
            run = watched(seen.probe, space, state, inputs, Watcher(dynamic=seen.trace.dynamic))
            if run.failure is not None:  # the user's own forward may reject the random inputs
                continue
            best = best or (state, inputs, run)
            if all(bool(leaf.isfinite().all()) for leaf in run.outputs):
                best = state, inputs, run
                break
        if best is None:
            return None
        generator = torch.Generator().manual_seed(1)
        orders = []
        for group in space.groups:
            units = group.channels // group.unit
            cycle = torch.randperm(units, generator=generator)
            order = torch.empty_like(cycle)
            order[cycle] = cycle.roll(1)  # every unit moves
            orders.append((order[:, None] * group.unit + torch.arange(group.unit)).flatten())
        return cls(seen, space, *best, tuple(orders))

    def keeps_under_order(self, groups: Sequence[int]) -> bool:
        """Whether the network gives the same when the channels of these groups are permuted."""

        return self._equal(lambda state: state, lambda state: self._in_order(state, groups), self.whole)

    def runs_the_same(self, widths: Widths, groups: Sequence[int]) -> bool:
        """Whether the network runs the same operators when these groups have these widths."""
        return self.other_way(widths, groups) is None

    def has_the_same_numbers(self, widths: Widths, groups: Sequence[int]) -> bool:
        """Whether operators of it get the same numbers then, as factors."""
        return self._narrow_run(self._narrowed(widths, groups)).numbers == self.whole.numbers

    def keeps_under_mask(self, widths: Widths, groups: Sequence[int]) -> bool:
        """Whether the network in which these groups have these widths equals the whole one with zeros."""
        widths = self._narrowed(widths, groups)
        path = path_of(self.space, widths, "right")

        def narrow(state: State) -> State:
            return self._path(widths, state)

        def wide(produced: bool) -> Callable[[State], State]:
            return lambda state: self._masked(state, path, groups, produced)

        # Channels that no weight reads, such as queries, are set to zero themselves; so are others where not
        # only weights read them. Where a layer cannot compute with zeros, only the weights are.
        known = self._narrow_run(widths)
        return self._equal(narrow, wide(False), known) or self._equal(narrow, wide(True), known)

    def why_ordered(self, group: int) -> str:
        """Name the first operator whose values change when the group's channels are permuted."""
        first = self._watched(self.state, self.inputs, values=True)
        second = self._watched(self._in_order(self.state, [group]), self.inputs, values=True)
        place = next(
            (
                f"'{one.name}' in {one.where}"
                for one, other in zip(first.operators, second.operators, strict=False)
                if one.name != other.name or one.apart(other) > 1e-3
            ),
            "its network",
        )
        return (
            f"its channels are not alike: {place} depends on the positions of some of them, so that a narrow "
            "network would be another function of the same weights"
        )

    def other_way(self, widths: Widths, groups: Sequence[int]) -> str | None:
        """Which other operators the network runs when these groups have these widths; None: the same."""
        widths = self._narrowed(widths, groups)
        run = self._narrow_run(widths)
        for (one, _), (other, where) in zip(self.whole.names, run.names, strict=False):
            if one != other:
                return (
                    f"the network behaves differently when it is narrow: {where} runs '{other}' "
                    f"instead of '{one}', depending on the number of channels"
                )
        if run.failure is not None:
            own = self._path(widths, tensors_of(self.seen.probe))  # it may reject random tensors
            again = self._watched(own, self.seen.inputs)
            return None if again.failure is None else self._breaks(widths, again.failure)
        more, less = self.whole.names, run.names
        if len(more) != len(less):
            name, where = (more if len(more) > len(less) else less)[min(len(more), len(less))]
            return (
                f"the network behaves differently when it is narrow: {where} runs '{name}' or not, "
                "depending on the number of channels"
            )
        return None

    def _breaks(self, widths: Widths, failure: str) -> str:
        narrow = [
            f"{width} of {group.channels} channels"
            for width, group in zip(widths, self.space.groups, strict=True)
            if width < group.channels
        ]
        at = f" to {narrow[0]}" if len(narrow) == 1 else ""
        return f"narrowing it{at} breaks the network{failure}"

    def _narrow_run(self, widths: Widths) -> Run:
        if widths not in self.narrow:
            self.narrow.clear()
            self.narrow[widths] = self._watched(self._path(widths, self.state), self.inputs)
        return self.narrow[widths]

    def _narrowed(self, widths: Widths, groups: Sequence[int]) -> Widths:
        """These widths in the groups, and the whole ones in all others."""
        high = self.space.largest()
        return Widths(widths[i] if i in groups else high[i] for i in range(len(high)))

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

    def _path(self, widths: Widths, state: State) -> State:
        taken = path_state(state, self.space, path_of(self.space, widths, "right"))
        return {name: tensor.contiguous() for name, tensor in taken.items()}

    def _equal(self, one: Callable[[State], State], other: Callable[[State], State], known: Run) -> bool:
        """Whether the network runs alike with two changes of its tensors; `known` is the run with the first.

        Where they do not agree in float32, both run in float64.
        """
        if known.failure is not None:
            return False

        def apart(state: State, inputs: Any, known: Run) -> float:
            return _apart(known, self._watched(other(state), inputs, known.sizes))

        rounded = apart(self.state, self.inputs, known)
        if rounded <= NEAR:
            return True
        state = {name: doubled(tensor) for name, tensor in self.state.items()}
        inputs = tree_map(doubled, self.inputs)
        exact = self._watched(one(state), inputs)
        if exact.failure is not None:  # the forward makes float32 tensors of its own
            return rounded <= COARSE
        return apart(state, inputs, exact) <= EXACT

    def _watched(
        self, state: State, inputs: Any, sizes: list[Tensor] | None = None, *, values: bool = False
    ) -> Run:
        watcher = Watcher(values=values, dynamic=self.seen.trace.dynamic)
        return watched(self.seen.probe, self.space, state, inputs, watcher, sizes)


def _apart(one: Run, other: Run) -> float:
    """The largest relative difference of what two runs give: of their outputs, and of their layers.

    Layers reveal what outputs hide: those of a dynamic shape, integers, rounded or saturated values.
    """
    if other.failure is not None:  # a forward that checks its values
        return math.inf
    worst = max((a.apart(b) for a, b in zip(one.layers, other.layers, strict=False)), default=0.0)
    for a, b in zip(one.outputs, other.outputs, strict=True):
        a, b = (torch.view_as_real(leaf) if leaf.is_complex() else leaf for leaf in (a, b))
        if not a.is_floating_point() and not torch.equal(a, b):
            return math.inf
        finite = a.isfinite() & b.isfinite()
        if not a.is_floating_point() or not bool(finite.any()):
            continue
        a, b = a[finite], b[finite]
        largest = torch.maximum(a.abs().max(), b.abs().max()).clamp_min(1e-12)
        worst = max(worst, float((a - b).abs().max() / largest))
    return worst
