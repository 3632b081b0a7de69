"""Widths at one share for all groups, or at shares by their importance."""

import numpy as np
import pytest

from bcnet.errors import BudgetError
from bcnet.methods.adapruner import allocate_by_scales
from bcnet.methods.uniform import allocate_uniformly
from bcnet.space.width_space import Widths
from tests.methods.tiny import ONES, product_bound, space_of

SPACE = space_of([ONES, (2, 4, 6, 8)])


def cost(widths: Widths) -> float:
    return float(sum(widths))


@pytest.mark.parametrize(("limit", "widths"), [(12, (4, 8)), (11, (3, 6)), (6, (2, 4)), (5.9, (1, 2))])
def test_the_largest_share_that_fits_is_the_same_for_all(limit: float, widths: tuple[int, ...]) -> None:
    assert allocate_uniformly(SPACE, [], cost, limit) == widths


def test_a_wider_network_that_is_faster_is_found() -> None:
    slow = {(3, 6): 20.0}
    assert allocate_uniformly(SPACE, [], lambda w: slow.get(w, 1.0 + (w == (4, 8))), 1) == (2, 4)
    assert allocate_uniformly(SPACE, [], lambda w: slow.get(w, 1.0), 1) == (4, 8)


def test_groups_keep_shares_by_their_mean_importance() -> None:
    importance = [np.full(4, 1.0), np.full(8, 0.5)]
    # At t = 1 the second group keeps half; at t = 0.5 they keep 2 of 4 and a quarter of 8.
    assert allocate_by_scales(SPACE, importance, cost, 8) == (4, 4)
    assert allocate_by_scales(SPACE, importance, cost, 4.5) == (2, 2)
    assert allocate_by_scales(SPACE, importance, cost, 12) == (4, 8)


def test_a_group_of_no_importance_is_the_narrowest() -> None:
    assert allocate_by_scales(SPACE, [np.zeros(4), np.ones(8)], cost, 9) == (1, 8)
    assert allocate_by_scales(SPACE, [np.zeros(4), np.zeros(8)], cost, 6) == (2, 4)


def test_bounds_hold_too() -> None:
    assert allocate_uniformly(SPACE, [], cost, 12, [product_bound(2, [(0, 1)], 17)]) == (2, 4)


def test_what_no_network_of_the_kind_meets_is_refused() -> None:
    with pytest.raises(BudgetError, match=r"no network meets 2\.000 ms: the fastest takes 3\.000 ms \("):
        allocate_uniformly(SPACE, [], cost, 2)
    # The fastest has its groups at different shares.
    with pytest.raises(
        BudgetError, match=r"no uniformly narrowed network meets 2\.000 ms: the fastest takes"
    ):
        allocate_uniformly(SPACE, [], lambda w: 1.0 if w == (1, 4) else 3.0, 2)
