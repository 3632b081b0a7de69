"""The task of a network: its loss, its metric and, optionally, a custom training step.

In: outputs of any structure, and targets. Out: a scalar loss with gradients; the metric of a whole split.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bcnet.config import TaskConfig
from bcnet.data.splits import IGNORED
from bcnet.errors import ConfigError, TrainingError, one_line
from bcnet.space.inputs import entries
from bcnet.user_code import UserFunction, import_function

Batches = Iterable[tuple[Any, Any]]  # (outputs, targets)
Loss = Callable[[Any, Any], Tensor]
Metric = Callable[[Batches], float]
TrainStep = Callable[[Callable[..., Any], Any, Any], Tensor]

CONTRACTS = {
    "loss": "task.loss is called as loss(outputs, targets) and returns a scalar tensor with a gradient",
    "metric": "task.metric is called with batches of (outputs, targets) and returns one finite number",
    "train_step": (
        "task.train_step is called as train_step(model, inputs, targets), may only call the model, "
        "and returns the loss as a scalar tensor with a gradient"
    ),
}
AUXILIARY = 0.3  # weight of the auxiliary outputs of GoogLeNet and Inception (arXiv 1409.4842, section 5)
AUXILIARY_MASKS = 0.5  # the same for torchvision's segmentation models, as in its training scripts


@dataclass(frozen=True)
class Task:
    """How outputs are evaluated. The default `loss` is cross entropy; with `train_step`, it is not used.

    `metric` iterates once over (outputs, targets) of a whole split, tensors on the CPU; larger is better.
    """

    loss: Loss | None = None
    metric: Metric | None = None
    train_step: TrainStep | None = None

    @classmethod
    def of(cls, config: TaskConfig) -> "Task":
        """The task of a configuration. Raises ConfigError if a function does not exist."""
        return cls(
            _named("loss", config.loss, {"cross-entropy": None}),
            _named("metric", config.metric, {"accuracy": None, "mean-iou": mean_iou}),
            _named("train_step", config.train_step, {}) if config.train_step else None,
        )

    @property
    def by_cross_entropy(self) -> bool:
        """Whether the loss is cross entropy, not a custom one."""
        return self.loss is None and self.train_step is None

    def loss_of(self, outputs: Any, targets: Any, label_smoothing: float = 0.0) -> Tensor:
        """The loss of a batch. Raises TrainingError if it is not a scalar."""
        if self.loss is None:
            return cross_entropy(outputs, targets, label_smoothing)
        return _scalar("loss", self.loss, outputs, targets)

    def step(self, model: Callable[..., Any], inputs: Any, targets: Any) -> Tensor:
        """The scalar loss that `train_step` computes; `model` is called like the user's module."""
        assert self.train_step is not None
        return _scalar("train_step", self.train_step, model, inputs, targets)

    def evaluate(self, batches: Batches) -> tuple[float, float]:
        """The metric and the mean loss (0 if there is none) of (outputs, targets) of a whole split."""
        total, count = 0.0, 0

        def counted() -> Iterator[tuple[Any, Any]]:
            nonlocal total, count
            for outputs, targets in batches:
                if self.train_step is None:
                    total += float(self.loss_of(outputs, targets).detach()) * entries(targets)
                count += entries(targets)
                yield outputs, targets

        value = self.measure(counted())
        return value, total / max(count, 1)

    def measure(self, batches: Batches) -> float:
        """The metric of (outputs, targets) of a whole split. Raises TrainingError if it is not a number."""
        if self.metric is None:
            return accuracy(batches)
        function = _wrapped("metric", self.metric)
        value = function(batches)
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError):
            raise function.complaint(f"returned {_described(value)}") from None
        if not math.isfinite(number):
            raise function.complaint(f"returned {number}")
        return number


def cross_entropy(outputs: Any, targets: Any, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy of a batch: of logits (N, C) and class indices (N,), or of masks.

    Masks are (N, H, W) for logits (N, C, H, W); pixels of 255 are ignored. With auxiliary outputs, as of
    torchvision's networks in training, it is the weighted sum.
    """
    (main, _), *auxiliary = _weighted(outputs)
    loss = _cross_entropy(main.float(), targets, label_smoothing)
    for logits, weight in auxiliary:
        loss = loss + weight * _cross_entropy(logits.float(), targets, label_smoothing)
    return loss


def _cross_entropy(logits: Tensor, targets: Any, label_smoothing: float) -> Tensor:
    if not isinstance(targets, Tensor):
        raise TrainingError(
            f"cross entropy takes targets as a tensor, not {_described(targets)}; set task.loss"
        )
    masks = not targets.is_floating_point() and targets.ndim > 1
    try:
        if not masks:
            return nn.functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)
        ignored = IGNORED if logits.shape[1] <= IGNORED else -100
        total = nn.functional.cross_entropy(
            logits, targets.long(), label_smoothing=label_smoothing, ignore_index=ignored, reduction="sum"
        )
        return total / (targets != ignored).sum().clamp_min(1)
    except (RuntimeError, ValueError, IndexError) as cause:
        raise TrainingError(
            f"cross entropy of outputs {tuple(logits.shape)} and targets {tuple(targets.shape)} failed "
            f"({one_line(cause)}); fix the model's number of classes or the targets, or set task.loss"
        ) from cause


def _weighted(outputs: Any) -> list[tuple[Tensor, float]]:
    """The outputs for cross entropy, with weights. Raises TrainingError for an unknown structure."""
    if isinstance(outputs, Tensor):
        return [(outputs, 1.0)]
    found: Mapping[str, Any] = {}
    if isinstance(outputs, Mapping):
        found, first, weight = outputs, "out", AUXILIARY_MASKS
    elif isinstance(outputs, tuple) and hasattr(outputs, "_asdict"):
        found, first, weight = outputs._asdict(), "logits", AUXILIARY
    if not found or not isinstance(found.get(first), Tensor):
        raise TrainingError(
            f"cross entropy takes one tensor, logits with auxiliary ones, or a dict with 'out', not "
            f"{_described(outputs)}; set task.loss to a custom function"
        )
    auxiliary = [found[key] for key in found if key.startswith("aux") and found[key] is not None]
    return [(found[first], 1.0), *((logits, weight) for logits in auxiliary)]


def logits_of(outputs: Any) -> Tensor:
    """The network's main output (N, C, ...). Raises TrainingError if it cannot be determined."""
    return _weighted(outputs)[0][0]


def accuracy(batches: Batches) -> float:
    """The fraction of images, or of pixels, whose largest logit is the target's."""
    correct = total = 0
    for outputs, targets in batches:
        answers, classes = _answers(outputs, targets)
        correct += int((answers == classes).sum())
        total += len(classes)
    return correct / max(total, 1)


def mean_iou(batches: Batches) -> float:
    """Mean over the classes of intersection over union of predicted and true pixels of a whole split.

    Classes that occur neither in predictions nor in targets are ignored, and so are pixels of 255.
    """
    both = either = torch.zeros(0)
    for outputs, targets in batches:
        answers, classes = _answers(outputs, targets)
        count = logits_of(outputs).shape[1]
        hits = torch.bincount(classes[answers == classes], minlength=count)
        all_of = torch.bincount(answers, minlength=count) + torch.bincount(classes, minlength=count)
        both = both + hits if len(both) else hits
        either = either + all_of - hits if len(either) else all_of - hits
    there = either > 0
    return float((both[there] / either[there]).mean()) if there.any() else 0.0


def _answers(outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
    """Predicted and true classes, without ignored pixels, flattened."""
    logits = logits_of(outputs)
    answers = logits.argmax(1) if logits.ndim > 1 else logits
    if not isinstance(targets, Tensor) or answers.shape != targets.shape:
        raise TrainingError(
            f"this metric compares classes, not outputs {tuple(logits.shape)} with targets "
            f"{_described(targets)}; set task.metric to a custom function"
        )
    targets = targets.long()
    if targets.ndim > 1 and logits.shape[1] <= IGNORED:
        counts = targets != IGNORED
        return answers[counts], targets[counts]
    return answers.flatten(), targets.flatten()


def bound_to(forward: Callable[..., Any], run: Callable[[Any], Any]) -> Callable[..., Any]:
    """`run`, which takes inputs as one object (see `run_with`), as a function with `forward`'s arguments."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if not kwargs:
            return run(args)
        if not args:
            return run(kwargs)
        bound = inspect.signature(forward).bind(*args, **kwargs)
        return run(bound.args if not bound.kwargs else dict(bound.arguments))

    return call


def _named(key: str, name: str, known: Mapping[str, Any]) -> Any:
    if ":" in name:
        return UserFunction(name, import_function(name, ConfigError), TrainingError, CONTRACTS[key])
    if name not in known:
        choices = ", ".join((*known, "package.module:function"))
        raise ConfigError(f"unknown task.{key} '{name}'; known: {choices}")
    return known[name]


def _wrapped(key: str, function: Callable[..., Any]) -> UserFunction:
    if isinstance(function, UserFunction):
        return function
    name = (
        f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', type(function).__name__)}"
    )
    return UserFunction(name, function, TrainingError, CONTRACTS[key])


def _scalar(key: str, function: Callable[..., Any], *given: Any) -> Tensor:
    """The loss that a custom function returns. Raises TrainingError if it is not one."""
    wrapped = _wrapped(key, function)
    value = wrapped(*given)
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise wrapped.complaint(f"returned {_described(value)}")
    if torch.is_grad_enabled() and not value.requires_grad:
        raise wrapped.complaint("returned a loss without a gradient")
    return value.reshape(())


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return "None" if value is None else type(value).__name__
