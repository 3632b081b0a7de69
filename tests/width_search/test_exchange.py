"""Channels move between groups at equal latency, and the evolution's mutations use it where asked."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from bcnet.pipeline.search_evolved import search
from bcnet.space.width_space import Widths
from bcnet.width_search.budget import Budget
from bcnet.width_search.evolution import SearchSettings
from bcnet.width_search.exchange import exchanged_at_random
from tests.methods.tiny import space_of

CHOICES = [(1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4)]
WORTH = np.array([8.0, 2.0, 1.0])  # of a channel in each group
COST = np.array([1.0, 2.0, 2.0])


def value_of(networks: Sequence[Widths]) -> np.ndarray:
    return np.asarray(np.array(networks) @ WORTH)


def latency_of(widths: Widths) -> float:
    return float(np.array(widths) @ COST)


def test_channels_go_most_often_from_where_a_millisecond_is_worth_least_to_where_it_is_worth_most() -> None:
    rng = np.random.default_rng(0)
    start = Widths((2, 2, 2))
    found = Counter(exchanged_at_random(CHOICES, start, latency_of, value_of, rng) for _ in range(400))
    assert found.most_common(1)[0][0] == (3, 2, 1)
    assert all(latency_of(own) <= latency_of(start) for own in found if own is not None)
    assert found[Widths((3, 2, 1))] > 2 * found[Widths((1, 3, 2))]


def test_several_groups_shrink_where_one_does_not_suffice() -> None:
    choices = [(1, 4), (1, 2), (1, 2)]  # only the first can grow

    def dear(widths: Widths) -> float:
        return 4.0 * widths[0] + 6.0 * (widths[1] + widths[2])

    rng = np.random.default_rng(0)
    assert exchanged_at_random(choices, Widths((1, 2, 2)), dear, value_of, rng) == (4, 1, 1)
    assert exchanged_at_random(choices, Widths((1, 1, 2)), dear, value_of, rng) is None


@pytest.mark.parametrize("start", [(4, 4, 4), (1, 1, 1)])
def test_where_nothing_can_move_there_is_no_exchange(start: tuple[int, ...]) -> None:
    assert exchanged_at_random(CHOICES, Widths(start), latency_of, value_of, np.random.default_rng(0)) is None


def test_a_search_with_exchanges_keeps_the_budget_and_finds_the_best_of_a_sum() -> None:
    choices = [tuple(range(1, 9))] * 4
    worth, cost = np.array([8.0, 4.0, 2.0, 1.0]), np.array([1.0, 1.0, 2.0, 2.0])

    def latency(widths: Widths) -> float:
        return float(np.array(widths) @ cost)

    settings = SearchSettings(budget=Budget(24.0), population=12, generations=8, exchange=1.0, seed=3)
    found = search(space_of(choices), latency, lambda w: float(np.array(w) @ worth) / 200, settings)
    assert all(latency(candidate.widths) <= 24 for candidate in found.history)
    assert found.best.widths == (8, 8, 3, 1)
