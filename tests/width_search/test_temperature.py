"""Losses of subnets are those at their best temperature; accuracies and other losses are as they are."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bcnet.data.image_data import ImageData
from bcnet.data.splits import Split
from bcnet.pipeline.search_inputs import by_loss_of
from bcnet.training.task import Batches, Task, mean_iou
from bcnet.width_search.scorer import score_of
from bcnet.width_search.temperature import calibrated_loss


def answers(count: int, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Logits and classes that are drawn from them, so that their own scale explains them best."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, classes, generator=generator)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0, 3.0, 12.0])
def test_the_scale_of_logits_does_not_change_their_loss(scale: float) -> None:
    logits, classes = answers(4000)
    found = calibrated_loss([(logits * scale, classes)])
    assert found == pytest.approx(float(cross_entropy(logits, classes)), abs=0.001)
    assert found == pytest.approx(calibrated_loss([(logits, classes)]), abs=1e-6)


def test_no_other_temperature_has_a_smaller_loss() -> None:
    logits, classes = answers(60)
    losses = [float(cross_entropy(logits * scale, classes)) for scale in torch.logspace(-1, 1, 401)]
    assert calibrated_loss([(logits, classes)]) == pytest.approx(min(losses), abs=1e-4)


@pytest.mark.parametrize("large", [1e-3, 1.0, 16.0, 100.0, 1e4])
def test_logits_far_too_large_or_too_small_are_mended(large: float) -> None:
    logits = large * torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    # Three of four are right: the best is a probability of 3/4 for each answer, by a scale of log(3) / large.
    assert calibrated_loss([(logits, torch.tensor([0, 0, 1, 1]))]) == pytest.approx(0.5623, abs=1e-4)


def test_answers_that_are_all_right_or_all_wrong_have_a_finite_loss() -> None:
    logits, _ = answers(50)
    right, wrong = (calibrated_loss([(logits, own)]) for own in (logits.argmax(1), logits.argmin(1)))
    assert 0 <= right < 0.1
    assert wrong == pytest.approx(1.3863, abs=1e-3)  # the logarithm of four: no answer is better


@pytest.mark.parametrize("logits", [torch.zeros(6, 3), torch.full((6, 3), 1e30)])
def test_logits_that_tell_nothing_have_the_loss_of_guessing(logits: Tensor) -> None:
    assert calibrated_loss([(logits, torch.tensor([0, 1, 2, 0, 1, 2]))]) == pytest.approx(1.0986, abs=1e-4)


def test_logits_that_are_not_finite_have_the_loss_that_they_have() -> None:
    logits, classes = answers(50)
    masked = torch.cat([logits, torch.full((50, 1), -math.inf)], 1)
    assert calibrated_loss([(masked, classes)]) == pytest.approx(float(cross_entropy(logits, classes)))
    assert math.isnan(calibrated_loss([(logits * math.nan, classes)]))


def test_images_whose_class_is_to_be_ignored_do_not_count() -> None:
    logits, classes = answers(300)
    ignored = torch.cat([classes, torch.full((50,), -100)])
    found = calibrated_loss([(torch.cat([logits, torch.full((50, 4), 9.0)]), ignored)])
    assert found == pytest.approx(calibrated_loss([(logits, classes)]))
    assert calibrated_loss([(logits, torch.full((300,), -100))]) == 0


def test_of_very_many_logits_some_tell_the_temperature_and_all_the_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits, classes = answers(3000)
    every = calibrated_loss([(logits * 5, classes)])
    monkeypatch.setattr("bcnet.width_search.temperature.MOST", 4000)
    assert calibrated_loss([(logits * 5, classes)]) == pytest.approx(every, abs=0.002)


def test_a_score_has_the_accuracy_as_it_is_and_the_calibrated_loss_of_all_batches() -> None:
    logits, classes = answers(100)
    batches = list(zip((logits * 7).split(30), classes.split(30), strict=True))
    score = score_of(batches)
    assert score.accuracy == pytest.approx(float((logits.argmax(1) == classes).float().mean()))
    assert score.loss == pytest.approx(calibrated_loss([(logits, classes)]), abs=1e-5)
    plain = score_of(batches, calibrate=False)
    assert plain.accuracy == score.accuracy
    assert plain.loss == pytest.approx(float(cross_entropy(logits * 7, classes)))


def test_a_metric_that_changes_its_batches_does_not_change_the_loss() -> None:
    logits, classes = answers(100)

    def metric(batches: Batches) -> float:
        return float(sum(len(outputs.exp_()) for outputs, _ in batches))

    score = score_of([(logits * 7, classes)], Task(metric=metric))
    assert score.accuracy == 100
    assert score.loss == pytest.approx(calibrated_loss([(logits, classes)]), abs=1e-5)


def test_logits_in_a_dict_are_calibrated_as_they_are_alone() -> None:
    logits, classes = answers(100)
    assert score_of([({"out": logits * 7}, classes)]) == score_of([(logits * 7, classes)])


def test_losses_of_masks_and_of_the_users_own_are_as_they_are() -> None:
    logits, classes = answers(64)
    masks = logits.reshape(4, 4, 4, 4), classes[:64].reshape(4, 4, 4)
    assert score_of([masks]).loss == pytest.approx(float(cross_entropy(*masks)))
    own = Task(loss=lambda outputs, targets: 3 * cross_entropy(outputs, targets).requires_grad_())
    assert score_of([(logits * 7, classes)], own).loss == pytest.approx(
        3 * float(cross_entropy(logits * 7, classes)), rel=1e-5
    )


@pytest.mark.parametrize(
    ("task", "targets", "by_loss"),
    [
        (Task(), torch.zeros(4, dtype=torch.long), 0.75),
        (Task(), torch.zeros(4, 8, 8, dtype=torch.long), 0.5),  # masks: not calibrated
        (Task(metric=mean_iou), torch.zeros(4, dtype=torch.long), 0.5),
        (Task(loss=cross_entropy), torch.zeros(4, dtype=torch.long), 0.5),
    ],
)
def test_a_loss_counts_for_less_where_it_is_not_calibrated_or_the_metric_is_another(
    task: Task, targets: Tensor, by_loss: float
) -> None:
    split = Split(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), targets)
    data = ImageData(split, split, split, ("a", "b"), (0.5,), (0.3,))
    assert by_loss_of(SimpleNamespace(task=task, data=data)) == by_loss
