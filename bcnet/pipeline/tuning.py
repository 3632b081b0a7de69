"""Small networks that inherit from the trained original and are fine-tuned. In: a run, widths. Out: networks.

The search's trials, the slice stage and the comparison train alike: weights from the same sources, the same
loss.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from bcnet.data.image_data import ImageData
from bcnet.data.kept_batches import KeptBatches
from bcnet.pipeline.importance_file import kept_importances
from bcnet.pipeline.inherit import Source, Trained, ranked_sources, trained_for
from bcnet.pipeline.original import trained_network
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.pruned import PrunedNetwork, pruned_by_search
from bcnet.pipeline.results import SliceSummary
from bcnet.pipeline.route import fine_tuning_rate, on_trained_network
from bcnet.pipeline.teacher import objective_for
from bcnet.pipeline.training_precision import announced
from bcnet.plain import loss_text
from bcnet.progress import say, working
from bcnet.runs import Run
from bcnet.space.extract import with_state
from bcnet.space.importance import Importances
from bcnet.space.recalibration import recalibrated
from bcnet.space.width_space import Widths
from bcnet.training.checkpoints import CheckpointFile
from bcnet.training.loop import fit_network, seconds_to_fit
from bcnet.training.recipe import Recipe
from bcnet.width_search.scorer import (
    Score,
    Validation,
    best_first,
    evaluate_network,
    first_images,
    loss_of,
)


def inherits(problem: Problem) -> bool:
    """Whether the small network's weights come from the trained network alone."""
    return on_trained_network(problem) and not problem.config.slice.from_scratch


def passes_of(run: Run) -> int:
    """Passes over the training images that the finished slice's network took since it left the original."""
    found = SliceSummary.read(run.stage("slice"))
    return found.epochs + found.pruning_passes


@dataclass(frozen=True)
class Tuning:
    """How small networks of a run begin, and what they learn from."""

    run: Run
    problem: Problem
    network: nn.Module | None
    trained: Trained | None
    _begins: dict[Widths, Source] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        run: Run,
        problem: Problem,
        importances: Importances | None = None,
        pruned: Mapping[Widths, PrunedNetwork] | None = None,
    ) -> "Tuning":
        """That of a run without a supernet; `importances` are known already, or the search's are read.

        `pruned` are networks with weights of their own; those of the finished search if not given.
        """
        network = trained_network(run, problem)
        pruned = pruned_by_search(run, problem) if pruned is None else pruned
        importances = importances or kept_importances(run, problem)
        return cls(run, problem, network, trained_for(problem, network, importances, pruned))

    def begins(self, widths: Widths) -> Source:
        """What the network of these widths begins with: the best of all sources. Found once."""
        if widths not in self._begins:
            problem, images = self.problem, self.problem.config.search.recalibration_images
            by = Validation(problem.data, images, problem.task)
            self._begins[widths] = ranked_sources((), widths, self.trained, by)[0]
        return self._begins[widths]

    def __call__(
        self, widths: Widths, what: str, epochs: int, checkpoint: CheckpointFile | None = None
    ) -> nn.Module:
        """The network of these widths, fine-tuned for so many epochs, in eval mode on the CPU."""
        problem, config = self.problem, self.problem.config
        recipe = Recipe.of(config, epochs, fine_tuning_rate(problem))
        data, images = problem.data, config.search.recalibration_images
        small = with_state(problem.model, problem.space, self.begins(widths).state)
        if not epochs:
            return small.eval()
        begun = copy.deepcopy(small)
        objective = objective_for(problem, self.network, small, recipe)
        recipe = announced(
            self.run,
            problem,
            what,
            recipe,
            lambda own: seconds_to_fit(small, data, own, objective),
            begun=checkpoint is not None and checkpoint.path.exists(),
        )
        fit_network(small, data, recipe, what, objective=objective, checkpoint=checkpoint)
        return settled(small, begun, data, images, recipe)

    def scored(self, small: nn.Module) -> Score:
        """A small network's score on the validation images."""
        return evaluate_network(small, self.problem.data, self.problem.data.val, self.problem.task)


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
            f"{loss_text(before)} before, {loss_text(after)} after): it stays as it was; lower "
            "slice.learning_rate"
        )
    return found[best]
