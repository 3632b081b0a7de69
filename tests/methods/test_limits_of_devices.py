"""Methods on several devices: every network that is proposed is within the limits of all of them."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from bcnet.allocation.limits import Limits
from bcnet.allocation.loss_tables import total
from bcnet.errors import BudgetError
from bcnet.latency_tables.model import LatencyModel
from bcnet.methods.adapruner import allocate_by_scales
from bcnet.methods.latency_greedy import narrowed_by
from bcnet.methods.latency_milp import SolverSettings, allocate_exactly
from bcnet.methods.uniform import allocate_uniformly
from bcnet.space.width_space import Widths
from bcnet.width_search.budget import Budget
from bcnet.width_search.device_limit import DeviceLimit
from bcnet.width_search.evolution import fastest
from tests.methods.test_latency_milp import CHOICES, every, random_layers
from tests.methods.tiny import falling, model_of, space_of

SPACE = space_of(CHOICES)
FIRST, SECOND = (model_of(CHOICES, random_layers(seed), offset=3.0) for seed in (0, 7))
EXACT = SolverSettings(gap=0.0)


def on_second(share: float, model: LatencyModel = SECOND) -> DeviceLimit:
    return DeviceLimit.on("second", model, Budget(share * model(SPACE.largest())))


@pytest.mark.parametrize(
    ("first", "second", "limiting"), [(0.5, 0.3, True), (0.3, 0.5, False), (0.4, 0.4, True)]
)
def test_the_exact_optimum_within_both_limits_is_that_of_trying_every_network(
    first: float, second: float, limiting: bool
) -> None:
    losses = falling(np.random.default_rng(1), CHOICES)
    limits = Limits(SPACE, FIRST, first * FIRST(SPACE.largest()), [on_second(second)])
    best = every(limits, losses)
    alone = every(Limits(SPACE, FIRST, limits.limit_ms), losses)
    assert (best[0][1] != alone[0][1]) is limiting  # whether the second device does
    found = allocate_exactly(SPACE, losses, FIRST, limits.limit_ms, limits.bounds, replace(EXACT, pool=4))
    assert [own.loss for own in found] == pytest.approx([loss for loss, _ in best[:4]])
    assert found[0].widths == best[0][1]
    for own in found:
        assert SECOND(own.widths) <= second * SECOND(SPACE.largest())


def test_what_a_further_table_has_beyond_its_arrays_is_corrected_until_it_confirms_the_latency() -> None:
    """Weights that come from memory, on the second device alone."""
    table = model_of(CHOICES, random_layers(7)).table
    table.sessions[0].provenance["cache_mb"] = "0.002"
    table.rows = {key: replace(row, cache_use=0.0) for key, row in table.rows.items()}
    own = model_of(CHOICES, random_layers(7))
    assert own.calibration is not None
    fit = replace(own.calibration, memory_ms_per_mb=1e4, cache_mb=0.002)
    model = LatencyModel(table, own.setting, own.slots, own.choices, fit)
    losses = falling(np.random.default_rng(0), CHOICES)
    limits = Limits(SPACE, FIRST, 0.8 * FIRST(SPACE.largest()), [on_second(0.4, model)])
    (found,) = allocate_exactly(SPACE, losses, FIRST, limits.limit_ms, limits.bounds, EXACT)
    assert model(found.widths) <= 0.4 * model(SPACE.largest())
    assert found.loss <= 1.01 * every(limits, losses)[0][0]


def greedily(limits: Limits, losses: list[np.ndarray]) -> Widths:
    return narrowed_by(SPACE, losses, limits)


def uniformly(limits: Limits, losses: list[np.ndarray]) -> Widths:
    return allocate_uniformly(SPACE, (), limits.latency_of, limits.limit_ms, limits.bounds)


def by_scales(limits: Limits, losses: list[np.ndarray]) -> Widths:
    scales = [np.linspace(1.0, 0.1, own[-1]) for own in CHOICES]
    return allocate_by_scales(SPACE, scales, limits.latency_of, limits.limit_ms, limits.bounds)


@pytest.mark.parametrize("method", [greedily, uniformly, by_scales])
def test_a_proposed_network_is_within_the_limits_of_both(
    method: Callable[[Limits, list[np.ndarray]], Widths],
) -> None:
    losses = falling(np.random.default_rng(1), CHOICES)
    limits = Limits(SPACE, FIRST, 0.6 * FIRST(SPACE.largest()), [on_second(0.4)])
    found = method(limits, losses)
    assert limits.fit(limits.index(found)[None])[0]
    alone = method(Limits(SPACE, FIRST, limits.limit_ms), losses)
    assert SECOND(found) <= limits.bounds[0].limit < SECOND(alone)
    assert total(losses, limits.index(found)) >= every(limits, losses)[0][0]


def test_what_a_further_device_cannot_do_is_refused_with_its_name_and_lowest_latency() -> None:
    lowest = SECOND(fastest(SPACE, SECOND))
    limit = DeviceLimit.on("second", SECOND, Budget(0.9 * lowest))
    with pytest.raises(
        BudgetError,
        match=rf"no network meets {0.9 * lowest:.3f} ms on second: the fastest takes {lowest:.3f} ms there",
    ):
        Limits(SPACE, FIRST, 1e3, [limit]).fastest()


def test_what_the_first_of_several_devices_cannot_do_is_refused_with_its_name_and_lowest_latency() -> None:
    lowest = FIRST(fastest(SPACE, FIRST))
    meets, takes = f"no network meets {0.9 * lowest:.3f} ms", f"the fastest takes {lowest:.3f} ms"
    within = r"within the other budgets and bounds \(.*; raise that budget"
    with pytest.raises(BudgetError, match=rf"^{meets} on {FIRST.table.device}: {takes} there {within}"):
        Limits(SPACE, FIRST, 0.9 * lowest, [on_second(1.0)]).fastest()
    with pytest.raises(BudgetError, match=rf"^{meets}: {takes} \(.*; raise the budget"):
        Limits(SPACE, FIRST, 0.9 * lowest).fastest()
    # What meets the budget alone is too slow within that of the second device, where other widths are fast.
    slow = {(1, 9): 1.0, (9, 1): 5.0, (1, 1): 6.0, (9, 9): 9.0}
    limit = DeviceLimit.on("b", lambda own: 1.0 if tuple(own) == (9, 1) else 3.0, Budget(2.0))
    limits = Limits(space_of([(1, 9), (1, 9)]), lambda own: slow[tuple(own)], 4.0, [limit])
    with pytest.raises(
        BudgetError, match=r"meets 4\.000 ms on the first device: the fastest takes 5\.000 ms"
    ):
        limits.fastest()


def test_budgets_that_can_be_met_one_by_one_but_not_at_once_are_refused_as_such() -> None:
    choices = [(1, 9), (1, 9)]
    space = space_of(choices)
    quick = {(1, 9): 1.0, (9, 1): 5.0, (1, 1): 4.0, (9, 9): 9.0}
    other = {(1, 9): 5.0, (9, 1): 1.0, (1, 1): 4.0, (9, 9): 9.0}
    bounds = [
        DeviceLimit.on(name, lambda own, ms=ms: ms[tuple(own)], Budget(2.0))
        for name, ms in (("a", quick), ("b", other))
    ]
    limits = Limits(space, lambda own: float(sum(own)), 100.0, bounds)
    with pytest.raises(BudgetError, match=r"budgets of all devices and all bounds at once: the closest has"):
        limits.fastest()


def test_the_fastest_network_within_a_further_limit_is_found_where_the_narrowest_is_too_slow_there() -> None:
    """An unaligned width of the first group makes the second device slow."""
    choices = [(1, 8), (1, 2, 3)]
    space = space_of(choices)
    limit = DeviceLimit.on("b", lambda own: 10.0 if own[0] == 1 else 3.0, Budget(4.0))
    assert fastest(space, lambda own: float(own[0] + own[1]), [limit]) == (8, 1)
