"""What a small network inherits from the trained original: which channels, by which criterion.

In: a trained network, its space, widths, importances. Out: the tensors of small networks, batch-norm
statistics made again, the best on the validation images first. AdaPruner (arXiv 2109.06397, abstract) chooses
the criterion for each network, too: which is best differs from one to the next.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from bcnet.data.image_data import ImageData
from bcnet.data.kept_batches import KEPT_BYTES, KeptBatches
from bcnet.models.weights import listed
from bcnet.progress import progress_bar, say, working
from bcnet.space.extract import tensors_of
from bcnet.space.importance import CRITERIA, Criterion, kept_channels
from bcnet.space.inputs import to_device
from bcnet.space.subnet import ChannelSet, State, Subnet
from bcnet.space.supernet import NarrowNetwork, Supernet
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.training.gradient_importance import BATCHES, measured_importances
from bcnet.training.iterative import IterativeImportance
from bcnet.training.recipe import Recipe
from bcnet.training.task import Batches, Task, logits_of
from bcnet.width_search.scorer import (
    Score,
    best_first,
    first_images,
    predictions_of,
    score_of,
)
from bcnet.width_search.temperature import are_classes, calibrated_losses

ITERATIVE = "iterative-taylor"
ERRORS = 2.0  # standard errors of a paired difference that a group's own criterion has to gain


@dataclass(frozen=True)
class Inherited:
    """A small network's tensors, on the CPU, with its own batch-norm statistics; where they come from."""

    source: str
    state: State
    score: Score


class Original:
    """A trained network whose channels small networks inherit, and the images that these are compared by.

    `space` is the network's; extra channels of a supernet are left out. Batch-norm statistics come from the
    first `images` training images, augmented, scores from the validation images; both are read once and kept
    on the recipe's device, where everything is computed, in float32.
    """

    def __init__(
        self, model: nn.Module, space: WidthSpace, data: ImageData, recipe: Recipe, images: int = 512
    ) -> None:
        self.model, self.space, self.data, self.recipe = model, space.without_extra(), data, recipe
        self._whole = Supernet(model, self.space, to_device(tensors_of(model), recipe.device))
        room = KEPT_BYTES // 2
        self._train = KeptBatches(data, first_images(data, images), room, recipe.device, augmented=True)
        self._val = KeptBatches(data, data.val, room, recipe.device)

    @property
    def task(self) -> Task:
        """By what networks are compared."""
        return self.recipe.task

    def importances(
        self, by: Collection[Criterion] = CRITERIA, batches: int = BATCHES
    ) -> dict[Criterion, tuple[Tensor, ...]]:
        """By each criterion, for each group (channels,): see `measured_importances`."""
        return measured_importances(self.model, self.space, self.data, self.recipe, by, batches)

    @cached_property
    def iterative(self) -> IterativeImportance:
        """The importance of channels when others have been removed."""
        return IterativeImportance(Supernet.of(self.model, self.space), self.data, self.recipe)

    def narrow(self, subnet: Subnet) -> NarrowNetwork:
        """The small network that has only these channels."""
        return self._whole.narrow(subnet)

    def recalibrated(self, state: Mapping[str, Tensor]) -> NarrowNetwork:
        """A small network of these tensors, on the recipe's device, with statistics of training images."""
        placed = to_device(dict(state), self.recipe.device)
        return NarrowNetwork(self.model, self.space, placed).recalibrated(self._train)

    def scored(self, source: str, state: Mapping[str, Tensor]) -> Inherited:
        """Any small network of this space, as of a supernet's path: recalibrated, and its score."""
        fresh = self.recalibrated(state)
        scored = score_of(self._predictions(fresh), self.task)
        return Inherited(source, to_device(dict(fresh.state), "cpu"), scored)

    @torch.no_grad()
    def losses(self, network: NarrowNetwork) -> Tensor:
        """The validation losses of a small network as it is: of each image, of each batch for other tasks.

        Of a classification by cross entropy at the best temperature (see `calibrated_loss`).
        """
        kept: list[tuple[Tensor, Tensor]] = []
        whole: list[Tensor] = []
        for outputs, targets in self._predictions(network):
            if self.task.by_cross_entropy and are_classes(targets):
                kept.append((logits_of(outputs), targets))
            else:
                whole.append(self.task.loss_of(outputs, targets).detach().double())
        return calibrated_losses(kept) if kept else torch.stack(whole)

    def _predictions(self, network: NarrowNetwork) -> Batches:
        self.model.eval()
        return predictions_of(network.run, self._val, torch.device(self.recipe.device))


def inherited(
    original: Original,
    widths: Widths,
    importance: Mapping[Criterion, Sequence[Tensor]],
    *,
    iterative: bool = False,
    by_group: bool = False,
) -> list[Inherited]:
    """The small networks that keep the most important channels by each criterion, the best first.

    With `iterative`, there is one more whose channels were removed in rounds, and importance calculated again
    in each (see `IterativeImportance.kept`).

    The lowest validation loss decides, since accuracies of networks that were cut and not trained yet are
    coarse; the metric does where a task has no loss (`task.train_step`). With `by_group`, there is one more
    network where that is better: from the best, one group at a time takes the criterion by which the loss
    falls most, if by more than two standard errors of the paired difference. All groups are gone through
    once, which takes as many scores as there are groups and criteria.
    """
    choices: dict[str, Subnet] = {
        by: kept_channels(original.space, widths, own) for by, own in importance.items()
    }
    if iterative:
        with working("removing the least important channels in rounds"):
            choices[ITERATIVE] = original.iterative.kept(widths)
    found: list[Inherited] = []
    with progress_bar("scoring what the small network inherits", len(choices)) as advance:
        for by, subnet in choices.items():
            found.append(original.scored(by, original.narrow(subnet).state))
            advance(by)
    found.sort(key=_rank)
    if by_group and original.task.train_step is not None:
        say("a criterion for each group needs a loss to compare networks by, and task.train_step gives none")
    elif by_group and len(found) > 1:
        found = sorted([*_by_group(original, choices, found[0].source), *found], key=_rank)
    return found


def _rank(own: Inherited) -> tuple[float, float]:
    return best_first(own.score)


def _by_group(original: Original, choices: Mapping[str, Subnet], best: str) -> list[Inherited]:
    """The network in which groups have criteria of their own; none where no group gains by that."""

    def losses_of(channels: Sequence[ChannelSet]) -> Tensor:
        return original.losses(original.recalibrated(original.narrow(Subnet(tuple(channels))).state))

    channels, switched = list(choices[best].channels), dict[str, str]()
    losses = losses_of(channels)
    with progress_bar("choosing a criterion for each group", len(channels)) as advance:
        for number, group in enumerate(original.space.groups):
            least, before = 0.0, channels[number]
            tried = [before]
            for by, choice in choices.items():
                other = choice.channels[number]
                if other in tried:
                    continue
                tried.append(other)
                own = losses_of([*channels[:number], other, *channels[number + 1 :]])
                difference = float((own - losses).mean())
                if difference < least and difference < -ERRORS * _standard_error(own - losses):
                    least, found = difference, (by, other, own)
            if least < 0:
                switched[group.name], channels[number], losses = found
            advance(group.name)
    if not switched:
        return []
    others = " and ".join(sorted(set(switched.values())))
    source = f"{best}, but {others} in {listed(list(switched))}"
    return [original.scored(source, original.narrow(Subnet(tuple(channels))).state)]


def _standard_error(differences: Tensor) -> float:
    """Of their mean; without end where there is one only."""
    count = len(differences)
    return float(differences.std()) / math.sqrt(count) if count > 1 else math.inf
