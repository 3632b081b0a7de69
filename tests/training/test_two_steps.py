"""Training a binary network in two steps: what is binary in each, and whose outputs are learnt."""

from typing import Any

import pytest
import torch
from torch import nn

from bcnet.config import DataConfig
from bcnet.data.dataset import load_data
from bcnet.errors import TrainingError
from bcnet.models.binary import BinaryConv2d, RSign
from bcnet.models.reactnet import reactnet_small
from bcnet.training import two_steps
from bcnet.training.loop import fit_network
from bcnet.training.recipe import Recipe
from bcnet.training.two_steps import PUBLISHED, train_in_two_steps

DATA = DataConfig(image_size=16, train_limit=64, test_limit=40)
RECIPE = Recipe(
    epochs=2, learning_rate=2e-3, optimizer="adam", rate_decay="linear", batch_size=32, weight_decay=1e-5
)


def test_the_rate_falls_linearly_as_published() -> None:
    assert [PUBLISHED.rate(epoch) for epoch in (0, 64, 128)] == [1.25e-3, 1.25e-3 / 2, 0.0]


def test_the_second_step_begins_from_the_first_with_binary_weights_and_no_decay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def watched(
        model: nn.Module, data: object, recipe: Recipe, *args: object, **named: object
    ) -> list[float]:
        layers = [module.binary for module in model.modules() if isinstance(module, RSign | BinaryConv2d)]
        start = model[1][0].conv1.weight.detach().clone()
        curve = fit_network(model, data, recipe, *args, **named)  # type: ignore[arg-type]
        seen.append((layers[:2], recipe.weight_decay, start, model[1][0].conv1.weight.detach().clone()))
        return curve

    monkeypatch.setattr(two_steps, "fit_network", watched)
    data = load_data(DATA, 0)
    torch.manual_seed(0)
    student = reactnet_small(in_channels=1, widths=(32, 64), depths=(1, 1))
    teacher = reactnet_small(in_channels=1, widths=(32, 64), depths=(1, 1), binary="none")
    first, second = train_in_two_steps(student, teacher, data, RECIPE)
    assert [own[:2] for own in seen] == [([True, False], 1e-5), ([True, True], 0.0)]
    assert torch.equal(seen[1][2], seen[0][3])
    assert not torch.equal(seen[1][2], seen[1][3])
    assert (len(first), len(second)) == (2, 2)
    assert first[1] < first[0]
    assert not student.training


def test_layers_that_are_real_in_the_network_stay_real_in_both_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watched(model: nn.Module, *args: object, **named: object) -> list[float]:
        block = model[1][0]
        seen.append([own.binary for own in (block.sign1, block.conv1, block.sign2, block.conv2)])
        return []

    monkeypatch.setattr(two_steps, "fit_network", watched)
    shape: dict[str, Any] = {"in_channels": 1, "widths": (32,), "depths": (1,)}
    teacher = reactnet_small(**shape, binary="none")
    train_in_two_steps(reactnet_small(**shape, binary=["1.0.conv2"]), teacher, load_data(DATA, 0), RECIPE)
    assert seen == [[False, False, True, False], [False, False, True, True]]


def test_a_network_without_binary_layers_is_refused() -> None:
    data = load_data(DATA, 0)
    with pytest.raises(TrainingError, match="Sequential has no binary layers"):
        train_in_two_steps(reactnet_small(1, binary=[]), nn.Identity(), data, RECIPE)
    with pytest.raises(TrainingError, match="Sequential has no binary layers"):
        train_in_two_steps(nn.Sequential(nn.Flatten(), nn.Linear(256, 10)), nn.Identity(), data, RECIPE)
