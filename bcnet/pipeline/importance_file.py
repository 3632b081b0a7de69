"""Importances that are measured once a run. In: a run's trained network. Out: those of its channels.

The search keeps them in `search/importances.safetensors`; it, if it was stopped, and later stages read them
where they are of the same network, data and settings.
"""

from pathlib import Path
from typing import Any

from torch import nn

from bcnet.pipeline.problem import Problem
from bcnet.progress import say
from bcnet.runs import Run, write_file
from bcnet.sealed import seal_tensors, unseal_tensors
from bcnet.space.importance import CRITERIA, Importances
from bcnet.training.gradient_importance import BATCHES, measured_importances
from bcnet.training.recipe import Recipe, training_digest

IMPORTANCES_FILE = "importances.safetensors"


def importances_of(run: Run, problem: Problem, network: nn.Module) -> Importances:
    """By every criterion, for each group (channels,): as they were kept, else measured now, and kept."""
    found = kept_importances(run, problem)
    if found is None:
        recipe = Recipe.of(problem.config, epochs=1, learning_rate=1.0)
        found = measured_importances(network, problem.space, problem.data, recipe, CRITERIA)
        tensors = {
            f"{by} {number}": values.detach().cpu().contiguous()
            for by, own in found.items()
            for number, values in enumerate(own)
        }
        write_file(_path(run), seal_tensors(tensors, _about(run, problem)))
    return found


def kept_importances(run: Run, problem: Problem) -> Importances | None:
    """Those that the search kept; None where there are none of this network and these settings."""
    path = _path(run)
    if not path.exists():
        return None
    try:
        tensors, about = unseal_tensors(path)
        if about != _about(run, problem):
            return None
        return {
            by: tuple(tensors[f"{by} {number}"] for number in range(len(problem.space.groups)))
            for by in CRITERIA
        }
    except (ValueError, KeyError) as cause:
        say(f"{path} cannot be read ({cause}); importances are measured again")
        return None


def _path(run: Run) -> Path:
    return run.stage("search").path(IMPORTANCES_FILE)


def _about(run: Run, problem: Problem) -> dict[str, Any]:
    """All that they depend on."""
    return {
        "network": run.stage("train").require(problem.inputs()),
        "training settings": training_digest(problem.config),
        "batches": BATCHES,
    }
