"""Greedy allocation: answers by hand, limits that hold, and what cannot be met."""

import time

import numpy as np
import pytest

from bcnet.allocation.limits import Limits
from bcnet.allocation.loss_tables import importance_tables
from bcnet.errors import BudgetError
from bcnet.methods.latency_greedy import allocate_greedily, filled, narrowed_by
from bcnet.space.width_space import Widths
from tests.methods.tiny import ONES, falling, model_of, product_bound, space_of

TWO = space_of([ONES, ONES])


def by_channel(a: int, b: int) -> float:
    return float(b)


def test_what_has_the_least_importance_a_millisecond_goes_first() -> None:
    # A channel of the second group saves four times as much, and is twice as important.
    importance = [np.ones(4), np.full(4, 2.0)]
    found = allocate_greedily(TWO, importance, lambda w: w[0] + 4.0 * w[1], 12)
    assert found == Widths((4, 2))


def test_the_importance_of_the_channels_decides_how_far_a_group_is_narrowed() -> None:
    importance = [np.array([5.0, 0.1, 0.1, 5.0]), np.array([1.0, 1.0, 1.0, 1.0])]
    assert allocate_greedily(TWO, importance, lambda w: float(sum(w)), 5) == Widths((2, 3))


def test_latencies_are_those_at_the_current_widths() -> None:
    # Once the first group has one channel, one of the second saves 1 ms and not 4.
    space = space_of([(1, 4), ONES])
    importance = [np.full(4, 0.1), np.ones(4)]
    assert allocate_greedily(space, importance, lambda w: float(w[0] * w[1]), 3) == Widths((1, 3))


def test_a_stair_is_crossed_in_one_step() -> None:
    # The first group saves nothing until two channels are gone, and then more than the second.
    latency = {1: 1.0, 2: 1.0, 3: 9.0, 4: 9.0}
    found = allocate_greedily(TWO, [np.ones(4), np.ones(4)], lambda w: latency[w[0]] + w[1], 5)
    assert found == Widths((2, 4))


def test_channels_that_cost_nothing_come_back() -> None:
    # The last step down saves more than is needed; what then fits again is the most important.
    latency = {1: 1.0, 2: 4.0, 3: 7.0, 4: 10.0}
    found = allocate_greedily(TWO, [np.full(4, 0.1), np.ones(4)], lambda w: latency[w[0]] + w[1], 8.5)
    assert found == Widths((2, 4))


def test_bounds_hold_too() -> None:
    bound = product_bound(2, [(0, 1)], 8)
    found = allocate_greedily(TWO, [np.ones(4), np.full(4, 2.0)], lambda w: float(sum(w)), 100, [bound])
    assert found == Widths((2, 4))


def test_a_network_inside_the_limits_is_kept_whole() -> None:
    assert allocate_greedily(TWO, [np.ones(4)] * 2, lambda w: float(sum(w)), 8) == Widths((4, 4))


def test_what_no_network_meets_is_refused_with_the_lowest_latency() -> None:
    with pytest.raises(
        BudgetError,
        match=r"meets 1.500 ms: the fastest takes 2.000 ms \(25% of the original network's\); raise",
    ):
        allocate_greedily(TWO, [np.ones(4)] * 2, lambda w: float(sum(w)), 1.5)
    bound = product_bound(2, [(0, 1)], 0.5)
    with pytest.raises(BudgetError, match=r"no network has at most 0.5 parameters: the narrowest has 1"):
        allocate_greedily(TWO, [np.ones(4)] * 2, lambda w: float(sum(w)), 5, [bound])


def test_narrower_and_slower_widths_are_left_for_the_fastest_ones() -> None:
    # Two channels are the fastest: no single step from (4, 1) or (1, 4) saves anything.
    latency = {1: 5.0, 2: 1.0, 3: 6.0, 4: 7.0}
    found = allocate_greedily(TWO, [np.ones(4)] * 2, lambda w: latency[w[0]] * latency[w[1]], 2)
    assert found == Widths((2, 2))


@pytest.mark.parametrize("seed", range(5))
def test_the_limit_holds_and_no_group_could_be_wider(seed: int) -> None:
    rng = np.random.default_rng(seed)
    choices = [tuple(range(8, 72, 8))] * 6
    tables = [rng.random(2) for _ in range(5)]
    model = model_of(
        choices, [((g,), (g + 1,), lambda a, b, t=t: t[0] * a * b + t[1]) for g, t in enumerate(tables)]
    )
    space, losses = space_of(choices), falling(rng, choices)
    limits = Limits(space, model, 0.5 * model(space.largest()))
    found = narrowed_by(space, losses, limits)
    assert model(found) <= limits.limit_ms
    index = limits.index(found)
    assert filled(limits, losses, index).tolist() == index.tolist()


def test_sixty_groups_take_well_below_a_second() -> None:
    rng = np.random.default_rng(0)
    choices = [tuple(range(8, 72, 8))] * 60
    model = model_of(choices, [((g,), (g + 1,), lambda a, b: 1e-4 * a * b) for g in range(59)])
    space = space_of(choices)
    importance = [rng.random(64) for _ in choices]
    start = time.process_time()
    found = allocate_greedily(space, importance, model, 0.5 * model(space.largest()))
    assert time.process_time() - start < 2
    assert 0.48 < model(found) / model(space.largest()) <= 0.5
    dropped = sum(own[w // 8 - 1] for own, w in zip(importance_tables(space, importance), found, strict=True))
    assert dropped < 0.25 * sum(own.sum() for own in importance)
