"""Widths at equal steps of a cost: as many as the cost asks for, at the ends of stairs, with complements."""

import numpy as np
import pytest
import torch
from torch import nn

from bcnet.space.bins import FINEST, binned, macs_costs
from bcnet.space.discover import discover_space
from bcnet.space.width_space import WidthGroup, WidthSpace


def space_of(method: str, *sizes: int) -> WidthSpace:
    groups = (
        WidthGroup(f"g{number}", size, tuple(range(1, size + 1)), (f"g{number}",))
        for number, size in enumerate(sizes)
    )
    return WidthSpace(method, tuple(groups), {}, {}, (), (), (), ())


def line(size: int, slope: float) -> np.ndarray:
    return 5.0 + slope * np.arange(1, size + 1)


@pytest.mark.parametrize("method", ["unilateral", "cafenet"])
def test_groups_have_choices_in_proportion_to_what_they_cost(method: str) -> None:
    space = space_of(method, 61, 61)
    found = binned(space, [line(61, 3.0), line(61, 1.0)], bins=7)
    steps = [len(group.choices) - 1 for group in found.groups]
    assert steps == [9, 3]  # 12 in all, as 6 of each
    first, second = (np.array(group.choices) for group in found.groups)
    assert np.abs(np.diff(first) * 3.0 - 20.0).max() <= 3.0  # a step costs the same in both, but for rounding
    assert np.diff(second).tolist() == [20, 20, 20]
    assert all(group.choices[-1] == 61 for group in found.groups)


def test_the_widest_of_equal_cost_is_chosen_and_a_drop_in_cost_is_no_step() -> None:
    stairs = np.repeat([1.0, 2.0, 3.0, 4.0], 4)
    stairs[5] = 1.9  # measured a little faster than the narrower one
    found = binned(space_of("unilateral", 16), [stairs], bins=4)
    assert found.groups[0].choices == (4, 8, 12, 16)


def test_a_group_that_costs_nothing_keeps_its_full_width_and_the_narrowest() -> None:
    found = binned(space_of("unilateral", 16, 16), [np.ones(16), line(16, 1.0)], bins=4)
    assert found.groups[0].choices == (1, 16)
    assert len(found.groups[1].choices) == 7  # the steps of both


@pytest.mark.parametrize("method", ["bcnet", "bcnetv2"])
def test_choices_are_closed_under_the_complement(method: str) -> None:
    costs = [np.cumsum(np.linspace(1, 3, 32)), np.cumsum(np.linspace(3, 1, 48))]
    space = binned(space_of(method, 32, 48), costs, bins=8)
    for group in space.groups:
        complements = [space.rule.complement(group.choices, width) for width in group.choices]
        assert all(own in group.choices for own in complements if own is not None)
        assert group.extra == space.rule.extra(group.choices)
        assert 6 <= len(group.choices) <= 11


def test_multiply_accumulates_are_counted_with_one_group_narrowed() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 32, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3)),
    )
    space = discover_space(
        model, torch.zeros(1, 1, 8, 8), bins=FINEST, channel_multiple=2, method="unilateral"
    )
    first, second = macs_costs(space)
    narrow, wide = (np.array(group.choices) for group in space.groups)
    assert narrow.tolist() == [2, 4, 6, 8]
    # Weights of 3 x 3 at 36 and 16 places, and those of the head.
    assert first.tolist() == (9 * 36 * narrow + 9 * 16 * narrow * 32 + 32 * 3).tolist()
    assert second.tolist() == (9 * 36 * 8 + 9 * 16 * 8 * wide + wide * 3).tolist()
