"""Fine-tune networks that inherited weights. In: a network, a recipe. Out: the better of after and before.

Where a network ends worse than it began, the rate was too high for it: it is fine-tuned once more from the
same start at a lower one, and if that does not help either, it stays as it was.
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from bcnet.data.image_data import ImageData
from bcnet.data.kept_batches import KeptBatches
from bcnet.plain import loss_text
from bcnet.progress import say, working
from bcnet.space.recalibration import recalibrated
from bcnet.training.checkpoints import CheckpointFile
from bcnet.training.distributed import same_as_first
from bcnet.training.loop import fit_network
from bcnet.training.recipe import Objective, Recipe
from bcnet.width_search.scorer import best_first, evaluate_network, first_images, loss_of

LOWER = 5  # by which the rate is divided where it made a network worse


@dataclass(frozen=True)
class Outcome:
    """The outcome of a fine-tuning: discarded passes, and the learning rate if it had to be lowered.

    `integers` is the number of discarded passes through the integers of the INT8 file.
    """

    discarded: int = 0
    lower_rate: float | None = None
    integers: int = 0

    def note(self, name: str) -> str | None:
        """What the reader of a comparison should know of this network; None where all is as asked."""
        if self.discarded:
            return f"{name}: its fine-tuning was discarded, since it made it worse"
        if self.lower_rate is not None:
            return f"{name}: fine-tuned at a rate of {self.lower_rate:g}, since a higher one made it worse"
        if self.integers:
            return f"{name}: its training through integers was discarded, since it made it worse"
        return None


AS_ASKED = Outcome()


@dataclass(frozen=True)
class FineTuned:
    """A network in eval mode on the CPU, and what became of its fine-tuning."""

    network: nn.Module
    outcome: Outcome = AS_ASKED


@dataclass(frozen=True)
class FineTuning:
    """How networks are fine-tuned: data, recipe, loss, and `images` for batch-norm statistics."""

    data: ImageData
    recipe: Recipe
    images: int
    objective: Objective | None = None

    def __call__(self, begun: nn.Module, what: str, checkpoint: CheckpointFile | None = None) -> FineTuned:
        """Fine-tune a copy of `begun`; a lower rate is tried where this one makes it worse.

        A fine-tuning that was killed continues from its checkpoint: each rate has a file of its own, and the
        first one's holds its last epoch while the lower rate is tried.
        """
        if not self.recipe.epochs:
            return FineTuned(begun.eval())
        found = self._tried(begun, what, self.recipe, checkpoint)
        if found is not None:
            return FineTuned(found)
        lower = replace(self.recipe, learning_rate=self.recipe.learning_rate / LOWER)
        say(f"{what}: once more from the same start, at a rate of {lower.learning_rate:g}")
        second = checkpoint and replace(checkpoint, path=at_lower_rate(checkpoint.path))
        found = self._tried(begun, what, lower, second)
        if found is not None:
            return FineTuned(found, Outcome(lower_rate=lower.learning_rate))
        even_lower = lower.learning_rate / LOWER
        say(f"{what}: discarded, the network stays as it was; try slice.learning_rate = {even_lower:g}")
        return FineTuned(begun.eval(), Outcome(discarded=self.recipe.epochs))

    def _tried(
        self, begun: nn.Module, what: str, recipe: Recipe, checkpoint: CheckpointFile | None
    ) -> nn.Module | None:
        """The fine-tuned network; None where it is worse than it began. The objective begins as it was."""
        small, objective = copy.deepcopy(begun), self.objective
        parameters = objective.parameters if objective else {}
        start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        fit_network(small, self.data, recipe, what, objective=objective, checkpoint=checkpoint)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(start[name])
        best = settled(small, begun, self.data, self.images, recipe)
        worse = torch.tensor(int(best is begun))
        same_as_first([worse])  # several processes go on alike
        return None if worse else best


def at_lower_rate(checkpoint: Path) -> Path:
    """The checkpoint of the second fine-tuning, beside that of the first."""
    return checkpoint.with_stem(f"{checkpoint.stem}-lower-rate")


def settled(trained: nn.Module, begun: nn.Module, data: ImageData, images: int, recipe: Recipe) -> nn.Module:
    """The better of a fine-tuned network and the one that it was before, by the validation images.

    In eval mode; of the fine-tuned one with both kinds of batch-norm statistics: those of the training are
    moving averages, which lag behind the weights where the momentum is small and the steps are few; the
    others are the mean over the first `images` training images, augmented.
    """
    found = [trained.eval(), begun.eval()]
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in trained.modules()):
        batches = KeptBatches(data, first_images(data, images), 0, augmented=True)
        found.append(recalibrated(trained, batches))
    with working("comparing the network with what it was before"):
        scores = [evaluate_network(own, data, data.val, recipe.task) for own in found]
    best = min(range(len(found)), key=lambda place: best_first(scores[place]))
    if found[best] is begun:
        before, after = loss_of(scores[best]), min(loss_of(scores[n]) for n in range(len(found)) if n != best)
        say(
            f"fine-tuning at a rate of {recipe.learning_rate:g} made the network worse (validation loss "
            f"{loss_text(before)} before, {loss_text(after)} after)"
        )
    return found[best]
