"""Choose each group's widths at equal steps of a cost, so that a step costs about the same in all groups.

In: a space with all widths that its rule allows, and the cost of each. Out: the space with fewer choices,
most of them in the groups on which the cost depends most, after the bins of CafeNet (arXiv 2102.05258); the
formula is our own.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bcnet.space.channel_rules import ChannelRule
from bcnet.space.width_space import WidthGroup, Widths, WidthSpace

FINEST = 4096  # number of bins that amounts to every width

Costs = Sequence[
    NDArray[np.float64]
]  # for each group (choices,): costs of the network with only this group narrowed


def binned(space: WidthSpace, costs: Costs, bins: int) -> WidthSpace:
    """The space with about `bins` choices per group on average, at equal steps of the costs.

    Among widths of equal cost, the widest is chosen: where the cost is a staircase, the end of a stair. Every
    group keeps its full width and at least one narrower. If the rule pairs widths with their complements,
    about half of the choices are at equal steps, and the others are their complements.
    """
    rising = [np.maximum.accumulate(own) for own in costs]
    spans = [float(own[-1] - own[0]) for own in rising]
    step = sum(spans) / max(1, (bins - 1) * len(spans))
    counts = [max(1, round(span / step)) if step else 1 for span in spans]
    of_each = zip(space.groups, rising, counts, strict=True)
    return space.with_choices([_at_equal_steps(space.rule, *own) for own in of_each])


def _at_equal_steps(
    rule: ChannelRule, group: WidthGroup, rising: NDArray[np.float64], count: int
) -> tuple[int, ...]:
    """The choices at `count` equal steps of a cost that never falls."""
    paired = any(rule.complement(group.choices, own) is not None for own in group.choices)
    levels = np.linspace(rising[0], rising[-1], (count + 1) // 2 + 1 if paired else count + 1)
    slack = 1e-9 * abs(rising[-1])
    places = np.searchsorted(rising, levels + slack, side="right") - 1
    found = {group.choices[place] for place in places} | {group.channels}
    if len(found) == 1:
        found.add(group.choices[0])
    chosen = tuple(sorted(found))
    complements = (rule.complement(chosen, own) for own in chosen)
    return tuple(sorted({*chosen, *(own for own in complements if own is not None)}))


def macs_costs(space: WidthSpace) -> Costs:
    """Multiply-accumulates with only one group narrowed."""
    return [
        np.array([float(space.macs(widths)) for widths in alone(space, number)])
        for number in range(len(space.groups))
    ]


def alone(space: WidthSpace, number: int) -> list[Widths]:
    """The networks with only this group narrowed, one for each of its choices."""
    whole = space.largest()
    return [Widths((*whole[:number], width, *whole[number + 1 :])) for width in space.groups[number].choices]
