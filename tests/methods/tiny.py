"""Spaces and latency tables of a few groups, with latencies given by any function of their channels."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from bcnet.latency_tables.model import LatencyModel, LayerSlot, Terms
from bcnet.latency_tables.rows import Calibration
from bcnet.space.width_space import Segment, WidthGroup, WidthSpace
from bcnet.width_search.constraints import Bound, Cost
from tests.latency_tables.test_table import CONV, SETTING, table_of

Layer = tuple[tuple[int, ...], tuple[int, ...], Callable[[int, int], float]]  # groups in, out; ms of channels
ONES = (1, 2, 3, 4)


def space_of(choices: Sequence[tuple[int, ...]], unit: int = 1, ordered: bool = False) -> WidthSpace:
    """Groups without a network."""
    groups = tuple(
        WidthGroup(f"g{number}", own[-1], own, (f"layer{number}",), unit=unit, ordered=ordered)
        for number, own in enumerate(choices)
    )
    return WidthSpace("unilateral", groups, {}, {}, (), (), (), ())


def model_of(
    choices: Sequence[tuple[int, ...]], layers: Sequence[Layer], offset: float = 0.0
) -> LatencyModel:
    """A calibrated table of these layers; a side of no groups has one channel, of several their sum."""
    rows, slots = {}, []
    for number, (into, out, ms) in enumerate(layers):
        template = replace(CONV, in_height=number + 1)
        for a in _sums(choices, into):
            for b in _sums(choices, out):
                rows[replace(template, in_channels=a, out_channels=b)] = ms(a, b)
        slots.append(LayerSlot(f"l{number}", template, _terms(into), _terms(out), None, (f"l{number}",)))
    calibration = Calibration("m", SETTING, "r", offset, 1.0, 12, 12, 0.0, 1.0, 1.0, 1.0, 0.0)
    return LatencyModel(table_of(rows), SETTING, slots, list(choices), calibration)


def _terms(groups: tuple[int, ...]) -> Terms:
    return tuple((group, 1) for group in groups) or ((None, 1),)


def _sums(choices: Sequence[tuple[int, ...]], groups: tuple[int, ...]) -> list[int]:
    found = {0} if groups else {1}
    for group in groups:
        found = {a + b for a in found for b in choices[group]}
    return sorted(found)


def product_bound(groups: int, pairs: Sequence[tuple[int, int]], limit: float) -> Bound:
    """At most `limit` parameters, which are products of two groups' channels."""
    tensors = [(1, ((Segment(a, 1),), (Segment(b, 1),))) for a, b in pairs]
    return Bound("max_params", "parameters", Cost(groups, tensors), limit)


def falling(rng: np.random.Generator, choices: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Random tables of losses that fall to 0 at the widest choice."""
    return [np.concatenate((rng.random(len(own) - 1).cumsum()[::-1], [0.0])) for own in choices]
