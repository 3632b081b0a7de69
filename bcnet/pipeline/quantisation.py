"""Networks in the device's precision: their score as delivered, and quantisation-aware training at INT8.

In: a problem, a network in floats. Out: its score through the file that would be exported; the network after
a few passes through the integers of that file (quantisation-aware training).
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from onnx import ModelProto
from torch import nn

from bcnet.errors import ModelError
from bcnet.models.binary import has_binary
from bcnet.onnx_export.int8 import Feed, calibration_feeds, unsigned_activations
from bcnet.onnx_export.onnx_supernet import to_onnx
from bcnet.pipeline.file_outputs import file_outputs
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.route import fine_tuning_rate
from bcnet.pipeline.teacher import objective_for
from bcnet.pipeline.verify import on_this_processor
from bcnet.plain import loss_text
from bcnet.progress import announce, say, working
from bcnet.training.checkpoints import CheckpointFile
from bcnet.training.distributed import same_as_first
from bcnet.training.durations import seconds_to_fit
from bcnet.training.loop import fit_network, steps_an_epoch
from bcnet.training.quantised_network import Calibration, QuantisedNetwork
from bcnet.training.recipe import Objective, Recipe
from bcnet.width_search.scorer import Score, best_first, evaluate_network, loss_of, score_of

SHARE = 4  # fine-tuning passes for which there is one further pass through integers
COSTS = 0.02  # relative rise of the validation loss above which training through integers is tried
RATE = 0.1  # factor on the fine-tuning rate: weights move only a little further


def is_aware(problem: Problem) -> bool:
    """Whether networks are trained through the integers of their files.

    Those with binary layers are not: signs in a file have no derivative that could train what is before them.
    """
    wanted = problem.config.slice.quantization_aware is not False
    return wanted and problem.profile.number_format.calibrated and not has_binary(problem.model)


def aware_passes(problem: Problem, epochs: int) -> int:
    """The passes through integers that follow `epochs` of fine-tuning; 0 if the device has no integers."""
    return max(1, epochs // SHARE) if epochs and is_aware(problem) else 0


def quantised_network(problem: Problem, network: nn.Module, every: int | None = None) -> QuantisedNetwork:
    """A network as its INT8 file for the problem's device computes it (see `QuantisedNetwork`)."""
    profile, data = problem.profile, problem.data

    def feeds(proto: ModelProto) -> Iterable[Feed]:
        names = [entry.name for entry in proto.graph.input]
        return calibration_feeds(data, names, profile.batch, problem.config.seed)

    calibration = Calibration(feeds, unsigned_activations(profile), profile.opset)
    return QuantisedNetwork(network, data.example(profile.batch), calibration, every=every)


def delivered_score(problem: Problem, network: nn.Module, *, calibrate: bool = False) -> Score:
    """A network's score on the validation images in the device's precision; for `calibrate` see `score_of`.

    Below full precision, its file is executed by ONNX Runtime on this processor.
    """
    data = problem.data
    if problem.profile.number_format.full:
        return evaluate_network(network, data, data.val, problem.task, calibrate=calibrate)
    with working(f"exporting a network at {problem.profile.precision}"):
        proto = problem.at_precision(to_onnx(network, data.example(problem.profile.batch)))
    content, profile = proto.SerializeToString(), on_this_processor(problem.profile)
    tested = replace(data, test=data.val)
    outputs = file_outputs(content, network, tested, profile, kind="validation")
    return score_of(outputs, problem.task, calibrate=calibrate)


def through_integers(checkpoint: CheckpointFile) -> CheckpointFile:
    """The checkpoint of the training through integers, beside that of the fine-tuning before it."""
    path = checkpoint.path
    return replace(checkpoint, path=path.with_stem(f"{path.stem}-integers"), log=None)


@dataclass(frozen=True)
class Quantised:
    """A network after its training through integers, and how many passes were kept and discarded."""

    network: nn.Module
    passes: int = 0
    discarded: int = 0


@dataclass(frozen=True)
class QuantisationAware:
    """How networks are trained through integers; `original` is the trained network, if there is one."""

    problem: Problem
    original: nn.Module | None = None

    def __call__(
        self, begun: nn.Module, what: str, passes: int, checkpoint: CheckpointFile | None = None
    ) -> Quantised:
        """Train a copy of `begun` for `passes` passes, and return it if its file is better, else `begun`.

        If PyTorch cannot execute the file, this is reported, and `begun` is returned.
        """
        problem = self.problem
        data, config = problem.data, problem.config
        before = delivered_score(problem, begun)
        if config.slice.quantization_aware is None:
            floats = evaluate_network(begun, data, data.val, problem.task)
            if not _costs(floats, before):
                losses = f"{loss_text(loss_of(floats))} in floats, {loss_text(loss_of(before))} at int8"
                say(f"{what}: left out, since int8 loses next to nothing (validation loss {losses})")
                return Quantised(begun)
        recipe = replace(Recipe.of(config, passes, RATE * fine_tuning_rate(problem)), amp=False)
        try:
            with working("making the INT8 network"):
                integers = quantised_network(problem, begun, steps_an_epoch(data, recipe))
        except ModelError as reason:
            say(f"{what}: left out: {reason}")
            return Quantised(begun)
        objective = self._objective(integers, recipe)
        announce(what, seconds_to_fit(integers, data, recipe, objective))
        fit_network(integers, data, recipe, what, objective=objective, checkpoint=checkpoint)
        trained = copy.deepcopy(begun)
        trained.load_state_dict(integers.network.state_dict())
        after = delivered_score(problem, trained.eval())
        kept = torch.tensor(int(best_first(after) < best_first(before)))
        same_as_first([kept])  # all processes continue with the same network
        better = bool(kept)
        losses = " before, ".join(loss_text(loss_of(own)) for own in (before, after))
        say(f"{what}: validation loss at int8 {losses} after{'' if better else ': discarded'}")
        return Quantised(trained, passes) if better else Quantised(begun, 0, passes)

    def _objective(self, integers: QuantisedNetwork, recipe: Recipe) -> Objective | None:
        """The loss of fine-tuning, without features: the modules that would give these do not run here."""
        if self.problem.task.train_step is not None:
            return None
        return objective_for(self.problem, self.original, integers, recipe, features=False)


def _costs(floats: Score, integers: Score) -> bool:
    """Whether quantisation makes a network so much worse that training through integers may help."""
    if floats.loss > 0:  # else there is no loss, as with a user's own training step
        return not integers.loss <= floats.loss * (1 + COSTS)
    return not integers.accuracy >= floats.accuracy - COSTS * abs(floats.accuracy)
