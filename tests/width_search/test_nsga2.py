"""NSGA-II's orders against their definitions."""

import numpy as np
import pytest

from bcnet.width_search.nsga2 import crowding, fronts


def fronts_by_definition(costs: np.ndarray) -> np.ndarray:
    """Deb et al., 2002: peel off what nothing else dominates, again and again."""
    lower = (costs[:, None] <= costs[None]).all(2) & (costs[:, None] < costs[None]).any(2)
    found, left, number = np.full(len(costs), -1), np.ones(len(costs), dtype=bool), 0
    while left.any():
        best = left & ~(lower & left[:, None]).any(0)
        found[best], left, number = number, left & ~best, number + 1
    return found


@pytest.mark.parametrize("seed", range(20))
def test_fronts_are_those_of_the_definition_also_with_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs = rng.integers(0, 12, (60, 2)).astype(float) if seed % 2 else rng.random((60, 2))
    assert fronts(*costs.T).tolist() == fronts_by_definition(costs).tolist()


def test_no_candidates_have_no_fronts() -> None:
    assert len(fronts(np.zeros(0), np.zeros(0))) == 0
    assert len(crowding(np.zeros((0, 2)), np.zeros(0))) == 0


def test_crowding_is_the_gap_between_neighbours_in_the_same_front() -> None:
    costs = np.array([[0, 10], [1, 6], [4, 4], [10, 0], [5, 20], [6, 15]], dtype=float)
    found = crowding(costs, np.array([0, 0, 0, 0, 1, 1]))
    assert found[[0, 3, 4, 5]].tolist() == [np.inf] * 4
    assert found[1] == pytest.approx((4 - 0) / 10 + (10 - 4) / 10)
    assert found[2] == pytest.approx((10 - 1) / 10 + (6 - 0) / 10)


def test_equal_candidates_do_not_crowd_each_other_to_nan() -> None:
    found = crowding(np.ones((4, 2)), np.zeros(4))
    assert not np.isnan(found).any()
