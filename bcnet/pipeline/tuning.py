"""Small networks that inherit from the trained original and are fine-tuned. In: a run, widths. Out: networks.

The slice stage and the comparison train alike: the same sources of weights, the same loss, as many passes.
"""

from collections.abc import Callable

from torch import nn

from bcnet.artifacts import Run
from bcnet.pipeline.inherit import best_source, weights_of
from bcnet.pipeline.original import trained_network
from bcnet.pipeline.route import on_trained_network
from bcnet.pipeline.teacher import objective_for
from bcnet.progress import announce
from bcnet.supernet.checkpoints import CheckpointFile, fit_resumably
from bcnet.supernet.fit import Recipe, seconds_to_fit
from bcnet.supernet.paths import with_state
from bcnet.supernet.project import Project
from bcnet.supernet.space import Widths


def inherits(project: Project) -> bool:
    """Whether the small network's weights come from the trained network alone."""
    return on_trained_network(project) and not project.config.slice.from_scratch


def tuning(run: Run, project: Project) -> Callable[[Widths, CheckpointFile | None], nn.Module]:
    """How the slice stage makes a network of any widths: a function that a comparison calls, too."""
    config = project.config
    supernets, trained = weights_of(run, project)
    recipe = Recipe.of(config, config.slice.epochs, config.slice.learning_rate)
    images = config.search.recalibration_images

    def tuned(widths: Widths, checkpoint: CheckpointFile | None) -> nn.Module:
        data, task = project.data, project.task
        source = best_source(project.model, project.space, widths, supernets, trained, data, images, task)
        small = with_state(project.model, project.space, source.state)
        objective = objective_for(project, trained_network(run, project), small, recipe)
        announce("fine-tuning the uniform network", seconds_to_fit(small, data, recipe, objective))
        if recipe.epochs:
            fit_resumably(small, data, recipe, "fine-tuning: uniform", checkpoint, objective)
        return small.eval()

    return tuned
