"""Whose outputs a small network learns from. In: a project. Out: its distillation, or None.

`slice.teacher` names the teacher: the original network, a function of the user's own, or none.
"""

import copy

from torch import nn

from bcnet.artifacts import digest
from bcnet.errors import FOREIGN, ConfigError, TrainingError, one_line
from bcnet.imports import code_of, import_function
from bcnet.progress import say
from bcnet.supernet.fit import Objective, Recipe
from bcnet.supernet.project import Project
from bcnet.training.distill import Distillation

AUTO, ORIGINAL, NONE = "auto", "original", "none"


def teacher_digest(project: Project) -> str:
    """A hash of the teacher's name and code; the original network's weights are in the project's digests."""
    named = project.config.slice.teacher
    return digest([named, code_of(import_function(named, ConfigError)) if ":" in named else ""])


def distillation(project: Project, original: nn.Module | None) -> Distillation | None:
    """The configured distillation; `original` is the trained network, where there is one.

    Raises ConfigError where its teacher is not there.
    """
    config = project.config.slice
    named = config.teacher
    if named == NONE or (named == AUTO and (original is None or config.from_scratch)):
        return None
    if named not in (AUTO, ORIGINAL) and ":" not in named:
        raise ConfigError(
            f"unknown slice.teacher '{named}'; there is: auto, original, none, package.module:function"
        )
    if ":" in named:
        teacher = _own(named)
    elif original is None:
        raise ConfigError(
            "slice.teacher: the original network cannot be the teacher, its weights are not trained: set "
            "model.weights"
        )
    else:
        teacher = copy.deepcopy(original)  # a teacher is frozen, and the original may be trained yet
    return Distillation(
        teacher,
        config.teacher_temperature,
        config.teacher_weight,
        config.teacher_features,
        config.teacher_feature_weight,
        teacher_digest(project),
    )


def objective_for(
    project: Project, original: nn.Module | None, student: nn.Module, recipe: Recipe
) -> Objective | None:
    """The loss that a small network is trained with; None for the task's own.

    Where nobody asked for the teacher, one that does not fit is reported and left out.
    """
    found = distillation(project, original)
    if found is None:
        return None
    try:
        return found.objective(student, recipe, project.data.example(2))
    except TrainingError as reason:
        if project.config.slice.teacher != AUTO:
            raise
        say(f"no distillation: {reason}")
        return None


def _own(name: str) -> nn.Module:
    try:
        function = import_function(name, ConfigError)
    except ConfigError as cause:
        raise ConfigError(f"slice.teacher: {cause}") from None
    try:
        teacher = function()
    except FOREIGN as cause:
        raise ConfigError(f"slice.teacher: {name} failed: {one_line(cause)}") from None
    if not isinstance(teacher, nn.Module):
        raise ConfigError(
            f"slice.teacher: {name} must return a network (torch.nn.Module), not {type(teacher).__name__}"
        )
    return teacher
