"""Distillation: its loss in numbers, which teachers fit, and a killed training with adapters."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bcnet.config import DataConfig
from bcnet.data.dataset import load_data
from bcnet.data.image_data import ImageData
from bcnet.errors import TrainingError
from bcnet.training.checkpoints import CheckpointFile, Snapshot
from bcnet.training.distill import Distillation, relative_error, softened_divergence
from bcnet.training.loop import fit_network
from bcnet.training.recipe import Recipe
from bcnet.training.task import Task

RECIPE = Recipe(epochs=3, learning_rate=0.05, batch_size=16, warmup_epochs=1)


class Net(nn.Module):
    """Two convolutions of so many channels, and a classifier."""

    def __init__(self, channels: int, classes: int = 10, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Conv2d(1, channels, 3, 2), nn.BatchNorm2d(channels), nn.ReLU())
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x).mean((2, 3)))
        return out


class Several(Net):
    """Gives a pair of maps in training mode and one tensor in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.body(x)
        out = (maps.mean(1), maps.amax(1)) if self.training else maps.mean((1, 2, 3))
        return out  # type: ignore[return-value]


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig(image_size=16, train_limit=60, test_limit=40), 0)


@pytest.fixture
def batch(data: ImageData) -> tuple[Tensor, Tensor]:
    inputs, targets = next(data.batches(data.train.take(torch.arange(8)), 8))
    return inputs, targets


def test_the_divergence_is_that_of_the_softened_probabilities_times_the_square_of_the_temperature() -> None:
    # At temperature 2, logits (2 ln 3, 0) give 3/4 and 1/4; (0, 0) give 1/2 and 1/2.
    wanted, given = torch.tensor([[2 * math.log(3), 0.0]]), torch.zeros(1, 2)
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert float(softened_divergence(given, wanted, 2.0)) == pytest.approx(expected, rel=1e-6)
    assert float(softened_divergence(wanted, wanted, 2.0)) == pytest.approx(0, abs=1e-7)
    maps = softened_divergence(given[..., None].expand(1, 2, 5), wanted[..., None].expand(1, 2, 5), 2.0)
    assert float(maps) == pytest.approx(expected, rel=1e-6)  # a mean over positions


def test_the_loss_has_the_teachers_share_and_the_labels_the_rest(batch: tuple[Tensor, Tensor]) -> None:
    student, teacher = Net(4), Net(8, seed=1)
    inputs, targets = batch
    objective = Distillation(teacher, 4.0, 0.9).objective(student, RECIPE, inputs)
    student.eval()
    own, wanted = student(inputs), teacher(inputs)
    cross_entropy = nn.functional.cross_entropy(own, targets)
    expected = 0.9 * softened_divergence(own, wanted, 4.0) + 0.1 * cross_entropy
    found = float(objective.loss(student, inputs, targets, RECIPE).detach())
    assert found == pytest.approx(float(expected.detach()))


def test_a_loss_of_ones_own_is_added_to_the_relative_error_of_the_outputs(
    batch: tuple[Tensor, Tensor],
) -> None:
    student, teacher = Net(4), Net(8, seed=1)
    inputs, targets = batch
    recipe = Recipe(epochs=1, learning_rate=0.1, task=Task(loss=lambda outputs, targets: outputs.mean()))
    objective = Distillation(teacher, weight=0.5).objective(student, recipe, inputs)
    student.eval()
    own, wanted = student(inputs), teacher(inputs)
    expected = own.mean() + 0.5 * (own - wanted).square().mean() / wanted.var(correction=0)
    found = float(objective.loss(student, inputs, targets, recipe).detach())
    assert found == pytest.approx(float(expected.detach()))


def test_features_are_compared_through_adapters_that_are_trained_and_not_kept(data: ImageData) -> None:
    student, teacher = Net(4), Net(8, seed=1)
    objective = Distillation(teacher, features=("body",), feature_weight=1.0).objective(
        student, RECIPE, data.example(2)
    )
    ((name, adapter),) = objective.parameters.items()
    assert name == "adapter:body.weight"
    assert adapter.shape == (8, 4, 1, 1)
    before, keys = adapter.detach().clone(), student.state_dict().keys()
    fit_network(student, data, RECIPE, "training", objective=objective)
    assert not torch.equal(adapter.detach(), before)
    assert student.state_dict().keys() == keys


def test_the_teacher_and_the_students_statistics_stay_as_they_are(data: ImageData) -> None:
    student, teacher = Net(4), Net(8, seed=1)
    own = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    wanted = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    objective = Distillation(teacher).objective(student, RECIPE, data.example(2))
    assert all(torch.equal(own[name], tensor) for name, tensor in student.state_dict().items())
    fit_network(student, data, RECIPE, "training", objective=objective)
    assert all(torch.equal(wanted[name], tensor) for name, tensor in teacher.state_dict().items())


def test_a_student_approaches_its_teacher(data: ImageData) -> None:
    student, teacher = Net(8), Net(8, seed=1)
    inputs = data.example(20)
    before = float(relative_error(student.eval()(inputs), teacher.eval()(inputs)).detach())
    recipe = Recipe(epochs=20, learning_rate=0.1, batch_size=16)
    objective = Distillation(teacher, weight=1.0).objective(student, recipe, data.example(2))
    fit_network(student, data, recipe, "training", objective=objective)
    assert float(relative_error(student(inputs), teacher(inputs)).detach()) < 0.3 * before


def test_outputs_of_training_mode_are_compared_where_those_of_eval_mode_differ(data: ImageData) -> None:
    student, teacher = Several(4), Several(8, seed=1)
    recipe = Recipe(
        epochs=1, learning_rate=0.1, batch_size=16, task=Task(loss=lambda pair, _: pair[0].square().mean())
    )
    objective = Distillation(teacher).objective(student, recipe, data.example(2))
    mean = teacher.body[1].running_mean.clone()
    fit_network(student, data, recipe, "training", objective=objective)
    assert torch.equal(teacher.body[1].running_mean, mean)


@pytest.mark.parametrize(
    ("teacher", "recipe", "features", "reason"),
    [
        (lambda: Net(8, classes=5), RECIPE, (), r"outputs are \(2, 5\), the network's \(2, 10\)"),
        (lambda: Net(8), RECIPE, ("tail",), "has no module 'tail'"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3, 10)), RECIPE, (), "the teacher does not run"),
        (
            lambda: Net(8),
            Recipe(epochs=1, learning_rate=0.1, task=Task(train_step=lambda m, x, y: m(x).mean())),
            (),
            "task.train_step keeps them to itself",
        ),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_in_one_line(
    data: ImageData, teacher: Callable[[], nn.Module], recipe: Recipe, features: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(TrainingError, match=reason) as caught:
        Distillation(teacher(), features=features).objective(Net(4), recipe, data.example(2))
    assert "\n" not in str(caught.value)


def test_a_killed_distillation_with_adapters_ends_as_one_that_was_not(
    data: ImageData, tmp_path: Path
) -> None:
    class Killed(CheckpointFile):
        def save(self, snapshot: Snapshot) -> None:
            super().save(snapshot)
            if snapshot.epoch == 2:
                raise KeyboardInterrupt

    def distilled(file: CheckpointFile | None) -> nn.Module:
        student = Net(4)
        objective = Distillation(Net(8, seed=1), features=("body",)).objective(
            student, RECIPE, data.example(2)
        )
        fit_network(student, data, RECIPE, "fine-tuning", objective=objective, checkpoint=file)
        return student

    whole, path = distilled(None), tmp_path / "checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        distilled(Killed(path, {}))
    again = distilled(CheckpointFile(path, {}))
    pairs = zip(whole.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
