"""The evolution on several devices, where the answer is known: all limits are kept, as measured on each."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from bcnet.errors import BudgetError
from bcnet.latency_tables.rows import LatencyStat
from bcnet.pipeline.search_evolved import search
from bcnet.space.width_space import Widths
from bcnet.width_search.budget import Budget
from bcnet.width_search.device_limit import DeviceLimit, device_limits, with_added, with_limits
from bcnet.width_search.evolution import SearchSettings
from tests.pipeline.test_search import ALL, SPACE, accuracy, latency_ms


def there_ms(widths: Widths) -> float:
    """Another device: late groups cost most."""
    return 0.2 + sum((number + 1) * width for number, width in enumerate(widths)) / 100


def measured_at(latency_of: Callable[[Widths], float], factor: float) -> Callable[[Widths], LatencyStat]:
    return lambda widths: LatencyStat.of(np.array([latency_of(widths) * factor]))


def settings(first_ms: float, there: Budget, factor: float | None = 1.0) -> SearchSettings:
    limit = DeviceLimit.on("there", there_ms, there)
    if factor is not None:
        limit = replace(limit, measure_of=measured_at(there_ms, factor))
    budget = Budget(first_ms, bounds=(limit,))
    return SearchSettings(budget=budget, population=16, generations=8)


@pytest.mark.parametrize(("first_ms", "second_ms"), [(1.2, 1.4), (0.8, 5.0), (5.0, 1.2)])
def test_the_winner_is_the_best_within_both_limits_whichever_of_them_it_meets_first(
    first_ms: float, second_ms: float
) -> None:
    found = search(SPACE, latency_ms, accuracy, settings(first_ms, Budget(second_ms), None))
    inside = [own for own in ALL if latency_ms(own) <= first_ms and there_ms(own) <= second_ms]
    assert found.best.widths == max(inside, key=accuracy)
    assert all(there_ms(own.widths) <= second_ms for own in found.history)


@pytest.mark.parametrize(("here", "there"), [(1.0, 1.0), (1.0, 1.3), (1.3, 1.0), (0.8, 1.25)])
def test_both_limits_are_kept_as_measured_where_the_tables_are_off_by_different_factors(
    here: float, there: float
) -> None:
    found = search(
        SPACE,
        latency_ms,
        accuracy,
        settings(1.2, Budget(1.5, margin=0.02), there),
        measure_of=measured_at(latency_ms, here),
    )
    best = found.best
    assert best.measured is not None
    assert best.measured.median_ms == pytest.approx(latency_ms(best.widths) * here, abs=1e-4)
    assert best.measured.median_ms <= 1.2
    assert best.further["there"].median_ms <= 1.5 / 1.02
    assert found.further_ms == (1.5,)
    inside = [w for w in ALL if latency_ms(w) * here <= 1.2 and there_ms(w) * there <= 1.5 / 1.02]
    assert accuracy(best.widths) >= max(map(accuracy, inside)) - 0.02
    assert ("on there were" in found.note) == (there != 1.0)


def test_a_share_is_of_the_original_on_its_own_device() -> None:
    full_ms = there_ms(SPACE.largest())
    found = search(
        SPACE,
        latency_ms,
        accuracy,
        settings(5.0, Budget(0.5 * full_ms, share=0.5), 2.0),
        measure_of=measured_at(latency_ms, 1.0),
    )
    assert found.further_ms == pytest.approx((full_ms,), abs=1e-4)
    assert found.best.further["there"].median_ms <= full_ms
    assert there_ms(found.best.widths) <= 0.5 * full_ms + 1e-4


def test_a_network_that_is_too_slow_on_one_device_does_not_win() -> None:
    """By its table the second device is three times as fast as it is."""
    asked = r"is within the budget 5\.000 ms on the first device and budget 1\.050 ms on there"
    with pytest.raises(BudgetError, match=rf"{asked}; the closest exceeds the limit on there by \d"):
        search(
            SPACE,
            latency_ms,
            accuracy,
            settings(5.0, Budget(1.05), 3.0),
            measure_of=measured_at(latency_ms, 1.0),
        )


def test_the_whole_network_is_kept_only_where_it_is_measured_within_all_budgets() -> None:
    here = measured_at(latency_ms, 1.0)
    full = there_ms(SPACE.largest())
    found = search(SPACE, latency_ms, accuracy, settings(5.0, Budget(full + 0.1)), measure_of=here)
    assert found.best.widths == SPACE.largest()
    assert found.best.further["there"].median_ms == pytest.approx(full, abs=1e-4)
    assert "above the full network's latency: kept whole" in found.note
    found = search(SPACE, latency_ms, accuracy, settings(5.0, Budget(full + 0.1), 1.2), measure_of=here)
    assert found.best.widths != SPACE.largest()
    assert found.best.further["there"].median_ms <= full + 0.1


@pytest.mark.parametrize("factor", [1.0, 0.6])
def test_a_device_that_is_not_measured_is_held_to_its_table_however_fast_the_first_one_is(
    factor: float,
) -> None:
    found = search(
        SPACE,
        latency_ms,
        accuracy,
        settings(1.2, Budget(1.4), None),
        measure_of=measured_at(latency_ms, factor),
    )
    assert found.best.further == {}
    assert there_ms(found.best.widths) <= 1.4


def test_a_front_is_of_networks_within_the_limit_on_the_other_device() -> None:
    wanted = replace(settings(1.2, Budget(1.4), None), pareto=True)
    found = search(SPACE, latency_ms, accuracy, wanted)
    assert len(found.pareto) > 3
    assert all(there_ms(own.widths) <= 1.4 for own in found.pareto)


def test_pre_processing_is_taken_off_the_budget_of_a_device_that_is_measured() -> None:
    measured = replace(DeviceLimit.on("a", there_ms, Budget(5.0)), measure_of=measured_at(there_ms, 1.0))
    by_table = DeviceLimit.on("b", there_ms, Budget(5.0))
    alone = with_added((measured, by_table), {"a": 1.0, "b": 2.0}.__getitem__)
    assert [own.limit for own in alone] == [4.0, 5.0]
    assert device_limits(alone)[0].budget.delivered.target_ms == 5.0


def test_limits_of_further_devices_are_replaced_in_their_order() -> None:
    first, second = (DeviceLimit.on(name, there_ms, Budget(1.0)) for name in ("a", "b"))
    changed = with_limits((first, second), [2.0, 3.0])
    assert [(own.key, own.limit) for own in changed] == [("a", 2.0), ("b", 3.0)]
