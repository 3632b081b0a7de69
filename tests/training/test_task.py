"""What users train for: losses, metrics and training steps of their own, and the structures of outputs."""

import re
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bcnet.config import TaskConfig
from bcnet.data.image_data import ImageData
from bcnet.data.splits import Split
from bcnet.errors import ConfigError, TrainingError
from bcnet.pipeline.train_supernet import train
from bcnet.space.discover import discover_space
from bcnet.space.supernet import Supernet
from bcnet.space.width_space import Widths
from bcnet.training.loop import fit_network
from bcnet.training.recipe import Recipe
from bcnet.training.supernet_step import SlicedPaths, supernet_step
from bcnet.training.task import Task, accuracy, cross_entropy, mean_iou
from bcnet.width_search.scorer import evaluate_network, score

LOGITS = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
LABELS = torch.tensor([0, 2])
Outputs = namedtuple("Outputs", ["logits", "aux_logits2", "aux_logits1"])


class Detector(nn.Module):
    """Scores (N, 3) in eval mode; in training it takes targets, by name, and returns a dict of losses."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, targets: list[dict[str, Tensor]] | None = None) -> Any:
        scores = self.head(self.body(x).mean((2, 3)))
        if not self.training:
            return scores
        assert targets is not None
        labels = torch.stack([target["label"] for target in targets])
        loss = nn.functional.cross_entropy(scores, labels)
        return {"classes": loss, "boxes": 0 * loss}


def boxes(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """A batch as detection has it: targets as a list of dicts."""
    inputs, labels = zip(*items, strict=True)
    return torch.stack(inputs), [{"label": label} for label in labels]


def detect(model: Callable[..., Any], inputs: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
    losses = model(inputs, targets=targets)
    return sum(losses.values(), torch.zeros(()))


def found(batches: Any) -> float:
    """The share of images whose label is found."""
    pairs = [(scores.argmax(1), torch.stack([t["label"] for t in targets])) for scores, targets in batches]
    answers, labels = (torch.cat(side) for side in zip(*pairs, strict=True))
    return float((answers == labels).float().mean())


DETECTION = Task(metric=found, train_step=detect)


def rows(count: int = 24) -> ImageData:
    """Images with a bright row that tells the class, in batches as detection has them."""
    labels = torch.arange(count) % 3
    pixels = torch.zeros(count, 1, 8, 8, dtype=torch.uint8)
    for number in range(count):
        pixels[number, 0, : 2 + 3 * int(labels[number])] = 255
    part = Split(pixels, labels)
    return ImageData(part, part, part, ("a", "b", "c"), (0.3,), (0.2,), collate=boxes)


def test_cross_entropy_of_one_tensor_is_pytorchs() -> None:
    expected = nn.functional.cross_entropy(LOGITS, LABELS, label_smoothing=0.1)
    assert float(cross_entropy(LOGITS, LABELS, 0.1)) == float(expected)


def test_auxiliary_outputs_count_three_tenths_each_and_those_of_none_do_not() -> None:
    main, aux = (float(nn.functional.cross_entropy(x, LABELS)) for x in (LOGITS, -LOGITS))
    assert float(cross_entropy(Outputs(LOGITS, -LOGITS, -LOGITS), LABELS)) == pytest.approx(main + 0.6 * aux)
    assert float(cross_entropy(Outputs(LOGITS, None, -LOGITS), LABELS)) == pytest.approx(main + 0.3 * aux)


def test_a_segmentation_networks_auxiliary_output_counts_half() -> None:
    main, aux = (float(nn.functional.cross_entropy(x, LABELS)) for x in (LOGITS, -LOGITS))
    assert float(cross_entropy({"out": LOGITS, "aux": -LOGITS}, LABELS)) == pytest.approx(main + 0.5 * aux)
    assert float(cross_entropy({"out": LOGITS}, LABELS)) == pytest.approx(main)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_pixels_of_255_do_not_count_in_the_loss_of_masks(dtype: torch.dtype) -> None:
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    masks = torch.ones(2, 4, 4, dtype=dtype)
    masks[0] = 255
    expected = nn.functional.cross_entropy(logits[1:], masks[1:].long())
    assert float(cross_entropy(logits, masks)) == pytest.approx(float(expected))
    assert float(cross_entropy(logits[:1], masks[:1])) == 0


def test_class_255_of_an_image_is_a_class_like_others() -> None:
    logits = torch.zeros(1, 300)
    expected = float(nn.functional.cross_entropy(logits, torch.tensor([255])))
    assert float(cross_entropy(logits, torch.tensor([255]))) == expected > 0


@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        (
            (LOGITS, LOGITS),
            LABELS,
            "cross entropy takes one tensor, logits with auxiliary ones, or a dict with",
        ),
        ({"boxes": LOGITS}, LABELS, "not dict; set task.loss to a custom function"),
        (LOGITS, [{}, {}], "cross entropy takes targets as a tensor, not list; set task.loss"),
        (
            LOGITS,
            LABELS + 1,
            "outputs (2, 3) and targets (2,) failed (IndexError: Target 3 is out of bounds.)",
        ),
        (torch.zeros(2, 3, 4, 4), LABELS, "outputs (2, 3, 4, 4) and targets (2,) failed"),
    ],
)
def test_what_cross_entropy_cannot_judge_is_refused_in_words(
    outputs: Any, targets: Any, message: str
) -> None:
    with pytest.raises(TrainingError, match=re.escape(message)):
        cross_entropy(outputs, targets)


def test_accuracy_is_the_share_of_images_or_of_pixels_that_count() -> None:
    assert accuracy([(LOGITS, LABELS), (LOGITS, torch.tensor([0, 1]))]) == 0.75
    masks = torch.tensor([[[0, 255], [1, 0]]], dtype=torch.uint8)
    assert accuracy([({"out": torch.tensor([[[[1.0, 1], [1, 1]], [[0, 0], [0, 0]]]])}, masks)]) == 2 / 3


def test_mean_iou_is_over_the_whole_split_and_over_classes_that_occur() -> None:
    def answer(classes: list[int]) -> Tensor:
        return nn.functional.one_hot(torch.tensor([[classes]]), 4).permute(0, 3, 1, 2).float()

    batches = [
        (answer([0, 0, 1]), torch.tensor([[[0, 1, 1]]])),
        (answer([0, 1, 1]), torch.tensor([[[0, 0, 255]]])),
    ]
    # Class 0: 2 of 4 pixels; class 1: 1 of 3; classes 2 and 3 do not occur.
    assert mean_iou(batches) == pytest.approx((2 / 4 + 1 / 3) / 2)


def test_a_metric_sees_every_batch_of_the_split_once_and_scores_have_a_loss() -> None:
    seen = []

    def metric(batches: Any) -> float:
        seen.extend(len(targets) for _, targets in batches)
        return 7.5

    data = ImageData(*(rows().train,) * 3, ("a", "b", "c"), (0.3,), (0.2,))
    torch.manual_seed(0)
    network = Detector()
    result = evaluate_network(network, data, data.val, Task(metric=metric))
    assert seen == [24]
    assert result.accuracy == 7.5
    assert result.loss == pytest.approx(evaluate_network(network, data, data.val).loss)
    assert result.loss > 0.5


def bad_loss(outputs: Tensor, targets: Tensor) -> Any:
    return outputs


def raising(*_: Any) -> Any:
    raise KeyError("boxes")


RAISED = raising.__code__.co_firstlineno + 1


def detached(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets).detach()


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (bad_loss, "returned a tensor of shape (24, 3)"),
        (raising, f"failed (KeyError: 'boxes') in test_task.py, line {RAISED}"),
        (detached, "returned a loss without a gradient"),
    ],
)
def test_a_loss_that_is_none_names_its_function(function: Any, what: str) -> None:
    data = ImageData(*(rows().train,) * 3, ("a", "b", "c"), (0.3,), (0.2,))
    recipe = Recipe(epochs=1, learning_rate=0.1, task=Task(loss=function))
    message = f"test_task:{function.__name__}' {what}; task.loss is called as loss(outputs, targets)"
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(TrainingError, match=re.escape(message)):
        fit_network(plain, data, recipe, "training")


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (None, "returned None"),
        ("good", "returned str"),
        (torch.zeros(2), "returned a tensor of shape (2,)"),
        (float("nan"), "returned nan"),
    ],
)
def test_a_metric_that_is_no_finite_number_names_its_function(value: Any, what: str) -> None:
    def metric(batches: Any) -> Any:
        return value

    message = f"{metric.__qualname__}' {what}; task.metric is called with batches of (outputs, targets)"
    with pytest.raises(TrainingError, match=re.escape(message)):
        Task(metric=metric).measure([])


@pytest.mark.parametrize("value", [torch.tensor(0.25), 0.25])
def test_a_metric_may_be_any_number(value: Any) -> None:
    assert Task(metric=lambda batches: value).measure([]) == 0.25


def test_a_training_step_of_the_users_own_fills_the_same_gradients_as_its_loss() -> None:
    torch.manual_seed(0)
    model = Detector().eval()
    space = discover_space(model, torch.zeros(1, 1, 8, 8), bins=2, channel_multiple=2)
    inputs, targets = rows().batch(rows().train)
    gradients = []
    for stepwise in (True, False):
        model.train(stepwise)
        parameters = {name: nn.Parameter(p.detach().clone()) for name, p in model.named_parameters()}
        task = DETECTION if stepwise else Task()
        recipe = Recipe(epochs=1, learning_rate=0.1, task=task)
        labels = targets if stepwise else torch.stack([t["label"] for t in targets])
        paths = SlicedPaths(Supernet(model, space, parameters), recipe)
        supernet_step(paths, [Widths((4, 4))], inputs, labels)
        gradients.append([p.grad for p in parameters.values()])
    for own, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(own, plain)


def test_a_network_that_computes_its_own_losses_is_trained_and_scored() -> None:
    torch.manual_seed(0)
    model, data = Detector().eval(), rows()
    space = discover_space(model, torch.zeros(1, 1, 8, 8), bins=2, channel_multiple=2)
    recipe = Recipe(epochs=40, learning_rate=0.05, batch_size=12, task=DETECTION)
    supernet = train(Supernet.with_extra(model, space), data, recipe).supernet
    result = score(supernet, space.largest(), data, 24, DETECTION)
    assert result.accuracy > 0.9
    assert result.loss == 0
    fit_network(model, data, recipe, "training")
    assert evaluate_network(model, data, data.test, DETECTION).accuracy > 0.9


def test_a_training_step_that_calls_backward_is_told_to_leave_it() -> None:
    def eager(model: Any, inputs: Tensor, targets: Any) -> Tensor:
        loss = detect(model, inputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    recipe = Recipe(epochs=1, learning_rate=0.1, batch_size=12, task=Task(train_step=eager))
    with pytest.raises(TrainingError, match="returns its loss and leaves the backward pass to bcnet"):
        fit_network(Detector(), rows(), recipe, "training")


def test_a_loss_of_the_users_own_gets_single_precision_where_training_uses_bfloat16() -> None:
    seen = set()

    def own(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.add((outputs.dtype, torch.is_autocast_enabled("cpu")))
        return nn.functional.binary_cross_entropy(
            outputs.sigmoid(), nn.functional.one_hot(targets, 3).float()
        )

    data = ImageData(*(rows().train,) * 3, ("a", "b", "c"), (0.3,), (0.2,))
    recipe = Recipe(epochs=1, learning_rate=0.1, batch_size=12, amp=True, task=Task(loss=own))
    fit_network(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), data, recipe, "training")
    assert seen == {(torch.float32, False)}


def test_a_training_step_may_only_call_the_model_in_a_supernet() -> None:
    def reaches_inside(model: Any, inputs: Tensor, targets: Any) -> Tensor:
        loss: Tensor = model.head(model.body(inputs).mean((2, 3))).sum()
        return loss

    model, data = Detector().eval(), rows()
    space = discover_space(model, torch.zeros(1, 1, 8, 8), bins=2, channel_multiple=2)
    recipe = Recipe(epochs=1, learning_rate=0.1, batch_size=12, task=Task(train_step=reaches_inside))
    with pytest.raises(TrainingError, match=r"failed \(AttributeError: .*may only call the model"):
        train(Supernet.with_extra(model, space), data, recipe)


FUNCTIONS = """
def loss(outputs, targets):
    return (outputs - targets).square().mean()
def metric(batches):
    return 1 / len(list(batches))
def step(model, inputs, targets):
    return None
"""


@pytest.mark.usefixtures("folder")
def test_a_configuration_names_functions_of_the_working_folder() -> None:
    Path("task_functions.py").write_text(FUNCTIONS, encoding="utf-8")
    config = TaskConfig(
        loss="task_functions:loss", metric="task_functions:metric", train_step="task_functions:step"
    )
    task = Task.of(config)
    outputs = torch.ones(2, 1, requires_grad=True)
    assert task.loss_of(outputs, torch.zeros(2, 1)).item() == 1
    assert task.measure([(1, 1), (2, 2)]) == 0.5
    with pytest.raises(
        TrainingError, match=r"^'task_functions:step' returned None; task\.train_step is called"
    ):
        task.step(Detector(), 1, 1)
    message = "^'task_functions:metric' failed .ZeroDivisionError: .* in task_functions.py, line 5; "
    with pytest.raises(TrainingError, match=message):
        task.measure([])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"loss": "dice"}, "unknown task.loss 'dice'; known: cross-entropy, package.module:function"),
        (
            {"metric": "map"},
            "unknown task.metric 'map'; known: accuracy, mean-iou, package.module:function",
        ),
        ({"train_step": "step"}, "unknown task.train_step 'step'; known: package.module:function"),
        ({"loss": "nowhere_at_all:f"}, "'nowhere_at_all:f': No module named 'nowhere_at_all'; install it"),
    ],
)
def test_an_unknown_task_is_answered_with_what_there_is(config: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        Task.of(TaskConfig(**config))
