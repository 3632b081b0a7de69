"""Distributions that promise low losses inside limits."""

import numpy as np
import pytest

from bcnet.space.width_space import Widths
from bcnet.width_search.initial_population import Limit, potential_losses, prior

CHOICES = ((1, 2, 3, 4), (1, 2, 3, 4))
LOSSES = [np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.2, 0.1, 0.1, 0.05])]
PRODUCT = [((0, 1), np.outer([1.0, 2, 3, 4], [1.0, 2, 3, 4]))]
SUM = [((0,), np.array([1.0, 2, 3, 4])), ((1,), np.array([1.0, 2, 3, 4]))]


def expected(limit: Limit, p: tuple[np.ndarray, ...]) -> float:
    total = limit.offset
    for groups, array in limit.arrays:
        total += float(np.einsum("ab,a,b", array, *p) if len(groups) == 2 else array @ p[groups[0]])
    return total


@pytest.mark.parametrize("limits", [[4.0], [2.0], [4.0, 3.5], [2.5, 6.0]])
def test_every_limit_is_kept_on_average(limits: list[float]) -> None:
    given = [Limit(0.5, PRODUCT, limits[0]), *(Limit(0.0, SUM, limit) for limit in limits[1:])]
    p = prior(LOSSES, given)
    assert [row.sum() for row in p] == pytest.approx([1.0, 1.0])
    assert all(expected(limit, p) <= limit.at_most + 1e-9 for limit in given)


def test_the_limit_is_used_up() -> None:
    limit = Limit(0.5, PRODUCT, 4.0)
    assert expected(limit, prior(LOSSES, [limit])) == pytest.approx(4.0, rel=1e-3)


def test_a_limit_that_nothing_reaches_changes_nothing() -> None:
    free, limited = prior(LOSSES, []), prior(LOSSES, [Limit(0.0, PRODUCT, 100.0)])
    assert all(np.array_equal(a, b) for a, b in zip(free, limited, strict=True))
    assert free[0][3] > free[0][0]


def test_limits_in_large_units_are_kept_too() -> None:
    parameters = Limit(0.0, [((0, 1), 1e7 * PRODUCT[0][1])], 3e7)
    assert expected(parameters, prior(LOSSES, [parameters])) == pytest.approx(3e7, rel=1e-3)


def test_a_group_that_matters_more_gets_the_wider_choices() -> None:
    p = prior([np.array([0.4, 0.2, 0.1, 0.0]), np.zeros(4)], [Limit(0.0, PRODUCT, 4.0)])
    widths = np.arange(1, 5)
    assert p[0] @ widths > p[1] @ widths + 0.5


def test_losses_are_those_of_the_second_half_relative_to_their_neighbours() -> None:
    rng = np.random.default_rng(0)
    records = []
    for step in range(2000):
        a, b = (int(width) for width in rng.integers(1, 5, 2))
        records.append((Widths((a, b)), 2.0 - step / 2000 - 0.1 * a))
    found = potential_losses(records, CHOICES)
    assert np.diff(found[0]) == pytest.approx([-0.1] * 3, abs=0.02)
    assert found[1] == pytest.approx([0.0] * 4, abs=0.02)
