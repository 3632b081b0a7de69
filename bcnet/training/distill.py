"""Knowledge distillation: a small network learns from the outputs of a teacher, usually the original network.

In: a teacher, a training recipe. Out: the loss that a small network is trained with (`Objective`): soft
targets with a temperature (Hinton, Vinyals and Dean, arXiv 1503.02531, section 2), and optionally the outputs
of named modules through 1x1 adapters (FitNets, ICLR 2015, section 2.2), which are dropped after the training.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from bcnet.errors import FOREIGN, TrainingError, one_line
from bcnet.seeds import seeded
from bcnet.space.inputs import arguments
from bcnet.training.recipe import Objective, Recipe
from bcnet.training.task import logits_of

ADAPTER = "adapter:"  # the prefix of an adapter's parameters among those that are trained


@dataclass(frozen=True)
class Distillation:
    """A teacher, and how much of the loss is its.

    Where the task's loss is cross entropy, the loss is `weight` times the divergence between the softened
    class probabilities (temperature `temperature`, scaled by its square) plus 1 - `weight` times the task's.
    Where it is the user's own, the squared difference of the outputs, relative to the variance of the
    teacher's, is added with `weight`. `features` are names of modules that both networks have: the squared
    difference of their outputs, relative again, is added with `feature_weight`.
    """

    teacher: nn.Module
    temperature: float = 4.0
    weight: float = 0.9
    features: tuple[str, ...] = ()
    feature_weight: float = 1.0
    key: str = ""  # a digest of the teacher
    setting: str = "slice.teacher"  # what a message names

    def objective(self, student: nn.Module, recipe: Recipe, inputs: Any) -> Objective:
        """The loss to train `student` with, which is left in training mode.

        `inputs` are a batch of at least two, as the networks take them. Paths of a supernet that learn from
        one batch, one after the other, share the teacher's outputs; they have no features.

        Raises TrainingError where the student cannot learn from this teacher: outputs of another shape, a
        module that is missing, or a training step of the user's own, whose outputs are not seen.
        """
        self.teacher.eval().requires_grad_(False)
        if recipe.task.train_step is not None and not self.features:
            raise TrainingError(
                "distillation needs a network's outputs, and task.train_step keeps them to itself: name "
                f'modules in slice.teacher_features, or set {self.setting} = "none"'
            )
        wanted, teacher_features = self._try("the teacher", self.teacher, inputs)
        student.train()
        given, student_features = self._try("the network", student, inputs)
        if recipe.task.train_step is None and not _fit(given, wanted, recipe):
            # Outputs that are made in training mode only; statistics stay as they are.
            _as_in_training(self.teacher)
            wanted, teacher_features = self._try("the teacher", self.teacher, inputs)
            if not _fit(given, wanted, recipe):
                raise TrainingError(
                    f"the teacher's outputs are {_described(wanted)}, the network's {_described(given)}: "
                    f'they must have the same shapes; use another teacher, or set {self.setting} = "none"'
                )
        with seeded(recipe.seed):
            adapters = {
                name: _adapter(name, student_features[name], teacher_features[name]) for name in self.features
            }
        self.teacher.to(recipe.device)
        for adapter in adapters.values():
            adapter.to(recipe.device)
        parameters = {
            f"{ADAPTER}{name}.{key}": parameter
            for name, adapter in adapters.items()
            for key, parameter in adapter.named_parameters()
        }

        answers = _LastAnswers(self.teacher, self.features)

        def loss(model: Any, inputs: Any, targets: Any, recipe: Recipe) -> Tensor:
            return self._loss(model, recipe, adapters, answers(inputs, recipe), inputs, targets)

        key = f"{self.key} {self.temperature} {self.weight} {self.features} {self.feature_weight}"
        return Objective(loss, parameters, key)

    def _try(self, who: str, network: nn.Module, inputs: Any) -> tuple[Any, dict[str, Tensor]]:
        """Outputs and features of one batch; statistics of batch norm are as they were afterwards."""
        before = {name: buffer.clone() for name, buffer in network.named_buffers()}
        args, kwargs = arguments(inputs)
        try:
            with torch.no_grad(), _features_of(network, self.features) as features:
                outputs = network(*args, **kwargs)
        except FOREIGN as cause:
            raise TrainingError(f"{who} does not run on the training images: {one_line(cause)}") from None
        finally:
            with torch.no_grad():
                for name, buffer in network.named_buffers():
                    buffer.copy_(before[name])
        missing = [name for name in self.features if name not in features]
        if missing:
            raise TrainingError(
                f"slice.teacher_features: {who} has no module '{missing[0]}' that runs and gives one tensor"
            )
        return outputs, features

    def _loss(
        self,
        model: Any,
        recipe: Recipe,
        adapters: Mapping[str, nn.Module],
        answers: tuple[Any, dict[str, Tensor]],
        inputs: Any,
        targets: Any,
    ) -> Tensor:
        outputs, wanted = answers
        with _features_of(model, self.features) as given:
            loss, own = recipe.training_loss(model, inputs, targets)
        if own is not None and recipe.task.by_cross_entropy:
            soft = softened_divergence(logits_of(own), logits_of(_single(outputs)), self.temperature)
            loss = self.weight * soft + (1 - self.weight) * loss
        elif own is not None:
            pairs = zip(_tensors(own), _tensors(_single(outputs)), strict=True)
            loss = loss + self.weight * sum((relative_error(*pair) for pair in pairs), torch.zeros(()))
        for name, adapter in adapters.items():
            adapted = adapter(given[name].float())
            loss = loss + self.feature_weight * relative_error(adapted, wanted[name].float())
        return loss


class _LastAnswers:
    """A teacher's outputs and features of a batch, kept until the next one where they are outputs alone."""

    def __init__(self, teacher: nn.Module, features: tuple[str, ...]) -> None:
        self.teacher, self.features = teacher, features
        self._inputs: Any = None
        self._answers: tuple[Any, dict[str, Tensor]] = (None, {})

    def __call__(self, inputs: Any, recipe: Recipe) -> tuple[Any, dict[str, Tensor]]:
        if inputs is self._inputs:
            return self._answers
        args, kwargs = arguments(inputs)
        with torch.no_grad(), recipe.autocast(), _features_of(self.teacher, self.features) as found:
            answers = self.teacher(*args, **kwargs), found
        if not self.features:
            self._inputs, self._answers = inputs, answers
        return answers


def softened_divergence(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Divergence of class probabilities (N, C, ...) from the teacher's at a temperature, times its square.

    The mean over the batch and all positions. Its gradient is as large as cross entropy's at any temperature
    (arXiv 1503.02531, section 2).
    """
    own = (logits / temperature).log_softmax(1)
    target = (wanted / temperature).log_softmax(1)
    divergence = nn.functional.kl_div(own, target, log_target=True, reduction="none").sum(1).mean()
    return divergence * temperature**2


def relative_error(given: Tensor, wanted: Tensor) -> Tensor:
    """The mean squared difference, relative to the variance of what is wanted."""
    scale = wanted.var(correction=0).clamp_min(1e-8)
    return (given - wanted).square().mean() / scale


@contextmanager
def _features_of(network: Any, names: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
    """The outputs of named modules of what runs inside the block."""
    found: dict[str, Tensor] = {}
    modules = dict(network.named_modules()) if names else {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                found[name] = output

        return hook

    handles = [modules[name].register_forward_hook(keep(name)) for name in names if name in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _adapter(name: str, given: Tensor, wanted: Tensor) -> nn.Module:
    """A linear map of channels, from the student's to the teacher's; there are none in other positions."""
    axis = 1 if given.ndim in (2, 4) else -1
    there, here = list(wanted.shape), list(given.shape)
    there[axis] = here[axis] = 0
    if there != here:
        raise TrainingError(
            f"slice.teacher_features: '{name}' gives {tuple(given.shape)}, in the teacher "
            f"{tuple(wanted.shape)}: only the number of channels may differ"
        )
    channels = given.shape[axis], wanted.shape[axis]
    if given.ndim == 4:
        return nn.Conv2d(*channels, 1, bias=False)
    return nn.Linear(*channels, bias=False)


def _as_in_training(teacher: nn.Module) -> None:
    """Training mode for what a network gives; normalisation and dropout stay as in eval mode."""
    teacher.train()
    for module in teacher.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase | nn.modules.dropout._DropoutNd):
            module.eval()


def _fit(given: Any, wanted: Any, recipe: Recipe) -> bool:
    if recipe.task.by_cross_entropy:
        return logits_of(given).shape == logits_of(wanted).shape
    own, others = _tensors(given), _tensors(wanted)
    return [tensor.shape for tensor in own] == [tensor.shape for tensor in others] and bool(own)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _single(outputs: Any) -> Any:
    return tree_map_only(Tensor, lambda t: t.float() if t.is_floating_point() else t, outputs)


def _described(outputs: Any) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in _tensors(outputs)) or "no tensors"
