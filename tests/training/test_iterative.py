"""Importance of the channels that are left, calculated in the network that has only these."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from bcnet.config import DataConfig
from bcnet.data.dataset import load_data
from bcnet.data.image_data import ImageData
from bcnet.space.discover import discover_space
from bcnet.space.importance import kept_channels
from bcnet.space.subnet import Subnet
from bcnet.space.supernet import Supernet
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.training import iterative
from bcnet.training.gradient_importance import gate_importances
from bcnet.training.iterative import BATCHES, IterativeImportance
from bcnet.training.recipe import Recipe

RECIPE = Recipe(epochs=1, learning_rate=0.1, batch_size=8)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig(image_size=8, train_limit=100, shift=0), 0)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)),
    )


@pytest.fixture(scope="module")
def space(model: nn.Module) -> WidthSpace:
    return discover_space(model, torch.zeros(1, 1, 8, 8), bins=2, channel_multiple=1, method="bcnet")


def whole(space: WidthSpace) -> Subnet:
    return Subnet.at(space, space.largest())


@pytest.fixture
def importance(model: nn.Module, space: WidthSpace, data: ImageData) -> IterativeImportance:
    return IterativeImportance(Supernet.of(model, space), data, RECIPE)


def test_of_all_channels_it_is_taylors_on_the_rounds_own_images(
    importance: IterativeImportance, model: nn.Module, space: WidthSpace, data: ImageData
) -> None:
    expected = gate_importances(model, space, data, replace(RECIPE, seed=3), BATCHES).taylor
    found = importance(whole(space), 3)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_what_others_are_worth_changes_when_channels_are_removed(
    importance: IterativeImportance, space: WidthSpace
) -> None:
    before = importance(whole(space), 1)
    first, second = importance(Subnet.keeping(space, [[0, 2, 3, 7], range(8)]), 1)
    assert first[[1, 4, 5, 6]].eq(0).all()
    assert first[[0, 2, 3, 7]].gt(0).all()
    assert not torch.allclose(second, before[1], rtol=0.1)


def test_channels_go_in_rounds_an_equal_part_of_each_group_in_every_one(
    importance: IterativeImportance, space: WidthSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iterative, "ROUNDS", 2)
    kept = importance.kept(Widths((4, 8)))
    half = kept_channels(space, Widths((6, 8)), importance(whole(space), 1))
    expected = kept_channels(space, Widths((4, 8)), importance(half, 2))
    assert kept == expected
    assert set(kept.channels[0]) < set(half.channels[0])
    assert kept.channels[1] == range(8)


def test_the_whole_network_keeps_all_channels_without_a_calculation(
    importance: IterativeImportance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iterative, "gate_importances", None)
    assert importance.kept(Widths((8, 8))).channels == (range(8), range(8))
