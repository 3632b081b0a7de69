"""Check that the channels of a group are interchangeable: any can be removed, and their order is irrelevant.

In: a traced network (`channel_groups.py`) and its space. Out: groups for which this does not hold, and where.
A path and the network that is cut from it share their arithmetic, so comparing them proves nothing. Instead
the network is compared with itself after permuting its channels, and a narrow path with the whole network
with all other channels masked by zeros. Random tensors are used, because freshly initialised weights may be
zero, which hides the effect of a layer.
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

from bcnet.space.channel_groups import Seen
from bcnet.space.extract import tensors_of
from bcnet.space.importance import channels_of, reordered
from bcnet.space.random_runs import Run, Watcher, doubled, drawn_state, varied, watched
from bcnet.space.subnet import State, Subnet, ranges, subnet_state
from bcnet.space.supernet import NarrowNetwork
from bcnet.space.width_space import Widths, WidthSpace

# Tolerances relative to an output's largest value.
NEAR = 2e-5  # in float32: above rounding errors
EXACT = 1e-7  # in float64, used if the difference in float32 exceeds NEAR
COARSE = 1e-2  # in float32, if the network does not run in float64
CROSSED = 2  # number of random widths that are tried
MASKED = 4  # every fourth of the tried widths is compared with the masked whole network


@dataclass(frozen=True)
class Unlike:
    """The findings by group number: groups that must keep their width, with the reason, and `mixed` groups.

    For `mixed` groups, narrow paths differ from the whole network with masked channels, because it computes
    with the number of channels.
    """

    frozen: dict[int, str]
    mixed: frozenset[int]


def unlike(seen: Seen, space: WidthSpace) -> Unlike:
    """The groups of the space whose channels are not interchangeable."""
    trial = _Trial.of(seen, space.without_extra()) if space.groups else None
    if trial is None:
        return Unlike({}, frozenset())
    frozen: dict[int, str] = {}
    unordered = [i for i, group in enumerate(space.groups) if not group.ordered]
    for group in _failing(trial.keeps_under_order, unordered):
        frozen[group] = trial.why_ordered(group)
    mixed: set[int] = set()
    for number, widths in enumerate(_tried(space)):
        left = [i for i in range(len(space.groups)) if i not in frozen]
        found = _failing(partial(trial.runs_the_same, widths), left)
        for group in found:
            others = [i for i in left if i not in found]
            reasons = (trial.other_way(widths, [group, *more]) for more in ([], others, left))
            frozen[group] = next(reason for reason in reasons if reason is not None)
        # If a layer mixes channels, a comparison with masks proves nothing.
        left = [i for i in unordered if not space.groups[i].mixed and i not in frozen and i not in mixed]
        if number % MASKED == 0 or not trial.has_the_same_numbers(widths, left):
            mixed |= _failing(partial(trial.keeps_under_mask, widths), left)
    return Unlike(frozen, frozenset(mixed))


def _tried(space: WidthSpace) -> list[Widths]:
    """Widths to try: the narrowest, alternating and random ones, then all at their second choice, etc."""
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


def _failing(
    holds: Callable[[Sequence[int]], bool], groups: Sequence[int], passing: Sequence[int] = ()
) -> set[int]:
    """The groups without which `holds` is true for all others together, including the `passing` ones.

    By bisection: all groups are tested at once, and halves only if that fails.
    """
    if not groups or holds([*passing, *groups]):
        return set()
    if len(groups) == 1:
        return set(groups)
    half = len(groups) // 2
    found = _failing(holds, groups[:half], passing)
    passing = [*passing, *(group for group in groups[:half] if group not in found)]
    return found | _failing(holds, groups[half:], passing)


@dataclass(frozen=True)
class _Trial:
    """A network with random tensors, and its run with them."""

    seen: Seen
    space: WidthSpace
    state: State
    inputs: Any
    whole: Run
    orders: tuple[Tensor, ...]
    narrow: dict[Widths, Run] = field(default_factory=dict)  # cache of the last one

    @classmethod
    def of(cls, seen: Seen, space: WidthSpace) -> "_Trial | None":
        """With random tensors and inputs, or the network's own if the outputs are not finite otherwise."""
        best: tuple[State, Any, Run] | None = None
        tensors = drawn_state(seen.probe), tensors_of(seen.probe)
        for state, inputs in product(tensors, (tree_map(varied, seen.inputs), seen.inputs)):
            network = NarrowNetwork(seen.probe, space, state)
            run = watched(network, inputs, Watcher(dynamic=seen.trace.dynamic))
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
            orders.append(channels_of(group, order))
        return cls(seen, space, *best, tuple(orders))

    def keeps_under_order(self, groups: Sequence[int]) -> bool:
        """Whether the outputs are unchanged if the channels of these groups are permuted."""

        return self._equal(lambda state: state, lambda state: self._in_order(state, groups), self.whole)

    def runs_the_same(self, widths: Widths, groups: Sequence[int]) -> bool:
        """Whether the network executes the same operators if these groups have these widths."""
        return self.other_way(widths, groups) is None

    def has_the_same_numbers(self, widths: Widths, groups: Sequence[int]) -> bool:
        """Whether its operators then have the same numbers as arguments, e.g. factors."""
        return self._narrow_run(self._narrowed(widths, groups)).numbers == self.whole.numbers

    def keeps_under_mask(self, widths: Widths, groups: Sequence[int]) -> bool:
        """Whether the network with these widths of these groups equals the whole network with masks."""
        widths = self._narrowed(widths, groups)
        subnet = Subnet.at(self.space, widths, "right")

        def narrow(state: State) -> State:
            return self._path(widths, state)

        def wide(produced: bool) -> Callable[[State], State]:
            return lambda state: self._masked(state, subnet, groups, produced)

        # First mask the weights that read the channels (channels that no weight reads, e.g. queries, are
        # masked themselves). If the result differs, mask all channels themselves, too: others than weights
        # may read them.
        known = self._narrow_run(widths)
        return self._equal(narrow, wide(False), known) or self._equal(narrow, wide(True), known)

    def why_ordered(self, group: int) -> str:
        """A message with the first operator whose values change if the group's channels are permuted."""
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
            f"its channels are not interchangeable: {place} depends on the positions of some of them, so a "
            "narrow network would be another function of the same weights"
        )

    def other_way(self, widths: Widths, groups: Sequence[int]) -> str | None:
        """How the operators differ if these groups have these widths, as a message; None if they do not."""
        widths = self._narrowed(widths, groups)
        run = self._narrow_run(widths)
        for (one, _), (other, where) in zip(self.whole.names, run.names, strict=False):
            if one != other:
                return (
                    f"the network behaves differently when it is narrow: {where} runs '{other}' "
                    f"instead of '{one}', depending on the number of channels"
                )
        if run.failure is not None:
            own = self._path(widths, tensors_of(self.seen.probe))  # the network may reject random tensors
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
        """These widths of the given groups, and the full widths of all others."""
        high = self.space.largest()
        return Widths(widths[i] if i in groups else high[i] for i in range(len(high)))

    def _in_order(self, state: State, groups: Sequence[int]) -> State:
        orders = [order if i in groups else torch.arange(len(order)) for i, order in enumerate(self.orders)]
        return reordered(state, self.space, orders)

    def _masked(self, state: State, subnet: Subnet, groups: Sequence[int], produced: bool) -> State:
        """The whole network's tensors, with zeros in weights that read channels outside the subnet.

        With `produced`, weights that produce these channels are zero, too; else only those of groups that no
        weight reads.
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
                for low, high in ranges(self.space, dimension, subnet):
                    keep[low:high] = True
                if masked[name] is state[name]:
                    masked[name] = state[name].clone()
                masked[name].transpose(0, axis)[~keep] = 0
        return masked

    def _path(self, widths: Widths, state: State) -> State:
        taken = subnet_state(state, self.space, Subnet.at(self.space, widths, "right"))
        return {name: tensor.contiguous() for name, tensor in taken.items()}

    def _equal(self, one: Callable[[State], State], other: Callable[[State], State], known: Run) -> bool:
        """Whether two changes of the tensors give the same results; `known` is the run with the first one.

        If they differ in float32, both are compared in float64.
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
        if exact.failure is not None:  # e.g. the forward creates float32 tensors
            return rounded <= COARSE
        return apart(state, inputs, exact) <= EXACT

    def _watched(
        self, state: State, inputs: Any, sizes: list[Tensor] | None = None, *, values: bool = False
    ) -> Run:
        watcher = Watcher(values=values, dynamic=self.seen.trace.dynamic)
        return watched(NarrowNetwork(self.seen.probe, self.space, state), inputs, watcher, sizes)


def _apart(one: Run, other: Run) -> float:
    """The largest relative difference between two runs, of their outputs and of their layers.

    Layers reveal differences that outputs hide: with dynamic shapes, integers, rounded or saturated values.
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
