"""Exchanges of channels at a constant latency: ratios and moves by hand, and where they lead."""

import numpy as np
import pytest
import torch
from torch import nn

from bcnet.allocation.limits import Limits
from bcnet.methods.network_adjustment import (
    Neighbours,
    adjust_widths,
    drop_rates,
    exchanged,
    latency_utilisation,
    shifted,
)
from bcnet.space.discover import discover_space
from bcnet.space.width_space import Widths
from tests.methods.tiny import ONES, product_bound, space_of

SPACE = space_of([ONES, ONES, ONES])
START = Widths((2, 2, 4))


def latency(widths: Widths) -> float:
    """A channel of the second group costs twice as much as one of the first, of the third three times."""
    return widths[0] + 2.0 * widths[1] + 3.0 * widths[2]


def loss(widths: Widths) -> float:
    """A channel of the first group is worth most."""
    return 10 - 4.0 * widths[0] - 2.0 * widths[1] - 1.0 * widths[2]


def test_ratios_are_losses_a_millisecond() -> None:
    limits = Limits(SPACE, latency, 18)
    near = Neighbours.of(limits, START, loss)
    assert (near.lost.tolist(), near.gained.tolist()) == ([4, 2, 1], [4, 2, 0])
    narrower, wider = latency_utilisation(limits, START, near)
    assert narrower.tolist() == pytest.approx([4, 1, 1 / 3])
    assert wider.tolist() == pytest.approx([4, 1, 0])


def test_a_step_that_changes_no_latency_is_free_upwards_and_none_downwards() -> None:
    limits = Limits(SPACE, lambda w: 1.0, 1)
    narrower, wider = latency_utilisation(limits, START, Neighbours.of(limits, START, loss))
    assert narrower.tolist() == [np.inf] * 3
    assert wider.tolist() == [np.inf, np.inf, 0]
    assert exchanged(limits, START, Neighbours.of(limits, START, loss), most=9) == (3, 3, 4)


def test_the_group_of_the_least_ratio_gives_to_that_of_the_largest() -> None:
    limits = Limits(SPACE, latency, latency(START))
    near = Neighbours.of(limits, START, loss)
    assert exchanged(limits, START, near) == (3, 2, 3)
    # The latency that is left over is enough for the second group, too.
    assert exchanged(limits, START, near, most=2) == (3, 3, 3)


def test_several_groups_shrink_for_one_and_only_where_it_is_worth_it() -> None:
    space = space_of([(1, 4), ONES, ONES])
    limits = Limits(space, latency, 8)
    start = Widths((1, 2, 1))

    def by(first: float) -> Widths:
        near = Neighbours(np.array([np.inf, 1.0, np.inf]), np.array([first, 0.0, 0.0]))
        return exchanged(limits, start, near)

    assert by(2.0) == start  # shrinking the second group alone does not suffice
    start = Widths((1, 2, 2))
    limits = Limits(space, latency, 11)
    near = Neighbours(np.array([np.inf, 1.0, 1.0]), np.array([3.0, 0.0, 0.0]))
    assert exchanged(limits, start, near) == (4, 2, 1)
    assert exchanged(limits, start, Neighbours(near.lost, np.array([0.5, 0.0, 0.0]))) == start


def test_bounds_hold_too() -> None:
    bound = product_bound(3, [(0, 1)], 4)
    limits = Limits(SPACE, latency, latency(START), [bound])
    # The third group shrinks first, which the bound makes needless.
    assert exchanged(limits, START, Neighbours.of(limits, START, loss)) == (3, 1, 4)


def test_adjusting_ends_at_the_best_network_of_a_sum_and_asks_for_nothing_twice() -> None:
    asked: list[Widths] = []

    def counted(widths: Widths) -> float:
        asked.append(widths)
        return loss(widths)

    limits = Limits(SPACE, latency, latency(START))
    saved: dict[Widths, float] = {}
    found = adjust_widths(limits, START, counted, on_score=saved.__setitem__)
    assert found == (4, 4, 2)
    assert latency(found) <= limits.limit_ms
    assert len(asked) == len(set(asked)) == len(saved)
    asked.clear()
    assert adjust_widths(limits, START, counted, known=saved) == found
    assert asked == []


def test_where_nothing_is_better_the_widths_stay() -> None:
    limits = Limits(SPACE, latency, latency(START))
    assert adjust_widths(limits, START, lambda w: float(w != START)) == START


def test_channels_dropped_at_these_rates_save_the_same_everywhere() -> None:
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2), nn.ReLU(), nn.Conv2d(12, 6, 1)]
    space = discover_space(nn.Sequential(*layers), torch.zeros(1, 3, 9, 9), bins=4, channel_multiple=1)
    widths = space.largest()
    rates = drop_rates(space, widths, 1e-4)
    slopes = []
    for group, entry in enumerate(space.groups):
        step = entry.unit
        up, down = list(widths), list(widths)
        up[group], down[group] = up[group] + step, down[group] - step
        slopes.append((space.macs(Widths(up)) - space.macs(Widths(down))) / (2 * step))
    saved = rates * np.array(widths) * np.array(slopes)
    assert saved.tolist() == pytest.approx([saved[0]] * len(saved))
    assert drop_rates(space, widths, 1.0).max() == 0.5


def test_the_published_step_scales_back_to_the_limit() -> None:
    space = space_of([tuple(range(1, 21))] * 4)
    limits = Limits(space, lambda w: float(sum(w)), 40)
    found = shifted(limits, Widths((10, 10, 10, 10)), np.array([4.0, 1.0, 3.0, 2.0]), most=1, share=0.2)
    assert found == (14, 6, 10, 10)
