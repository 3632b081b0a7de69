"""How often each channel is trained, counted on the slices that the sampler really takes."""

import numpy as np
import pytest

from bcnet.registry import SUPERNETS
from bcnet.space.channel_rules import WidthSampler
from bcnet.space.subnet import Subnet
from bcnet.space.width_space import WidthGroup, Widths, WidthSpace


def space_of(method: str, channels: int, choices: tuple[int, ...]) -> WidthSpace:
    group = WidthGroup("g", channels, choices, ("g",), SUPERNETS[method].extra(choices))
    return WidthSpace(method, (group,), {}, {}, (), (), (), ())


def counts(space: WidthSpace, steps: int, complementary: bool) -> np.ndarray:
    group = space.groups[0]
    served = np.zeros(group.supernet_channels, dtype=int)
    sampler = WidthSampler(space.rule, (group.choices,), seed=3, complementary=complementary)
    for step in range(steps):
        for side in space.rule.sides:
            (own,) = Subnet.at(space, Widths(sampler.at(step)), side).channels
            served[list(own)] += 1
    return served


@pytest.mark.parametrize("channels", [1, 2, 7, 16, 31])
def test_bcnet_over_all_widths_serves_every_channel_l_plus_1_times(channels: int) -> None:
    space = space_of("bcnet", channels, tuple(range(1, channels + 1)))
    assert set(counts(space, channels, complementary=False)) == {channels + 1}


@pytest.mark.parametrize("channels", [7, 16, 31])
def test_unilateral_serves_channel_i_l_minus_i_times(channels: int) -> None:
    space = space_of("unilateral", channels, tuple(range(1, channels + 1)))
    assert counts(space, channels, complementary=True).tolist() == [channels - i for i in range(channels)]


@pytest.mark.parametrize(("channels", "narrowest"), [(7, 2), (16, 5), (31, 31), (12, 1)])
def test_bcnetv2_over_all_widths_serves_every_channel_l_minus_b_plus_1_times(
    channels: int, narrowest: int
) -> None:
    space = space_of("bcnetv2", channels, tuple(range(narrowest, channels + 1)))
    size = channels - narrowest + 1
    assert space.groups[0].supernet_channels == channels + narrowest
    assert set(counts(space, size, complementary=False)) == {size}
    assert set(counts(space, 2 * size, complementary=True)) == {2 * size}


@pytest.mark.parametrize("method", ["bcnet", "bcnetv2"])
@pytest.mark.parametrize(("channels", "bins", "multiple"), [(20, 8, 8), (31, 6, 8), (97, 10, 1), (144, 8, 8)])
def test_rounded_choices_train_all_channels_equally_with_complements(
    method: str, channels: int, bins: int, multiple: int
) -> None:
    choices = SUPERNETS[method].choices(channels, bins, multiple, minimum=max(1, channels // 8))
    size = len(choices)
    # Twice the square of the choices: every permutation is gone through, also those for widths without
    # a complement.
    served = counts(space_of(method, channels, choices), 2 * size * size, complementary=True)
    assert len(set(served)) == 1


@pytest.mark.parametrize("method", ["bcnet", "bcnetv2", "cafenet", "psenet", "unilateral"])
@pytest.mark.parametrize("channels", [8, 17, 24, 64, 100, 1280])
@pytest.mark.parametrize("bins", [2, 3, 8, 11])
def test_choices_ascend_to_the_full_width_and_are_closed_under_the_complement(
    method: str, channels: int, bins: int
) -> None:
    rule = SUPERNETS[method]
    choices = rule.choices(channels, bins, 8, minimum=channels // 8)
    assert choices == tuple(sorted(set(choices)))
    assert choices[-1] == channels
    assert choices[0] >= 1
    assert len(choices) <= bins + 1
    complements = [rule.complement(choices, width) for width in choices]
    assert all(width in choices for width in complements if width is not None)
