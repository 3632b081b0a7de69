"""Stage 1, supernet training. In: images and a width space. Out: supernet weights, and each step's loss.

`train/`: supernet.safetensors, supernet.jsonl (widths and loss, a line for each step), space.json, curve.csv,
and while training checkpoint.safetensors and checkpoint.jsonl, from which a killed training continues.
Further supernets, each from a seed of its own, are supernet-2.safetensors and so on; curve.csv is of all
supernets that are in use.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from bcnet.config import TaskConfig
from bcnet.errors import ModelError
from bcnet.models.weights import listed
from bcnet.pipeline.finished import supernet_file
from bcnet.pipeline.kept import warn_of_verified
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.results import EARLIER_RECORDS, NetworkSummary, SupernetSummary
from bcnet.pipeline.route import on_trained_network
from bcnet.pipeline.supernet_start import first_state, order_is_measured
from bcnet.pipeline.teacher import supernet_objective, teaches_supernet
from bcnet.pipeline.train_network import first_rate, network_inputs, say_reached, train_network
from bcnet.pipeline.train_supernet import train
from bcnet.pipeline.training_file import (
    CheckpointFiles,
    Finished,
    finished_files,
    inputs_of,
    lines_beside,
    load_finished,
)
from bcnet.pipeline.training_precision import announced, kept_precision
from bcnet.pipeline.trial import seconds_a_supernet_step
from bcnet.progress import say, working
from bcnet.runs import Content, Run, Stage, alone_in
from bcnet.space.subnet import Subnet
from bcnet.space.supernet import Supernet, cut
from bcnet.training.distributed import connected, world
from bcnet.training.loop import steps_an_epoch
from bcnet.training.recipe import Objective, Recipe, training_digest
from bcnet.training.shared_work import Shared, each, in_all, part_of_shared
from bcnet.training.step_plan import StepPlan
from bcnet.width_search.scorer import Validation, evaluate_network

POINT = 0.01  # of accuracy: more than this is a loss


def seed_of(number: int, seed: int) -> int:
    """The seed of a run's supernet `number`, from 0: the run's own, then such as no other run has."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0]) if number else seed


def stage_inputs(run: Run, problem: Problem) -> dict[str, str]:
    """What this stage's manifest records: a change of any of these makes the supernet stale."""
    config = problem.config
    if on_trained_network(problem):
        return network_inputs(problem)
    inputs = {**problem.inputs(), "training settings": training_digest(config)}
    if order_is_measured(problem):
        inputs["channel order"] = "measured"
    if teaches_supernet(problem):
        inputs["teacher"] = f"{config.slice.teacher_temperature} {config.slice.teacher_weight}"
    count = config.train.supernets
    return inputs if count == 1 else {**inputs, "supernets": str(count)}


@alone_in("train")
def run(run: Run, problem: Problem) -> SupernetSummary | NetworkSummary:
    """Train and save the supernets that are not there yet.

    What was trained with the same settings is kept: of a killed training all that it had come to, and every
    supernet that is finished, whatever their number was and is. Those that are not in use lie aside. Several
    processes train together, or where there are as many supernets, one each at a time.
    """
    if on_trained_network(problem) or problem.config.train.supernets < connected().size:
        return _together(run, problem)
    return _supernets(run, problem)


@in_all
def _together(run: Run, problem: Problem) -> SupernetSummary | NetworkSummary:
    return train_network(run, problem) if on_trained_network(problem) else _supernets(run, problem)


def _supernets(run: Run, problem: Problem) -> SupernetSummary:
    config, count = problem.config, problem.config.train.supernets
    recipe = Recipe.of(config, config.train.epochs, first_rate(problem))
    stage, inputs = run.stage("train"), stage_inputs(run, problem)
    of_each = _of_each(inputs)
    results = {}
    for number in range(count):
        found = load_finished(stage.path(supernet_file(number)), of_each)
        if found is not None:
            results[number] = found
    checkpoints = {n: _checkpoints(stage, n, of_each) for n in range(count) if n not in results}
    stopped = [_done(own, problem, recipe) for own in checkpoints.values() if own.path.exists()]
    done = len(results) * recipe.epochs + sum(epochs for epochs in stopped if epochs)
    if None in stopped:
        say("a stopped training had other settings: it is not continued")
    if not checkpoints:
        say(f"trained already; remove {stage.folder} to train again")
    elif done:
        say(f"continuing after epoch {done:.4g} of {count * recipe.epochs}")
    if config.task != TaskConfig():
        with working("trying the task's functions"):  # now, and not in a search after hours of training
            evaluate_network(problem.model, problem.data, problem.data.val, problem.task)
    objective = None
    if checkpoints:
        sides, images = len(problem.space.rule.sides), len(problem.data.train)
        StepPlan.of(config.train).check_batch(recipe.batch_size, sides, images, world().size)
        _check_delivery(problem)
        warn_of_verified(run, "train")
        what = "training the supernet" if count == 1 else f"training {count} supernets"
        what += ", on slices" if config.train.cuda_graph else ""  # what is recorded is not timed here
        objective = supernet_objective(problem, recipe)
        what += ", with distillation" if objective else ""
        recipe = announced(
            run,
            problem,
            what,
            recipe,
            lambda own: (
                (count * own.epochs - done)
                * steps_an_epoch(problem.data, own)
                * seconds_a_supernet_step(problem, own, objective)
            ),
            begun=done > 0,
        )
        say(f"data: {problem.data}")
        if problem.trained:
            report_given(problem, recipe.device)
            if config.search.method == "auto":
                say(
                    'its weights seem to be trained: search.method = "latency-milp" needs no supernet and '
                    "starts from them (docs/guides/choosing-a-method.md)"
                )
    start = time.perf_counter()
    trained = Trainings(problem, recipe, objective, stage, of_each)
    if world().size < connected().size:
        list(each(Shared(trainings_of_run, Trainings.to_its_end, trained), checkpoints))
    results |= {number: trained(number) for number in checkpoints}
    seconds = time.perf_counter() - start
    if checkpoints and problem.trained and not problem.untrained_layers:
        _warn_of_loss(problem, results[0].state, recipe)
    used = [results[number] for number in range(count)]
    if checkpoints or stage.outdated(inputs) is not None:
        files: dict[str, Content] = {}
        for number, result in enumerate(used):
            files |= finished_files(supernet_file(number), result, of_each)
        files["space.json"] = problem.space.to_json().encode()
        files["curve.csv"] = _curves([result.curve for result in used]).encode()
        stage.finish(inputs, files, _obsolete(stage, count, of_each))
    return SupernetSummary(
        folder=str(stage.folder),
        method=problem.space.method,
        groups=len(problem.space.groups),
        epochs=recipe.epochs,
        supernets=count,
        final_loss=round(sum(result.curve[-1] for result in used) / count, 5),
        seconds=round(seconds, 1),
    )


def report_given(problem: Problem, device: str) -> None:
    """Report the given network's metric on the images as they are fed here: wrong statistics lower it.

    Where a layer of it is not trained, its metric means nothing and is left out.
    """
    if problem.untrained_layers:
        say(
            f"the network as it was given has untrained layers ({listed(list(problem.untrained_layers))}): "
            f"its {problem.config.task.metric} is not comparable, and is left out"
        )
        return
    data = problem.data
    given = cut(problem.model, problem.space, problem.space.original()).to(device)
    with working("evaluating the network as it was given"):
        reached = evaluate_network(given, data, data.test, problem.task).accuracy
    say_reached(problem, "the network as it was given", reached)


def _warn_of_loss(problem: Problem, state: Mapping[str, Tensor], recipe: Recipe) -> None:
    """Warn where the supernet's widest path is worse than the given network by more than a point."""
    data, space, task = problem.data, problem.space, problem.task
    if task.metric is not None:
        return  # what a point is of another metric, only its author knows
    images = problem.config.search.recalibration_images
    with working("comparing the supernet's widest path with the given network"):
        by = Validation(data, images, task)
        supernet = Supernet(problem.model, space, state)
        widest = by.score(by.recalibrated(supernet, Subnet.at(space, space.largest()))).accuracy
        given = evaluate_network(problem.given_model(problem.config.seed), data, data.val, task).accuracy
    if given - widest > POINT:
        say(
            f"the supernet's widest path reaches {widest:.2%} on the validation images, the given network "
            f"{given:.2%}: training at a rate of {recipe.learning_rate:g} loses what was learned; lower "
            'train.learning_rate, or set search.method = "auto", which needs no supernet'
        )


def _check_delivery(problem: Problem) -> None:
    """Raises ModelError if the trained network could not be exported: now, and not after the training."""
    with working("checking the export of the narrowest network"):
        reason = problem.not_deliverable()
    if reason is not None:
        raise ModelError(f"not trained, because the result could not be exported or run: {reason}")


@dataclass(frozen=True)
class Trainings:
    """How a run's supernets are trained; `inputs` are all that each depends on."""

    problem: Problem
    recipe: Recipe
    objective: Objective | None
    stage: Stage
    inputs: Mapping[str, str]

    def __call__(self, number: int) -> Finished:
        """The run's supernet `number`, from 0, trained as the configuration says."""
        problem, config = self.problem, self.problem.config.train
        count, checkpoints = config.supernets, _checkpoints(self.stage, number, self.inputs)
        own = replace(self.recipe, seed=seed_of(number, self.recipe.seed))
        state = first_state(problem, problem.given_model(own.seed) if number else problem.model, own)
        with part_of_shared(number, count):
            result = train(
                problem.supernet(state),
                problem.data,
                own,
                plan=StepPlan.of(config),
                objective=self.objective,
                checkpoints=checkpoints,
                description="training the supernet" if count == 1 else f"supernet {number + 1} of {count}",
            )
        return Finished(result.supernet.state, result.curve, checkpoints.steps())

    def to_its_end(self, number: int) -> None:
        """Train a supernet, so that its checkpoint holds it."""
        self(number)


def trainings_of_run(run: Run, problem: Problem) -> Trainings:
    """How a run's supernets are trained, in the precision that was chosen."""
    recipe = Recipe.of(problem.config, problem.config.train.epochs, first_rate(problem))
    recipe = kept_precision(run, problem, recipe) or recipe
    objective, inputs = supernet_objective(problem, recipe), _of_each(stage_inputs(run, problem))
    return Trainings(problem, recipe, objective, run.stage("train"), inputs)


def _of_each(inputs: Mapping[str, str]) -> dict[str, str]:
    """What each supernet depends on, of what the stage does."""
    return {key: value for key, value in inputs.items() if key != "supernets"}


def _checkpoints(stage: Stage, number: int, inputs: Mapping[str, str]) -> CheckpointFiles:
    """The files from which a run's supernet `number`, from 0, continues."""
    return CheckpointFiles(stage.path(_checkpoint_file(number)), inputs)


def _done(checkpoints: CheckpointFiles, problem: Problem, recipe: Recipe) -> float | None:
    """The epochs that a stopped training has run; None for one with other settings."""
    found = checkpoints.load()
    if found is None:
        return None
    return found.snapshot.epoch + found.snapshot.step / steps_an_epoch(problem.data, recipe)


def _curves(curves: Sequence[Sequence[float]]) -> str:
    """curve.csv: the mean loss of each epoch, of several supernets followed by each one's."""
    lines = ["epoch,loss" + "".join(f",supernet {n}" for n in range(1, len(curves) + 1) if len(curves) > 1)]
    for epoch, losses in enumerate(zip(*curves, strict=True), 1):
        mean = round(sum(losses) / len(losses), 5)
        lines.append(",".join(map(str, [epoch, mean, *(losses if len(losses) > 1 else ())])))
    return "\n".join([*lines, ""])


def _checkpoint_file(number: int) -> str:
    """The name of the file from which a run's supernet `number`, from 0, continues."""
    return supernet_file(number).replace("supernet", "checkpoint")


def _obsolete(stage: Stage, count: int, inputs: Mapping[str, str]) -> list[Path]:
    """Files that are of no use for this number of supernets: checkpoints, and files of other inputs."""
    replaced = {stage.path(supernet_file(number)) for number in range(count)}
    done = {stage.path(_checkpoint_file(number)) for number in range(count)}
    found = {path for path in stage.folder.glob("*.safetensors") if path not in replaced | done}
    gone = done | {path for path in found if inputs_of(path) != inputs}
    return sorted({*gone, *map(lines_beside, gone), stage.path(EARLIER_RECORDS)})
