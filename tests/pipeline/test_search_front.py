"""Bounds beside the budget, fronts, and a fitness that weighs latency, on a space with a known answer."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from test_search import ALL, CHOICES, SPACE, accuracy, as_predicted, killed_after_the_third, latency_ms

from bcnet.errors import BudgetError
from bcnet.pipeline.search_evolved import search
from bcnet.space.width_space import Segment, Widths
from bcnet.width_search.budget import Budget
from bcnet.width_search.constraints import MEGABYTE, Bound, Cost
from bcnet.width_search.evolution import SearchSettings

CHANNELS = Cost(4, [(1, ((Segment(group, 1),),)) for group in range(4)])
PAIRS = Cost(4, [(1, ((Segment(a, 1),), (Segment(a + 1, 1),))) for a in range(3)])


def at_most(limit: float, cost: Cost = PAIRS) -> Bound:
    return Bound("max_params", "parameters", cost, limit)


def best_within(limit: float, budget_ms: float = np.inf) -> Widths:
    return max((w for w in ALL if PAIRS(w) <= limit and latency_ms(w) <= budget_ms), key=accuracy)


class Scored:
    """A score function that remembers."""

    def __init__(self) -> None:
        self.widths: list[Widths] = []

    def __call__(self, widths: Widths) -> float:
        self.widths.append(widths)
        return accuracy(widths)


WAYS = {
    "budget": SearchSettings(budget=Budget(1.5), population=16, generations=6),
    "bound alone": SearchSettings(population=16, generations=6),
    "accuracy": SearchSettings(min_accuracy=0.6, population=16, generations=6),
    "front": SearchSettings(budget=Budget(1.5), pareto=True, population=16, generations=6),
    "front without a budget": SearchSettings(pareto=True, population=16, generations=6),
    "soft": SearchSettings(budget=Budget(1.5), fitness="soft", population=16, generations=6),
}


def bounded(settings: SearchSettings, *bounds: Bound) -> SearchSettings:
    return replace(settings, budget=replace(settings.budget, bounds=bounds))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("limits", [(900.0, 80.0), (500.0, 90.0)])
def test_no_search_scores_what_is_beyond_a_bound(way: str, limits: tuple[float, float]) -> None:
    scored = Scored()
    bounds = (at_most(limits[0]), at_most(limits[1], CHANNELS))
    result = search(SPACE, latency_ms, scored, bounded(WAYS[way], *bounds), measure_of=as_predicted)
    assert len(scored.widths) == len(set(scored.widths)) <= 16 * 7 + 5
    assert all(PAIRS(w) <= limits[0] and CHANNELS(w) <= limits[1] for w in scored.widths)
    assert result.best.measured is not None


@pytest.mark.parametrize("limit", [400.0, 800.0, 1500.0])
def test_a_bound_alone_gives_the_most_accurate_network_within_it(limit: float) -> None:
    settings = SearchSettings(budget=Budget(bounds=(at_most(limit),)), population=16, generations=8)
    result = search(SPACE, latency_ms, accuracy, settings)
    assert accuracy(result.best.widths) == pytest.approx(accuracy(best_within(limit)))
    assert result.budget_ms is None


def test_a_bound_and_a_budget_are_both_kept() -> None:
    def slow_first(widths: Widths) -> float:
        return latency_ms(widths) + widths[0] / 20

    budget = Budget(1.6, bounds=(at_most(1000.0),))
    settings = SearchSettings(budget=budget, population=16, generations=8)
    result = search(SPACE, slow_first, accuracy, settings)
    best = max((w for w in ALL if PAIRS(w) <= 1000 and slow_first(w) <= 1.6), key=accuracy)
    assert accuracy(result.best.widths) == pytest.approx(accuracy(best))


def test_a_bound_below_the_narrowest_network_is_answered_with_the_least_possible() -> None:
    with pytest.raises(
        BudgetError, match=r"at most 100 parameters: the narrowest has 192; raise search.max_params"
    ):
        search(SPACE, latency_ms, accuracy, SearchSettings(budget=Budget(1.2, bounds=(at_most(100.0),))))
    size = Bound("max_size_mb", "megabytes of weights at fp32", Cost(4, [(1_234_001, ())]), 1e6, MEGABYTE)
    with pytest.raises(BudgetError, match=r"at most 1 megabytes of weights at fp32: the narrowest has 1.235"):
        search(SPACE, latency_ms, accuracy, SearchSettings(budget=Budget(1.2, bounds=(size,))))


def test_a_budget_that_the_bounds_put_out_of_reach_says_so() -> None:
    def slow_when_narrow(widths: Widths) -> float:
        return 10.0 / widths[0]

    settings = SearchSettings(budget=Budget(0.5, bounds=(at_most(40 + 8 * 8 * 3 + 8 * 8),)))
    with pytest.raises(BudgetError, match=r"the fastest takes 0.625 ms within the other bounds"):
        search(SPACE, slow_when_narrow, accuracy, settings)


def test_bounds_above_the_full_network_keep_it_whole() -> None:
    settings = SearchSettings(budget=Budget(bounds=(at_most(1e6),)), population=16, generations=8)
    result = search(SPACE, latency_ms, accuracy, settings)
    assert result.best.widths == SPACE.largest()
    assert "every bound is above the full network's: kept whole" in result.note
    assert result.pareto == (result.best,)


def test_a_search_for_nothing_is_refused() -> None:
    with pytest.raises(BudgetError, match="a latency budget, a minimum accuracy or a bound"):
        search(SPACE, latency_ms, accuracy, SearchSettings())


def true_front() -> list[Widths]:
    """Without those that gain less than the search can see apart."""
    front: list[Widths] = []
    for widths in sorted(ALL, key=lambda w: (latency_ms(w), -accuracy(w))):
        if not front or accuracy(widths) > accuracy(front[-1]):
            front.append(widths)
    return front


def test_one_search_finds_the_front_of_accuracy_against_latency() -> None:
    settings = SearchSettings(pareto=True, population=24, generations=9)
    result = search(SPACE, latency_ms, accuracy, settings)
    assert len(result.history) <= 240
    latencies = [c.predicted_ms for c in result.pareto]
    scores = [c.score.accuracy for c in result.pareto]
    assert latencies == sorted(latencies)
    expected = [c.expected or 0.0 for c in result.pareto]
    assert expected == sorted(expected)
    assert expected == pytest.approx(scores, abs=1e-3)  # here no score is luck
    assert all(a < b + 1e-4 for a, b in itertools.pairwise(scores))
    assert {SPACE.smallest(), SPACE.largest()} <= {c.widths for c in result.pareto}
    for budget_ms in np.linspace(0.3, 3.1, 15):
        found = max(c.score.accuracy for c in result.pareto if c.predicted_ms <= budget_ms)
        assert found >= max(accuracy(w) for w in true_front() if latency_ms(w) <= budget_ms) - 0.005


def test_a_front_goes_beyond_the_budget_that_chooses_the_winner() -> None:
    settings = SearchSettings(budget=Budget(1.5), pareto=True, population=16, generations=8)
    result = search(SPACE, latency_ms, accuracy, settings, measure_of=as_predicted)
    assert result.pareto[-1].widths == SPACE.largest()
    assert result.best.predicted_ms <= 1.5
    assert result.best.measured is not None
    assert accuracy(result.best.widths) >= accuracy(best_within(np.inf, 1.5)) - 0.01


@pytest.mark.parametrize("way", WAYS)
def test_a_killed_search_of_any_kind_reaches_the_same_candidates(way: str) -> None:
    settings = bounded(WAYS[way], at_most(1500.0))
    whole = search(SPACE, latency_ms, accuracy, settings)
    kept = killed_after_the_third(settings)
    scored = Scored()
    assert search(SPACE, latency_ms, scored, settings, resume=kept) == whole
    assert not set(scored.widths) & {candidate.widths for candidate in kept}


def fitness(widths: Widths, exponent: float, budget_ms: float) -> float:
    return accuracy(widths) * (latency_ms(widths) / budget_ms) ** exponent


@pytest.mark.parametrize("exponent", [-0.05, -0.12])
def test_a_soft_fitness_scores_beyond_the_budget_and_hands_over_what_is_inside(exponent: float) -> None:
    settings = SearchSettings(
        budget=Budget(1.0), fitness="soft", latency_exponent=exponent, population=16, generations=10
    )
    result = search(SPACE, latency_ms, accuracy, settings, measure_of=as_predicted)
    assert any(c.predicted_ms > 1.0 for c in result.history)
    assert result.best.measured is not None
    assert result.best.measured.median_ms <= 1.0
    inside = [w for w in ALL if latency_ms(w) <= 1.0]
    best = max(fitness(w, exponent, 1.0) for w in inside)
    assert fitness(result.best.widths, exponent, 1.0) >= best - 0.01


def test_a_soft_fitness_may_hand_over_what_is_beyond_the_budget_where_that_is_wanted() -> None:
    settings = SearchSettings(
        budget=Budget(0.5),
        fitness="soft",
        latency_exponent=-0.02,
        over_budget=True,
        population=16,
        generations=8,
    )
    result = search(SPACE, latency_ms, accuracy, settings, measure_of=as_predicted)
    assert result.best.measured is not None
    assert result.best.measured.median_ms > 0.5
    assert result.budget_ms is None
    assert "budget 0.500 ms is a target" in result.note
    best = max(fitness(w, -0.02, 0.5) for w in ALL)
    assert fitness(result.best.widths, -0.02, 0.5) == pytest.approx(best, abs=0.005)


def test_a_soft_fitness_that_asks_for_accuracy_alone_inside_the_budget_is_the_hard_search() -> None:
    settings = SearchSettings(
        budget=Budget(1.2),
        fitness="soft",
        latency_exponent=-1.0,
        inside_exponent=0.0,
        population=16,
        generations=10,
    )
    result = search(SPACE, latency_ms, accuracy, settings)
    hard = SearchSettings(budget=Budget(1.2), population=16, generations=10)
    assert result == search(SPACE, latency_ms, accuracy, hard)
    assert accuracy(result.best.widths) >= accuracy(best_within(np.inf, 1.2)) - 0.005


def test_where_all_that_was_scored_is_over_the_budget_the_best_are_narrowed() -> None:
    settings = SearchSettings(
        budget=Budget(latency_ms(SPACE.smallest())),
        fitness="soft",
        latency_exponent=0.0,
        population=4,
        generations=0,
    )
    result = search(SPACE, latency_ms, accuracy, settings, measure_of=as_predicted)
    assert result.best.widths == SPACE.smallest()


def test_a_negative_metric_is_better_when_it_is_faster_at_equal_value() -> None:
    settings = SearchSettings(budget=Budget(1.0), fitness="soft", population=16, generations=8)
    result = search(SPACE, latency_ms, lambda widths: -1.0, settings)
    assert result.best.widths == SPACE.smallest()


def test_the_winner_is_the_one_that_all_scores_together_say_is_best() -> None:
    """Scores are off by a luck of each network's own that is as large as what is to be found."""

    def lucky(widths: Widths) -> float:
        return accuracy(widths) + float(np.random.default_rng(list(widths)).normal(0, 0.02))

    lost: dict[bool, list[float]] = {True: [], False: []}
    for seed, smooth in itertools.product(range(8), (True, False)):
        settings = SearchSettings(budget=Budget(1.2), generations=6, seed=seed, smooth=smooth)
        found = search(SPACE, latency_ms, lucky, settings).best.widths
        lost[smooth].append(accuracy(best_within(np.inf, 1.2)) - accuracy(found))
    assert np.mean(lost[True]) < 0.6 * np.mean(lost[False])


def test_first_generations_are_drawn_from_all_priors_in_turn() -> None:
    def only(choice: int) -> list[np.ndarray]:
        return [np.eye(len(CHOICES))[choice] for _ in range(4)]

    settings = SearchSettings(pareto=True, population=4, generations=0)
    result = search(SPACE, latency_ms, accuracy, settings, priors=[only(1), only(2)])
    assert {c.widths for c in result.history} == {Widths([CHOICES[i]] * 4) for i in range(4)}


@pytest.mark.parametrize("prior_mutation", [True, False])
def test_mutations_draw_from_the_prior_only_where_that_is_set(prior_mutation: bool) -> None:
    own = np.array([0.4, 0.0, 0.3, 0.3])  # of choices, the second of which is never drawn
    settings = replace(WAYS["front without a budget"], prior_mutation=prior_mutation)
    scored = Scored()
    search(SPACE, latency_ms, scored, settings, priors=[[own] * 4])
    first, later = scored.widths[:16], scored.widths[16:]
    assert len(later) > 16
    assert not any(CHOICES[1] in widths for widths in first)
    assert any(CHOICES[1] in widths for widths in later) != prior_mutation
