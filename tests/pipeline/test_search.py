"""The search on spaces small enough to know the answer."""

import itertools
import math
from typing import Any

import numpy as np
import pytest

from bcnet.errors import BudgetError
from bcnet.latency_tables.failed import FAILED_MS
from bcnet.latency_tables.rows import LatencyStat
from bcnet.pipeline.beside_original import BesideOriginal, Timed
from bcnet.pipeline.search_evolved import search
from bcnet.pipeline.search_measured import confirmed
from bcnet.plain import milliseconds
from bcnet.space.width_space import WidthGroup, Widths, WidthSpace
from bcnet.width_search.budget import Budget
from bcnet.width_search.evolution import Candidate, SearchSettings, fastest
from bcnet.width_search.scorer import Score

CHOICES = (8, 16, 24, 32)
SPACE = WidthSpace(
    "bcnet", tuple(WidthGroup(f"g{i}", 32, CHOICES, (f"g{i}",)) for i in range(4)), {}, {}, (), (), (), ()
)
ALL = [Widths(widths) for widths in itertools.product(CHOICES, repeat=4)]
GAIN = (0.05, 0.02, 0.09, 0.04)


def latency_ms(widths: Widths) -> float:
    return 0.1 + sum(a * b for a, b in itertools.pairwise(widths)) / 1000


def accuracy(widths: Widths) -> float:
    return 0.4 + sum(gain * math.log(width) for gain, width in zip(GAIN, widths, strict=True)) / 2


@pytest.mark.parametrize("budget_ms", [0.5, 0.9, 1.7, 2.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_finds_the_true_optimum_of_a_small_space(budget_ms: float, seed: int) -> None:
    settings = SearchSettings(budget=Budget(budget_ms), population=16, generations=8, seed=seed)
    scored: list[Widths] = []

    def score_of(widths: Widths) -> float:
        scored.append(widths)
        return accuracy(widths)

    result = search(SPACE, latency_ms, score_of, settings)
    best = max((widths for widths in ALL if latency_ms(widths) <= budget_ms), key=accuracy)
    assert accuracy(result.best.widths) == pytest.approx(accuracy(best))
    assert len(scored) == len(set(scored)) <= 16 * 9
    assert all(latency_ms(widths) <= budget_ms for widths in scored)


def test_finds_the_fastest_network_that_is_accurate_enough() -> None:
    settings = SearchSettings(min_accuracy=0.65, population=16, generations=12)
    result = search(SPACE, latency_ms, accuracy, settings)
    fastest = min((widths for widths in ALL if accuracy(widths) >= 0.65), key=latency_ms)
    assert result.best.predicted_ms == pytest.approx(latency_ms(fastest))


def killed_after_the_third(settings: SearchSettings) -> list[Candidate]:
    """The candidates of a search that is killed when its third generation is scored."""
    kept: list[Candidate] = []

    def kill_after_the_third(candidates: object) -> None:
        kept[:] = candidates  # type: ignore[call-overload]
        if max(candidate.generation for candidate in kept) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(SPACE, latency_ms, accuracy, settings, on_generation=kill_after_the_third)
    return kept


def test_a_killed_search_reaches_the_same_candidates() -> None:
    settings = SearchSettings(budget=Budget(1.2), population=6, generations=5, seed=4)
    whole = search(SPACE, latency_ms, accuracy, settings)
    kept = killed_after_the_third(settings)
    assert search(SPACE, latency_ms, accuracy, settings, resume=kept) == whole


def test_a_budget_that_cannot_be_met_is_answered_at_once_with_the_lowest_possible() -> None:
    def slow_when_narrowest(widths: Widths) -> float:
        return latency_ms(widths) + (1.0 if widths[0] == 8 else 0.0)

    def never(widths: Widths) -> float:
        raise AssertionError("nothing may be scored")

    lowest = min(map(slow_when_narrowest, ALL))
    with pytest.raises(BudgetError, match=f"the fastest takes {milliseconds(lowest)} ms"):
        search(SPACE, slow_when_narrowest, never, SearchSettings(budget=Budget(lowest * 0.99)))


def test_a_budget_above_the_full_network_returns_it_and_says_so() -> None:
    result = search(SPACE, latency_ms, accuracy, SearchSettings(budget=Budget(100)))
    assert result.best.widths == SPACE.largest()
    assert len(result.history) == 1
    assert "above the full network" in result.note


@pytest.mark.parametrize("factor", [1.0, 1.04, 1.4])
def test_the_winner_is_within_the_budget_as_measured(factor: float) -> None:
    def slower_than_predicted(widths: Widths) -> LatencyStat:
        return LatencyStat.of(np.array([latency_ms(widths) * factor]))

    settings = SearchSettings(budget=Budget(1.2), population=16, generations=6)
    result = search(SPACE, latency_ms, accuracy, settings, measure_of=slower_than_predicted)
    assert result.best.measured is not None
    assert result.best.measured.median_ms <= 1.2
    assert ("off, which was corrected" in result.note) == (factor > 1.2)
    assert len({candidate.widths for candidate in result.history}) == len(result.history)
    inside = [widths for widths in ALL if latency_ms(widths) * factor <= 1.2]
    assert accuracy(result.best.widths) >= max(map(accuracy, inside)) - 0.02


@pytest.mark.parametrize("factor", [1.0, 1.3, 0.7])
def test_a_share_is_of_the_measured_original_however_slow_the_machine_is(factor: float) -> None:
    """A machine that is slower or faster than the table says is so for the original, too."""

    def off(widths: Widths) -> LatencyStat:
        return LatencyStat.of(np.array([latency_ms(widths) * factor]))

    full_ms = latency_ms(SPACE.largest())
    settings = SearchSettings(budget=Budget(0.4 * full_ms, share=0.4), population=16, generations=6)
    result = search(SPACE, latency_ms, accuracy, settings, measure_of=off)
    assert result.budget_ms == pytest.approx(0.4 * full_ms * factor, abs=1e-4)
    assert result.best.measured is not None
    assert result.best.measured.median_ms <= result.budget_ms
    best = max((widths for widths in ALL if latency_ms(widths) <= 0.4 * full_ms), key=accuracy)
    assert accuracy(result.best.widths) >= accuracy(best) - 0.01


def test_a_confirmed_candidate_has_latency_and_budget_of_one_measurement_and_the_larger_share() -> None:
    """The machine has become twice as fast since the candidate took 0.99 ms of a limit of 1 ms."""
    largest, widths = SPACE.largest(), SPACE.smallest()
    times = {largest: 1.0, widths: 0.48}
    beside = BesideOriginal(
        lambda own: LatencyStat.of(np.array([times[own]])), largest, Budget(1.0, share=0.5)
    )
    first = Candidate(widths, 1.0, Score(0.5), 0, measured=LatencyStat.of(np.array([0.99])))
    again, (budget,) = confirmed(Timed(first, (0.99,)), beside)
    assert again.candidate.measured is not None
    assert (again.candidate.measured.median_ms, budget.ms) == (0.48, 0.5)
    assert again.shares == (0.99,)


def test_a_share_is_kept_of_an_original_that_the_table_predicts_wrongly() -> None:
    """The table says that the full network takes 3.172 ms; it takes 2.5, and all others what it says."""

    def measured(widths: Widths) -> LatencyStat:
        return LatencyStat.of(np.array([2.5 if widths == SPACE.largest() else latency_ms(widths)]))

    settings = SearchSettings(budget=Budget(0.5 * latency_ms(SPACE.largest()), share=0.5), generations=6)
    result = search(SPACE, latency_ms, accuracy, settings, measure_of=measured)
    assert result.budget_ms == pytest.approx(1.25)
    assert result.best.measured is not None
    assert result.best.measured.median_ms <= 1.25


def test_a_budget_of_the_90th_percentile_is_held_by_it_and_not_by_the_median() -> None:
    """A fifth of the calls take 1.5 times the median, which is what the table predicts."""

    def with_tail(widths: Widths) -> LatencyStat:
        ms = latency_ms(widths)
        return LatencyStat.of(np.array([ms] * 8 + [1.5 * ms] * 2))

    settings = SearchSettings(budget=Budget(1.8, p90=True), generations=6)
    result = search(SPACE, latency_ms, accuracy, settings, measure_of=with_tail)
    measured = result.best.measured
    assert measured is not None
    assert measured.p90_ms <= 1.8
    assert measured.p90_ms == pytest.approx(1.5 * measured.median_ms, rel=1e-3)
    best = max((widths for widths in ALL if 1.5 * latency_ms(widths) <= 1.8), key=accuracy)
    assert accuracy(result.best.widths) >= accuracy(best) - 0.01
    assert result.note == "the 90th percentiles were +50.0% off the table's predictions: corrected"


def test_a_winner_below_the_limit_is_followed_by_the_next_larger_candidates() -> None:
    """All networks take three quarters of what the table says, and that of the budget would stay unused."""

    def faster(widths: Widths) -> LatencyStat:
        return LatencyStat.of(np.array([latency_ms(widths) * 0.75]))

    settings = SearchSettings(budget=Budget(1.2), population=16, generations=6)
    result = search(SPACE, latency_ms, accuracy, settings, measure_of=faster)
    assert result.best.measured is not None
    assert result.best.measured.median_ms <= 1.2
    assert result.best.predicted_ms > 1.2
    by_table, best = (
        max(accuracy(widths) for widths in ALL if latency_ms(widths) * factor <= 1.2) for factor in (1, 0.75)
    )
    assert accuracy(result.best.widths) > by_table
    assert accuracy(result.best.widths) >= best - 0.01


def test_a_measured_winner_leaves_the_margin_free() -> None:
    settings = SearchSettings(budget=Budget(1.2, margin=0.05), population=16, generations=6)
    result = search(SPACE, latency_ms, accuracy, settings, measure_of=as_predicted)
    assert result.best.measured is not None
    assert result.best.measured.median_ms <= 1.2 / 1.05
    assert not result.note
    inside = [widths for widths in ALL if latency_ms(widths) <= 1.2 / 1.05]
    assert accuracy(result.best.widths) >= max(map(accuracy, inside)) - 0.02


def test_a_budget_too_near_the_fastest_network_for_the_margin_is_met_without_it_and_says_so() -> None:
    lowest = latency_ms(fastest(SPACE, latency_ms))
    settings = SearchSettings(budget=Budget(lowest * 1.01, margin=0.05))
    result = search(SPACE, latency_ms, accuracy, settings, measure_of=as_predicted)
    assert result.best.measured is not None
    assert result.best.measured.median_ms <= lowest * 1.01
    assert "by less than the machine's noise of 5.0%" in result.note


def test_a_prediction_that_is_not_measured_may_use_the_whole_budget() -> None:
    settings = SearchSettings(budget=Budget(1.2, margin=0.5), population=16, generations=6)
    result = search(SPACE, latency_ms, accuracy, settings)
    assert 1.2 / 1.5 < result.best.predicted_ms <= 1.2


def as_predicted(widths: Widths) -> LatencyStat:
    return LatencyStat.of(np.array([latency_ms(widths)]))


def test_a_full_network_that_fits_as_predicted_but_not_as_measured_is_searched() -> None:
    full_ms = latency_ms(SPACE.largest())

    def slower(widths: Widths) -> LatencyStat:
        return LatencyStat.of(np.array([latency_ms(widths) * 1.1]))

    settings = SearchSettings(budget=Budget(full_ms * 1.02), population=16, generations=6)
    result = search(SPACE, latency_ms, accuracy, settings, measure_of=slower)
    assert result.best.measured is not None
    assert result.best.measured.median_ms <= full_ms * 1.02
    assert result.best.widths != SPACE.largest()


def test_a_candidate_that_fits_only_when_it_is_measured_first_does_not_win() -> None:
    """Every network takes 15 % longer when it is measured again, as after a lucky measurement."""
    times: dict[Widths, int] = {}

    def lucky_at_first(widths: Widths) -> LatencyStat:
        times[widths] = times.get(widths, 0) + 1
        return LatencyStat.of(np.array([latency_ms(widths) * (1.0 if times[widths] == 1 else 1.15)]))

    settings = SearchSettings(budget=Budget(1.2), population=16, generations=6)
    result = search(SPACE, latency_ms, accuracy, settings, measure_of=lucky_at_first)
    true_ms = latency_ms(result.best.widths) * 1.15
    assert true_ms <= 1.2
    assert result.best.measured is not None
    assert result.best.measured.median_ms == pytest.approx(true_ms, abs=1e-4)
    over = [c for c in result.top if c.measured and c.measured.median_ms > 1.2]
    assert over  # the test is about those: more accurate, and too slow when measured again
    assert max(c.score for c in over) > result.best.score


def test_no_winner_is_handed_over_when_all_are_measured_over_the_budget() -> None:
    def always_over(widths: Widths) -> LatencyStat:
        return LatencyStat.of(np.array([5.0]))

    with pytest.raises(BudgetError, match=r"none of the \d+ best candidates.*the limit by 316.7%"):
        search(SPACE, latency_ms, accuracy, SearchSettings(budget=Budget(1.2)), measure_of=always_over)


def test_candidates_that_fit_only_at_first_are_reported_with_what_they_took_later() -> None:
    times: dict[Widths, int] = {}

    def fits_at_first(widths: Widths) -> LatencyStat:
        times[widths] = times.get(widths, 0) + 1
        return LatencyStat.of(np.array([1.2 if times[widths] == 1 else 6.0]))

    with pytest.raises(BudgetError, match=r"the closest exceeds the limit by 400\.0%"):
        search(SPACE, latency_ms, accuracy, SearchSettings(budget=Budget(1.2)), measure_of=fits_at_first)


@pytest.mark.parametrize("wanted", [{"budget": Budget(1.2)}, {"min_accuracy": 0.5}])
def test_widths_that_the_runtime_cannot_run_are_never_scored(wanted: dict[str, Any]) -> None:
    """Three groups fail at their narrowest: the way to a network that runs is several steps long."""

    def latency_of(widths: Widths) -> float:
        return latency_ms(widths) + FAILED_MS * sum(width == CHOICES[0] for width in widths[:3])

    result = search(SPACE, latency_of, accuracy, SearchSettings(population=16, generations=6, **wanted))
    assert len(result.history) >= 10
    assert all(CHOICES[0] not in candidate.widths[:3] for candidate in result.history)


@pytest.mark.parametrize("wanted", [{"budget": Budget(1.2)}, {"min_accuracy": 0.5}])
def test_a_space_of_which_nothing_runs_is_refused(wanted: dict[str, Any]) -> None:
    with pytest.raises(BudgetError, match="runs no network of this space"):
        search(SPACE, lambda widths: FAILED_MS, accuracy, SearchSettings(**wanted))


def test_ties_in_accuracy_are_broken_by_loss() -> None:
    def score_of(widths: Widths) -> Score:
        return Score(0.5, -1.0 / sum(widths))

    result = search(SPACE, latency_ms, score_of, SearchSettings(budget=Budget(1.0), generations=8))
    best = max((widths for widths in ALL if latency_ms(widths) <= 1.0), key=sum)
    assert sum(result.best.widths) == sum(best)


DEEP = WidthSpace(
    "bcnet", tuple(WidthGroup(f"g{i}", 32, CHOICES, (f"g{i}",)) for i in range(8)), {}, {}, (), (), (), ()
)


def deep_accuracy(widths: Widths) -> float:
    """A gain a group, from hardly any to much."""
    return 0.3 + sum(0.005 * i * math.log(width) for i, width in enumerate(widths))


def test_scores_choose_which_children_are_scored() -> None:
    """Among 65,536 networks, 80 noisy scores end nearer to the best than without that choice."""
    lost = []
    for smooth in (True, False):
        accuracies = []
        for seed in range(6):
            noise = np.random.default_rng(seed)
            settings = SearchSettings(budget=Budget(2.2), seed=seed, smooth=smooth)
            result = search(
                DEEP, latency_ms, lambda w, n=noise: deep_accuracy(w) + n.normal(0, 0.01), settings
            )
            accuracies.append(deep_accuracy(result.best.widths))
        lost.append(0.68 - float(np.mean(accuracies)))
    assert lost[0] < 0.6 * lost[1]


def test_a_wanted_accuracy_that_many_reach_is_met_by_a_fast_network() -> None:
    """Where accuracies saturate, a trend says that none but the widest does."""

    def saturated(widths: Widths) -> float:
        return min(0.75, 0.1 + 0.03 * sum(map(math.log, widths)))

    found = []
    for smooth in (True, False):
        ways = [
            SearchSettings(min_accuracy=0.75, generations=8, seed=seed, smooth=smooth) for seed in range(4)
        ]
        found.append(np.mean([search(DEEP, latency_ms, saturated, way).best.predicted_ms for way in ways]))
    assert found[0] <= 1.1 * found[1]


@pytest.mark.parametrize(("way", "least"), [({"fitness": "soft"}, 180), ({"pareto": True}, 215)])
def test_generations_are_filled_by_those_that_were_passed_over(way: dict[str, Any], least: int) -> None:
    """Of 256 networks, most are seen in the end: hardly a generation finds eight new children a place."""
    settings = SearchSettings(budget=Budget(latency_ms(SPACE.largest())), generations=14, **way)
    history = search(SPACE, latency_ms, accuracy, settings).history
    assert least <= len(history) <= 240
