"""What small networks inherit: chosen by the validation loss, for all groups or for each."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bcnet.config import DataConfig
from bcnet.data.dataset import load_data
from bcnet.data.image_data import ImageData
from bcnet.space.discover import discover_space
from bcnet.space.extract import tensors_of
from bcnet.space.importance import Criterion
from bcnet.space.subnet import Subnet
from bcnet.space.supernet import NarrowNetwork, Supernet
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.training.loop import fit_network
from bcnet.training.recipe import Recipe
from bcnet.training.task import Task
from bcnet.width_search.inherit import Original, inherited
from bcnet.width_search.scorer import Score, Validation, best_first, evaluate, evaluate_network
from bcnet.width_search.temperature import calibrated_loss, calibrated_losses

RECIPE = Recipe(epochs=6, learning_rate=0.1, batch_size=32)
WIDTHS = Widths((4, 4))
Importance = dict[Criterion, tuple[Tensor, ...]]


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig(image_size=8, train_limit=500, val_fraction=0.4, shift=0), 0)


@pytest.fixture(scope="module")
def model(data: ImageData) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)),
    )
    fit_network(model, data, RECIPE, "training")
    return model


@pytest.fixture(scope="module")
def space(model: nn.Module) -> WidthSpace:
    return discover_space(model, torch.zeros(1, 1, 8, 8), bins=2, channel_multiple=1, method="bcnet")


@pytest.fixture(scope="module")
def original(model: nn.Module, space: WidthSpace, data: ImageData) -> Original:
    return Original(model, space, data, RECIPE, images=256)


@pytest.fixture(scope="module")
def importance(original: Original) -> Importance:
    return original.importances(batches=8)


def test_the_lowest_validation_loss_comes_first_and_each_network_is_what_it_says(
    original: Original, importance: Importance, space: WidthSpace, model: nn.Module, data: ImageData
) -> None:
    found = inherited(original, WIDTHS, importance)
    assert {own.source for own in found} == set(importance)
    losses = [own.score.loss for own in found]
    assert losses == sorted(losses)
    assert losses[0] < losses[-1] - 0.1
    by_l1 = next(own for own in found if own.source == "l1")
    strongest = importance["l1"][0].argsort(descending=True)[:4].sort().values
    assert torch.equal(by_l1.state["0.weight"], tensors_of(model)["0.weight"][strongest])
    network = NarrowNetwork(model, space, by_l1.state)
    assert evaluate(network, data, data.val).loss == pytest.approx(by_l1.score.loss, rel=1e-5)
    small = network.extract()
    assert evaluate_network(small, data, data.val).accuracy == pytest.approx(by_l1.score.accuracy)


def test_channels_that_are_removed_in_rounds_are_one_more_network(
    original: Original, importance: Importance
) -> None:
    found = inherited(original, WIDTHS, {"l1": importance["l1"]}, iterative=True)
    assert {own.source for own in found} == {"l1", "iterative-taylor"}
    own = next(own for own in found if own.source == "iterative-taylor")
    expected = original.narrow(original.iterative.kept(WIDTHS)).state
    assert torch.equal(own.state["3.weight"], expected["3.weight"])


def test_the_full_network_inherits_its_own_loss(
    original: Original, importance: Importance, space: WidthSpace, model: nn.Module, data: ImageData
) -> None:
    (whole, *_) = inherited(original, space.largest(), {"l1": importance["l1"]})
    own = evaluate(NarrowNetwork(model, space, tensors_of(model)), data, data.val).loss
    assert whole.score.loss == pytest.approx(own, rel=0.03)


def test_the_side_of_a_supernet_is_scored_like_what_is_inherited(
    original: Original, space: WidthSpace, model: nn.Module, data: ImageData
) -> None:
    supernet, side = Supernet.of(model, space), Subnet.at(space, WIDTHS, "right")
    right = original.scored("right", supernet.narrow(side).state)
    by = Validation(data, 256)
    fresh = by.recalibrated(supernet, side)
    assert right.score.loss == pytest.approx(by.score(fresh).loss, rel=1e-4)


def test_each_group_takes_the_criterion_that_it_gains_by(original: Original, importance: Importance) -> None:
    (first, second), best = importance["bn-scale"], importance["bn-scale"]
    mixed: Importance = {"l1": (first, second.max() - second), "l2": (first.max() - first, second)}
    found = inherited(original, WIDTHS, mixed, by_group=True)
    assert [own.source for own in found[1:]] in (["l1", "l2"], ["l2", "l1"])
    assert found[0].source in ("l1, but l2 in '3'", "l2, but l1 in '0'")
    (alone,) = inherited(original, WIDTHS, {"bn-scale": best})
    assert found[0].score.loss == pytest.approx(alone.score.loss)
    assert all(torch.equal(found[0].state[name], alone.state[name]) for name in alone.state)


def test_a_group_keeps_its_criterion_where_the_gain_is_within_two_standard_errors(
    original: Original, importance: Importance, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = torch.randn(200, generator=torch.Generator().manual_seed(0)).double()
    noise = (noise - noise.mean()) / noise.std()
    losses = iter([torch.zeros(200).double(), noise - 1.9 / 200**0.5, noise - 2.1 / 200**0.5])
    monkeypatch.setattr(original, "losses", lambda state: next(losses))
    (first, second) = importance["bn-scale"]
    mixed: Importance = {"l1": (first, second), "l2": (first.max() - first, second.max() - second)}
    found = inherited(original, WIDTHS, mixed, by_group=True)
    assert [own.source for own in found if "but" in own.source] == ["l1, but l2 in '3'"]


def test_where_a_task_has_no_loss_its_metric_decides(
    model: nn.Module,
    space: WidthSpace,
    data: ImageData,
    importance: Importance,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def step(model: Any, inputs: Any, targets: Any) -> Tensor:
        return nn.functional.cross_entropy(model(inputs), targets)

    recipe = replace(RECIPE, task=Task(train_step=step))
    own = Original(model, space, data, recipe, images=256)
    found = inherited(own, WIDTHS, importance, by_group=True)
    accuracies = [one.score.accuracy for one in found]
    assert accuracies == sorted(accuracies, reverse=True)
    assert "a criterion for each group needs a loss" in capsys.readouterr().err


def test_networks_of_a_task_with_a_loss_of_its_own_are_compared_batch_by_batch(
    model: nn.Module, space: WidthSpace, data: ImageData
) -> None:
    recipe = replace(RECIPE, task=Task(loss=lambda outputs, targets: outputs.square().mean()))
    losses = Original(model, space, data, recipe, images=256).losses(
        NarrowNetwork(model, space, tensors_of(model))
    )
    with torch.no_grad():
        outputs = model(data.normalise(data.val.images))
    assert losses.tolist() == pytest.approx([float(outputs.square().mean())], rel=1e-4)


def test_a_loss_that_is_not_finite_comes_last() -> None:
    scores = Score(0.9, float("nan")), Score(0.1, -2.0), Score(0.3, -2.0)
    assert sorted(scores, key=best_first) == [scores[2], scores[1], scores[0]]


def test_without_a_loss_the_better_metric_comes_first() -> None:
    assert sorted((Score(0.3), Score(0.9)), key=best_first) == [Score(0.9), Score(0.3)]


def test_losses_of_images_have_the_calibrated_loss_as_their_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(20, 3, generator=generator), torch.arange(20) % 3 - int(n == 0)) for n in range(2)
    ]
    losses = calibrated_losses(batches)
    assert len(losses) == 33  # the class -1 does not count
    assert float(losses.mean()) == pytest.approx(calibrated_loss(batches))
