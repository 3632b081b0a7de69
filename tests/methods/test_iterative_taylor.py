"""Channels of the least importance in the whole network go first, and importance is calculated again."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from bcnet.allocation.limits import Limits
from bcnet.errors import BudgetError
from bcnet.methods import iterative_taylor
from bcnet.methods.iterative_taylor import relative, remove_iteratively
from bcnet.space.subnet import Subnet
from bcnet.space.width_space import Widths
from tests.methods.tiny import ONES, product_bound, space_of

SPACE = space_of([ONES, (2, 4, 6, 8)])
FIRST, SECOND = torch.tensor([8.0, 1.0, 4.0, 3.0]), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])


def cost(widths: Widths) -> float:
    return float(sum(widths))


class Importance:
    """The importance of whole groups, 0 where a channel is gone; which are left in each round."""

    def __init__(self, first: Tensor = FIRST, second: Tensor = SECOND) -> None:
        self.of, self.left = (first, second), list[list[list[int]]]()

    def __call__(self, subnet: Subnet, number: int) -> list[Tensor]:
        self.left.append([list(channels) for channels in subnet.channels])
        assert number == len(self.left)
        found = [torch.zeros_like(own) for own in self.of]
        for values, own, left in zip(found, self.of, self.left[-1], strict=True):
            values[left] = own[left]
        return found


def test_importance_is_relative_to_the_mean_of_the_channels_that_are_left() -> None:
    first, second, none = relative(
        [torch.tensor([0.0, 1.0, 3.0]), torch.ones(2), torch.zeros(2)],
        Widths((2, 2, 2)),
    )
    assert first.tolist() == [0.0, 0.5, 1.5]
    assert second.tolist() == [1.0, 1.0]
    assert none.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("limit", "widths"),
    [
        (12, (4, 8)),
        (11, (3, 8)),  # 1 of a mean of 4
        (10, (3, 6)),  # (1 + 2) / 2 of a mean of 4.5, before 3 of a mean of 4
        (8, (2, 6)),
    ],
)
def test_the_channels_of_the_least_relative_importance_go_first(limit: float, widths: Sequence[int]) -> None:
    assert remove_iteratively(Limits(SPACE, cost, limit), Importance()) == widths


def test_importance_is_calculated_again_for_the_channels_that_are_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(iterative_taylor, "STEP", 1 / 12)  # one channel
    importance = Importance()
    assert remove_iteratively(Limits(SPACE, cost, 8), importance) == (2, 6)
    assert importance.left == [
        [[0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7]],
        [[0, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7]],
        [[0, 2, 3], [2, 3, 4, 5, 6, 7]],
    ]


def test_bounds_hold_too() -> None:
    limits = Limits(SPACE, cost, 12, [product_bound(2, [(0, 1)], 17)])
    assert remove_iteratively(limits, Importance()) == (2, 6)


def test_the_fastest_network_is_taken_where_only_that_is_fast_enough() -> None:
    fast = {(3, 2): 1.0}
    assert remove_iteratively(Limits(SPACE, lambda w: fast.get(w, 9.0), 2), Importance()) == (3, 2)


def test_what_no_network_meets_is_refused() -> None:
    with pytest.raises(BudgetError, match=r"no network meets 2\.000 ms: the fastest takes 3\.000 ms"):
        remove_iteratively(Limits(SPACE, cost, 2), Importance())
