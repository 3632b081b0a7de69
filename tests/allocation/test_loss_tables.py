"""Tables of losses: what is measured, kept and fitted; sums of what is dropped."""

import numpy as np
import pytest
import torch

from bcnet.allocation.loss_tables import importance_tables, loss_tables, monotone, unusable
from bcnet.errors import SpaceError
from bcnet.space.width_space import Widths
from tests.methods.tiny import space_of

SPACE = space_of([(1, 2, 3), (2, 4)])
LOSSES = {(3, 4): 1.0, (2, 4): 1.5, (1, 4): 1.25, (3, 2): 0.75}


def test_each_group_is_narrowed_alone_and_the_losses_are_relative_and_monotone() -> None:
    asked: list[Widths] = []

    def loss_of(widths: Widths) -> float:
        asked.append(widths)
        return LOSSES[widths]

    found = loss_tables(SPACE, loss_of)
    assert asked == [(3, 4), (1, 4), (2, 4), (3, 2)]
    assert [own.tolist() for own in found.measured] == [[0.25, 0.5, 0.0], [-0.25, 0.0]]
    # 1 and 2 channels are pooled, and what was better than the whole network is as good as it.
    assert [own.tolist() for own in found.losses] == [[0.375, 0.375, 0.0], [0.0, 0.0]]
    assert (found.around, found.loss) == ((3, 4), 1.0)


def test_what_is_known_is_not_asked_for_and_what_is_new_is_handed_out() -> None:
    saved: dict[Widths, float] = {}

    def interrupted(widths: Widths) -> float:
        if len(saved) == 2:
            raise KeyboardInterrupt
        return LOSSES[widths]

    with pytest.raises(KeyboardInterrupt):
        loss_tables(SPACE, interrupted, on_score=saved.__setitem__)
    assert saved == {(3, 4): 1.0, (1, 4): 1.25}
    asked: list[Widths] = []
    found = loss_tables(SPACE, lambda w: asked.append(w) or LOSSES[w], known=saved)
    assert asked == [(2, 4), (3, 2)]
    assert found.measured[0].tolist() == [0.25, 0.5, 0.0]


def test_around_other_widths_wider_choices_gain() -> None:
    losses = {(2, 4): 1.0, (1, 4): 1.5, (3, 4): 0.75, (2, 2): 2.0}
    found = loss_tables(SPACE, losses.__getitem__, around=Widths((2, 4)))
    assert [own.tolist() for own in found.losses] == [[0.5, 0.0, -0.25], [1.0, 0.0]]


def test_a_width_whose_loss_is_not_finite_costs_more_than_any_other() -> None:
    losses = LOSSES | {(1, 4): float("nan"), (3, 2): 3.0}
    found = loss_tables(SPACE, losses.__getitem__)
    assert np.isnan(found.measured[0][0])
    assert found.losses[0].tolist() == [20.0, 0.5, 0.0]


def test_a_network_without_a_finite_loss_is_refused() -> None:
    with pytest.raises(SpaceError, match="the network that is narrowed has a loss of nan; train it first"):
        loss_tables(SPACE, lambda _: float("nan"))


def test_what_is_not_finite_costs_something_even_where_no_other_loss_does() -> None:
    whole = SPACE.largest()
    found = loss_tables(SPACE, lambda widths: 0.0 if widths == whole else float("inf"))
    assert [own.tolist() for own in found.losses] == [[10.0, 10.0, 0.0], [10.0, 0.0]]
    assert unusable([0.5, float("nan"), -2.0], base=1.0) == 20.0


@pytest.mark.parametrize("zero", range(5))
def test_the_fit_falls_and_is_zero_where_it_has_to_be(zero: int) -> None:
    rng = np.random.default_rng(zero)
    fitted = monotone(rng.normal(size=5), zero)
    assert fitted[zero] == 0
    assert (np.diff(fitted) <= 1e-12).all()
    falling = np.sort(rng.normal(size=5))[::-1]
    assert monotone(falling - falling[zero], zero).tolist() == pytest.approx(falling - falling[zero])


def test_the_least_important_channels_are_dropped_first() -> None:
    importance = (torch.tensor([3.0, 1.0, 2.0]), np.array([0.5, 0.25, 4.0, 1.0]))
    assert [own.tolist() for own in importance_tables(SPACE, importance)] == [[3.0, 1.0, 0.0], [0.75, 0.0]]


def test_channels_of_a_unit_go_together_and_ordered_ones_from_the_end() -> None:
    importance = [torch.tensor([9.0, 0.0, 1.0, 1.0, 5.0, 5.0])]
    assert importance_tables(space_of([(2, 4, 6)], unit=2), importance)[0].tolist() == [11.0, 2.0, 0.0]
    assert importance_tables(space_of([(2, 4, 6)], ordered=True), importance)[0].tolist() == [12.0, 10.0, 0.0]


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        ([np.ones(3)], "importances of 1 group given, the space has 2"),
        ([np.ones(3), np.ones(3)], r"the importance of group 'g1' has the shape \(3,\), not \(4,\)"),
        ([np.ones(3), np.full(4, np.nan)], "an importance of group 'g1' is negative or not finite"),
    ],
)
def test_importances_that_do_not_fit_are_refused(importance: list[np.ndarray], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        importance_tables(SPACE, importance)
