"""Training a binary network in two steps: what is binary in each, what is learnt, and continuing."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bcnet.config import DataConfig
from bcnet.data.dataset import load_data
from bcnet.data.image_data import ImageData
from bcnet.errors import TrainingError
from bcnet.models.binary import BinaryConv2d, RSign
from bcnet.models.reactnet import reactnet_small
from bcnet.training import checkpoints, two_steps
from bcnet.training.checkpoints import CheckpointFile, Snapshot
from bcnet.training.loop import fit_network
from bcnet.training.recipe import Recipe
from bcnet.training.two_steps import PUBLISHED, train_in_two_steps

DATA = DataConfig(image_size=16, train_limit=64, test_limit=40)
RECIPE = Recipe(
    epochs=2, learning_rate=2e-3, optimizer="adam", rate_decay="linear", batch_size=32, weight_decay=1e-5
)


SHORT = replace(RECIPE, batch_size=16)
Trained = tuple[dict[str, torch.Tensor], tuple[list[float], list[float]]]
SHAPE: dict[str, Any] = {"in_channels": 1, "widths": (32,), "depths": (1,)}


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DATA, 0)


def trained(
    data: ImageData, recipe: Recipe = SHORT, file: CheckpointFile | None = None, teacher: int = 1
) -> Trained:
    """The tensors of a network after its training, and the losses; the teacher by the seed of its weights."""
    torch.manual_seed(teacher)
    learnt = reactnet_small(**SHAPE, binary="none")
    torch.manual_seed(0)
    network = reactnet_small(**SHAPE)
    curves = train_in_two_steps(network, learnt, data, recipe, checkpoint=file)
    return network.state_dict(), curves


@pytest.fixture(scope="module")
def undisturbed(data: ImageData) -> Trained:
    return trained(data)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_the_rate_falls_linearly_as_published() -> None:
    assert [PUBLISHED.rate(epoch) for epoch in (0, 64, 128)] == [1.25e-3, 1.25e-3 / 2, 0.0]


def test_the_second_step_begins_from_the_first_with_binary_weights_and_no_decay(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
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


def test_layers_that_are_real_in_the_network_stay_real_in_both_steps(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watched(model: nn.Module, *args: object, **named: object) -> list[float]:
        block = model[1][0]
        seen.append([own.binary for own in (block.sign1, block.conv1, block.sign2, block.conv2)])
        return []

    monkeypatch.setattr(two_steps, "fit_network", watched)
    teacher = reactnet_small(**SHAPE, binary="none")
    train_in_two_steps(reactnet_small(**SHAPE, binary=["1.0.conv2"]), teacher, data, RECIPE)
    assert seen == [[False, False, True, False], [False, False, True, True]]


def test_a_network_without_binary_layers_is_refused(data: ImageData) -> None:
    with pytest.raises(TrainingError, match="Sequential has no binary layers"):
        train_in_two_steps(reactnet_small(1, binary=[]), nn.Identity(), data, RECIPE)
    with pytest.raises(TrainingError, match="Sequential has no binary layers"):
        train_in_two_steps(nn.Sequential(nn.Flatten(), nn.Linear(256, 10)), nn.Identity(), data, RECIPE)


def test_the_teacher_alone_is_learnt_from_and_labels_take_no_part(
    data: ImageData, undisturbed: Trained
) -> None:
    others = replace(data.train, labels=data.train.labels.roll(1))
    assert not torch.equal(others.labels, data.train.labels)
    whole, curves = undisturbed
    wrong, wrong_curves = trained(replace(data, train=others))
    assert same(whole, wrong)
    assert curves == wrong_curves
    assert not same(whole, trained(data, teacher=2)[0])


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    data: ImageData, undisturbed: Trained
) -> None:
    whole, curves = undisturbed
    again, curves_again = trained(data)
    assert same(whole, again)
    assert curves == curves_again
    assert not same(whole, trained(data, replace(SHORT, seed=1))[0])


@dataclass(frozen=True)
class Killed(CheckpointFile):
    """A training that is killed after the checkpoint of this step of the two, epoch, and step within it."""

    at: tuple[str, int, int] = ("", 0, 0)

    def save(self, snapshot: Snapshot) -> None:
        super().save(snapshot)
        if (self.path.stem, snapshot.epoch, snapshot.step) == self.at:
            raise KeyboardInterrupt


def killed(data: ImageData, file: CheckpointFile, at: tuple[str, int, int]) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(data, file=Killed(file.path, file.made_from, at=at))


@pytest.mark.parametrize(
    ("at", "run"),
    [
        (("binary-step-1", 1, 0), (1, 2)),
        (("binary-step-1", 2, 0), (0, 2)),  # at the end of the first step
        (("binary-step-2", 0, 1), (0, 2)),
        (("binary-step-2", 1, 0), (0, 1)),
        (("binary-step-2", 2, 0), (0, 0)),
    ],
    ids=str,
)
def test_a_training_that_was_killed_in_either_step_ends_to_the_last_bit_as_one_that_was_not(
    data: ImageData,
    undisturbed: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: tuple[str, int, int],
    run: tuple[int, int],
) -> None:
    monkeypatch.setattr(checkpoints, "EVERY_S", 0.0)  # after each step
    monkeypatch.setattr(checkpoints, "SHARE", math.inf)
    file = CheckpointFile(tmp_path / "binary.safetensors", {"data": data.digest()})
    killed(data, file, at)
    whole, losses = undisturbed
    continued, found = trained(data, file=file)
    assert same(continued, whole)
    assert tuple(map(len, found)) == run
    assert found == tuple(curve[len(curve) - own :] for curve, own in zip(losses, run, strict=True))


@pytest.mark.parametrize(
    ("change", "begins"),
    [
        ({"recipe": replace(SHORT, learning_rate=1e-3)}, (2, 2)),
        ({"teacher": 2}, (2, 2)),
        ({}, (0, 1)),
    ],
    ids=["another rate", "another teacher", "the same"],
)
def test_only_checkpoints_of_the_same_training_are_continued(
    data: ImageData, tmp_path: Path, change: dict[str, Any], begins: tuple[int, int]
) -> None:
    file = CheckpointFile(tmp_path / "binary.safetensors", {"data": data.digest()})
    killed(data, file, ("binary-step-2", 1, 0))
    found, losses = trained(data, file=file, **change)
    assert tuple(map(len, losses)) == begins
    assert same(found, trained(data, **change)[0])


def test_checkpoints_of_a_network_with_other_weights_are_not_continued(
    data: ImageData, tmp_path: Path
) -> None:
    file = CheckpointFile(tmp_path / "binary.safetensors", {"data": data.digest()})
    killed(data, file, ("binary-step-2", 1, 0))
    torch.manual_seed(1)
    teacher = reactnet_small(**SHAPE, binary="none")
    network = reactnet_small(**SHAPE)
    assert tuple(map(len, train_in_two_steps(network, teacher, data, SHORT, checkpoint=file))) == (2, 2)
