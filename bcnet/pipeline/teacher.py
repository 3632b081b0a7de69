"""Whose outputs a small network learns from. In: a problem. Out: its distillation, or None.

`slice.teacher` names the teacher: the original network, a function of the user's own, or none.
"""

import copy
from dataclasses import replace

from torch import nn

from bcnet.errors import FOREIGN, ConfigError, TrainingError, one_line
from bcnet.pipeline.original import given_network
from bcnet.pipeline.problem import Problem
from bcnet.progress import say
from bcnet.runs import digest
from bcnet.space.extract import tensors_of, with_state
from bcnet.training.distill import Distillation
from bcnet.training.recipe import Objective, Recipe
from bcnet.user_code import code_of, import_function

AUTO, ORIGINAL, NONE = "auto", "original", "none"


def teacher_digest(problem: Problem) -> str:
    """A hash of the teacher's name and code; the original network's weights are in the problem's digests."""
    named = problem.config.slice.teacher
    return digest([named, code_of(import_function(named, ConfigError)) if ":" in named else ""])


def distillation(problem: Problem, original: nn.Module | None) -> Distillation | None:
    """The configured distillation; `original` is the trained network, where there is one.

    Raises ConfigError where its teacher is not there.
    """
    config = problem.config.slice
    named = config.teacher
    if named == NONE or (named == AUTO and (original is None or config.from_scratch)):
        return None
    if named not in (AUTO, ORIGINAL) and ":" not in named:
        raise ConfigError(
            f"unknown slice.teacher '{named}'; known: auto, original, none, package.module:function"
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
        teacher_digest(problem),
    )


def objective_for(
    problem: Problem,
    original: nn.Module | None,
    student: nn.Module,
    recipe: Recipe,
    *,
    features: bool = True,
) -> Objective | None:
    """The loss that a small network is trained with; None for the task's own.

    Without `features`, it compares the outputs of no module. A teacher that was not configured explicitly and
    does not fit is reported and left out.
    """
    found = distillation(problem, original)
    if found is not None and not features:
        found = replace(found, features=())
    return _fitting(found, problem, student, recipe, asked=problem.config.slice.teacher != AUTO)


def teaches_supernet(problem: Problem) -> bool:
    """Whether a supernet's paths learn from the given network. Raises ConfigError where they cannot."""
    named = problem.config.train.teacher
    known = problem.trained and not problem.untrained_layers
    if named == ORIGINAL and not known:
        raise ConfigError(
            "train.teacher: the original network cannot be the teacher, its weights are not trained: set "
            "model.weights"
        )
    return named == ORIGINAL or (named == AUTO and known and problem.task.train_step is None)


def supernet_objective(problem: Problem, recipe: Recipe) -> Objective | None:
    """The loss of all paths of a supernet of trained weights: distillation from the given network, frozen.

    None for the task's own. Temperature and weight are those of fine-tuning.
    """
    original = given_network(problem) if teaches_supernet(problem) else None
    if original is None:
        return None
    config, setting = problem.config.slice, "train.teacher"
    found = Distillation(original, config.teacher_temperature, config.teacher_weight, setting=setting)
    student = with_state(problem.model, problem.space.without_extra(), tensors_of(problem.model))
    return _fitting(found, problem, student, recipe, asked=problem.config.train.teacher != AUTO)


def _fitting(
    found: Distillation | None, problem: Problem, student: nn.Module, recipe: Recipe, *, asked: bool
) -> Objective | None:
    """The loss of a distillation; None where there is none, or nobody `asked` for one that does not fit."""
    if found is None:
        return None
    try:
        return found.objective(student, recipe, problem.data.example(2))
    except TrainingError as reason:
        if asked:
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
