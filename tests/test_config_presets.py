"""Presets: the settings of the authors' code, which what is given replaces."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from bcnet.config import Config, TrainConfig, assigned, load_config
from bcnet.config.presets import PRESETS
from bcnet.errors import ConfigError
from bcnet.space.discover import discover_space
from bcnet.space.width_space import WidthSpace
from bcnet.training.step_plan import StepPlan

SCORED = 3200  # networks in the search of either version, at most


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def preset(name: str) -> Config:
    return load_config(None, assigned=assigned([f"preset={name}"]))


def space_of(config: Config, channels: int) -> WidthSpace:
    own = config.space
    model = nn.Sequential(nn.Conv2d(1, channels, 1), nn.ReLU(), nn.Conv2d(channels, 2, 1))
    return discover_space(
        model,
        torch.zeros(1, 1, 4, 4),
        bins=own.bins,
        channel_multiple=own.channel_multiple or 8,
        min_width=own.min_width,
        method=config.train.method,
    )


def test_bcnet_has_twenty_bins_and_its_complements() -> None:
    space = space_of(preset("bcnet-paper"), 40)
    (group,) = space.groups
    assert group.choices == tuple(range(2, 41, 2))
    assert group.extra == 0
    assert [space.rule.complement(group.choices, own) for own in (2, 14, 38)] == [38, 26, 2]


def test_bcnetv2_has_the_bins_from_6_to_20_and_as_many_channels_more_as_the_narrowest() -> None:
    space = space_of(preset("bcnetv2-paper"), 40)
    (group,) = space.groups
    assert group.choices == tuple(range(12, 41, 2))
    assert group.supernet_channels == 40 * 26 // 20
    assert all(space.rule.complement(group.choices, own) == 52 - own for own in group.choices)


def test_bcnet_trains_the_whole_network_after_each_width_and_its_complement() -> None:
    plan = StepPlan.of(preset("bcnet-paper").train)
    assert [plan.drawing(number) for number in range(6)] == [0, 1, None, 2, 3, None]
    without = StepPlan.of(preset("bcnet-paper").train.model_copy(update={"complementary": False}))
    assert [without.drawing(number) for number in range(4)] == [0, None, 1, None]


def test_bcnetv2_trains_drawn_widths_and_their_complements_alone() -> None:
    plan = StepPlan.of(preset("bcnetv2-paper").train)
    assert (plan.interleaved, plan.widest, plan.narrowest, plan.complementary) == (False, False, False, True)


@pytest.mark.parametrize(("name", "population"), [("bcnet-paper", 40), ("bcnetv2-paper", 80)])
def test_searches_score_as_many_networks_as_the_authors_do(name: str, population: int) -> None:
    search = preset(name).search
    assert (search.method, search.population) == ("evolution", population)
    assert search.population * (search.generations + 1) == SCORED


def test_mutations_of_bcnetv2_draw_each_width_with_a_probability_of_a_tenth_from_the_prior() -> None:
    search = preset("bcnetv2-paper").search
    assert (search.mutation, search.mutate_from) == (0.1, "prior")


def test_what_is_given_replaces_the_presets_value_wherever_it_is_given() -> None:
    Path("bcnet.toml").write_text('preset = "bcnet-paper"\n[train]\nstep = "plain"\nepochs = 3\n')
    config = load_config(None, assigned={"search": {"generations": 2}})
    assert (config.train.step, config.train.epochs, config.train.complementary) == ("plain", 3, True)
    assert (config.search.population, config.search.generations) == (40, 2)
    built = Config(preset="bcnet-paper", train=TrainConfig(epochs=3))
    assert (built.train.step, built.train.epochs) == ("interleaved", 3)


def test_without_a_preset_nothing_changes_and_a_configuration_is_read_back_as_it_is() -> None:
    assert Config.model_validate({}) == Config()
    for name in PRESETS:
        config = preset(name)
        assert Config.model_validate(config.model_dump(exclude_unset=True)) == config


def test_a_preset_that_does_not_exist_is_refused_with_those_that_do() -> None:
    Path("bcnet.toml").write_text('preset = "bcnet"\n')
    with pytest.raises(ConfigError, match=re.escape("preset: input should be 'bcnet-paper' or 'bcnetv2-pap")):
        load_config(None)
