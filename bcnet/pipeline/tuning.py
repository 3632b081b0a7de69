"""Small networks that inherit from the trained original and are fine-tuned. In: a run, widths. Out: networks.

The search's trials, the slice stage and the comparison train alike: weights from the same sources, the same
loss.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from bcnet.pipeline.fine_tuning import FineTuned, FineTuning
from bcnet.pipeline.importance_file import kept_importances
from bcnet.pipeline.inherit import Source, Trained, ranked_sources, trained_for
from bcnet.pipeline.original import trained_network
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.pruned import PrunedNetwork, pruned_by_search
from bcnet.pipeline.quantisation import (
    QuantisationAware,
    aware_passes,
    delivered_score,
    through_integers,
)
from bcnet.pipeline.results import SliceSummary
from bcnet.pipeline.route import fine_tuning_rate, on_trained_network
from bcnet.pipeline.teacher import objective_for
from bcnet.pipeline.training_precision import announced
from bcnet.runs import Run
from bcnet.space.extract import with_state
from bcnet.space.importance import Importances
from bcnet.space.width_space import Widths
from bcnet.training.checkpoints import CheckpointFile
from bcnet.training.durations import seconds_to_fit
from bcnet.training.recipe import Recipe
from bcnet.traits import PrecisionName
from bcnet.width_search.scorer import Score, Validation


def inherits(problem: Problem) -> bool:
    """Whether the small network's weights come from the trained network alone."""
    return on_trained_network(problem) and not problem.config.slice.from_scratch


def passes_of(run: Run) -> int:
    """Passes over the training images in the finished slice, kept or discarded.

    Later passes through integers are not included.
    """
    found = SliceSummary.read(run.stage("slice"))
    return found.epochs + (found.discarded_epochs or 0) + found.pruning_passes


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

    def at(self, precision: PrecisionName) -> "Tuning":
        """The same for networks that are delivered in this precision."""
        return replace(self, problem=self.problem.at(precision))

    @property
    def pruned(self) -> bool:
        """Whether networks have weights of their own, which a search pruned."""
        return self.trained is not None and bool(self.trained.pruned)

    def begins(self, widths: Widths) -> Source:
        """What the network of these widths begins with: the best of all sources. Found once."""
        if widths not in self._begins:
            problem, images = self.problem, self.problem.config.search.recalibration_images
            by = Validation(problem.data, images, problem.task)
            self._begins[widths] = ranked_sources((), widths, self.trained, by)[0]
        return self._begins[widths]

    def __call__(
        self,
        widths: Widths,
        what: str,
        epochs: int,
        checkpoint: CheckpointFile | None = None,
        integers: int | None = None,
    ) -> FineTuned:
        """The network of these widths, fine-tuned for `epochs` epochs unless that makes it worse.

        At INT8, `integers` further passes through its integers follow; if not given, the usual number.
        """
        problem, config = self.problem, self.problem.config
        recipe = Recipe.of(config, epochs, fine_tuning_rate(problem))
        data, images = problem.data, config.search.recalibration_images
        small = with_state(problem.model, problem.space, self.begins(widths).state)
        if not epochs:
            return FineTuned(small.eval())
        objective = objective_for(problem, self.network, small, recipe)
        recipe = announced(
            self.run,
            problem,
            what,
            recipe,
            lambda own: seconds_to_fit(small, data, own, objective),
            begun=checkpoint is not None and checkpoint.path.exists(),
        )
        tuned = FineTuning(data, recipe, images, objective)(small, what, checkpoint)
        passes = aware_passes(problem, epochs) if integers is None else integers
        if not passes:
            return tuned
        aware, name = QuantisationAware(problem, self.network), f"{what}, through integers"
        found = aware(tuned.network, name, passes, checkpoint and through_integers(checkpoint))
        return FineTuned(found.network, replace(tuned.outcome, integers=found.discarded))

    def scored(self, small: nn.Module) -> Score:
        """A small network's score on the validation images, as it would be delivered."""
        return delivered_score(self.problem, small)
