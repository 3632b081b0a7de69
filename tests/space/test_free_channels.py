"""CafeNet's sets of channels, counted; each is a subnet that runs as the network that is cut from it."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from bcnet.space.discover import discover_space
from bcnet.space.free_channels import Assignments, FreeZone
from bcnet.space.supernet import cut, forward_path
from bcnet.space.width_space import WidthGroup, Widths, WidthSpace


def group(channels: int, step: int = 1, *, ordered: bool = False) -> WidthGroup:
    return WidthGroup("g", channels, tuple(range(step, channels + 1, step)), ("g",), ordered=ordered)


@pytest.mark.parametrize(("offset", "count"), [(0, 1), (1, 2), (2, 6), (3, 20)])
def test_an_offset_takes_that_many_of_twice_as_many_free_channels(offset: int, count: int) -> None:
    zone = FreeZone.of(group(16), 8, offset)
    sets = [tuple(own) for own in zone.sets()]
    assert zone.count == len(set(sets)) == count
    for own in sets:
        assert len(own) == 8
        assert own[: 8 - offset] == tuple(range(8 - offset))  # the base channels
        assert set(own[8 - offset :]) <= set(range(8 - offset, 8 + offset))
    assert sets[0] == tuple(range(8))
    wanted = itertools.combinations(range(8 - offset, 8 + offset), offset)
    assert [own[8 - offset :] for own in sets] == list(wanted)


def test_with_offset_one_a_width_takes_one_of_two_free_channels_as_in_the_papers_figure() -> None:
    assert [tuple(own) for own in FreeZone.of(group(6), 3, 1).sets()] == [(0, 1, 2), (0, 1, 3)]


@pytest.mark.parametrize(
    ("width", "sets"),
    [
        (1, [(0,), (1,), (2,)]),  # no base channels
        (2, [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]),
        (7, [(0, 1, 2, 3, 4, 5, 6), (0, 1, 2, 3, 4, 5, 7), (0, 1, 2, 3, 4, 6, 7)]),
        (8, [(0, 1, 2, 3, 4, 5, 6, 7)]),  # all of them
    ],
)
def test_at_both_ends_of_a_group_there_are_fewer_free_channels(
    width: int, sets: list[tuple[int, ...]]
) -> None:
    assert [tuple(own) for own in FreeZone.of(group(8), width, 2).sets()] == sets


def test_free_channels_move_in_whole_steps_of_the_choices() -> None:
    zone = FreeZone.of(group(32, 8), 16, 1)
    assert [tuple(own) for own in zone.sets()] == [
        tuple(range(16)),
        (*range(8), *range(16, 24)),
    ]
    between = FreeZone.of(group(32, 8), 20, 1)  # not a choice, as some widths that are probed
    assert between.low == 12
    assert all(len(own) == 20 for own in between.sets())


def test_where_a_layer_uses_positions_a_width_is_the_first_channels() -> None:
    assert [tuple(own) for own in FreeZone.of(group(8, ordered=True), 4, 2).sets()] == [(0, 1, 2, 3)]


def test_sets_are_drawn_evenly() -> None:
    zone, rng = FreeZone.of(group(16), 8, 2), np.random.default_rng(0)
    drawn = Counter(tuple(zone.draw(rng)) for _ in range(6000))
    assert drawn.keys() == {tuple(own) for own in zone.sets()}
    assert all(900 < count < 1100 for count in drawn.values())


def space_of(*groups: WidthGroup) -> WidthSpace:
    return WidthSpace("cafenet", groups, {}, {}, (), (), (), ())


def test_all_assignments_are_tried_if_there_are_few_else_different_ones_by_seed() -> None:
    space, own = space_of(group(8), group(8)), Assignments(offset=1)
    widths = Widths((4, 6))
    assert len(own.of(space, widths, 9)) == 4  # 2 * 2
    assert len(set(own.of(space, widths, 3, 7))) == 3
    assert own.of(space, widths, 3, 7) == own.of(space, widths, 3, 7) != own.of(space, widths, 3, 8)
    assert [subnet.widths for subnet in own.of(space, widths, 3, 7)] == [widths] * 3
    assert len(own.of(space, space.largest(), 9)) == 1


@pytest.mark.parametrize("offset", [1, 2])
def test_every_assignment_runs_as_the_network_that_is_cut_from_it(offset: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU()),
        *(nn.Conv2d(8, 12, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)),
    ).eval()
    x = torch.randn(2, 1, 8, 8)
    space = discover_space(model, x, bins=4, channel_multiple=2, method="cafenet")
    for widths in (space.uniform(0.5, 2), space.random(3)):
        found = Assignments(offset).of(space, widths, 6, 0)
        assert len(found) > 1
        for subnet in found:
            small = cut(model, space, subnet)
            assert torch.equal(forward_path(model, space, subnet, x), small(x))
            assert space.params(widths) == sum(p.numel() for p in small.parameters())
