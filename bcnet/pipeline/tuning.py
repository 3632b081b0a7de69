"""Small networks that inherit from the trained original and are fine-tuned. In: a run, widths. Out: networks.

The search's trials, the slice stage and the comparison train alike: weights from the same sources, the same
loss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from bcnet.artifacts import Run, read_json
from bcnet.data import ImageData, KeptBatches
from bcnet.pipeline.inherit import Trained, ranked_sources, trained_for
from bcnet.pipeline.original import trained_network
from bcnet.pipeline.pruned import PrunedNetwork, pruned_by_search
from bcnet.pipeline.route import on_trained_network
from bcnet.pipeline.teacher import objective_for
from bcnet.pipeline.trained_scores import loss_of
from bcnet.progress import announce, working
from bcnet.supernet.checkpoints import CheckpointFile, fit_resumably
from bcnet.supernet.fit import Recipe, seconds_to_fit
from bcnet.supernet.importance import Criterion
from bcnet.supernet.paths import with_state
from bcnet.supernet.project import Project
from bcnet.supernet.score import Score, evaluate_network, first_images, with_new_statistics
from bcnet.supernet.space import Widths
from bcnet.supernet.task import Task

Importances = Mapping[Criterion, Sequence[Tensor]]


def inherits(project: Project) -> bool:
    """Whether the small network's weights come from the trained network alone."""
    return on_trained_network(project) and not project.config.slice.from_scratch


def passes_of(run: Run) -> int:
    """Passes over the training images that the finished slice's network took since it left the original."""
    stage = run.stage("slice")
    found = read_json(stage.path("result.json"), stage.command)
    return int(found["epochs"]) + int(found.get("pruning_passes", 0))


@dataclass(frozen=True)
class Tuning:
    """How small networks of a run begin, and what they learn from."""

    project: Project
    network: nn.Module | None
    trained: Trained | None

    @classmethod
    def of(
        cls,
        run: Run,
        project: Project,
        importances: Importances | None = None,
        pruned: Mapping[Widths, PrunedNetwork] | None = None,
    ) -> "Tuning":
        """That of a run without a supernet; `importances` are known already, or measured now.

        `pruned` are networks with weights of their own; those of the finished search if not given.
        """
        network = trained_network(run, project)
        pruned = pruned_by_search(run, project) if pruned is None else pruned
        return cls(project, network, trained_for(project, network, importances, pruned))

    def __call__(
        self, widths: Widths, what: str, epochs: int, checkpoint: CheckpointFile | None = None
    ) -> nn.Module:
        """The network of these widths, fine-tuned for so many epochs, in eval mode on the CPU."""
        project, config = self.project, self.project.config
        recipe = Recipe.of(config, epochs, config.slice.learning_rate)
        images = config.search.recalibration_images
        data, task = project.data, project.task
        sources = ranked_sources(project.model, project.space, widths, (), self.trained, data, images, task)
        small = with_state(project.model, project.space, sources[0].state)
        if epochs:
            objective = objective_for(project, self.network, small, recipe)
            announce(what, seconds_to_fit(small, project.data, recipe, objective))
            fit_resumably(small, project.data, recipe, what, checkpoint, objective)
        return settled(small, data, images, task)

    def scored(self, small: nn.Module) -> Score:
        """A small network's score on the validation images."""
        return evaluate_network(small, self.project.data, self.project.data.val, self.project.task)


def settled(small: nn.Module, data: ImageData, images: int, task: Task) -> nn.Module:
    """A trained network with the better batch-norm statistics on the validation images, in eval mode.

    Those of the training are moving averages: with a small momentum and few steps they lag behind the
    weights. The others are the mean over the first `images` training images, augmented.
    """
    small.eval()
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in small.modules()):
        return small
    with working("comparing batch-norm statistics"):
        fresh = with_new_statistics(small, KeptBatches(data, first_images(data, images), 0, augmented=True))
        losses = [loss_of(evaluate_network(each, data, data.val, task)) for each in (small, fresh)]
    return fresh if losses[1] < losses[0] else small
