"""Short trials of what the stages spend their time on. In: a problem. Out: seconds and peak memory of each.

One step, score, measurement or export is done for real, on the configured data and device; nothing is kept.
"""

import math
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import torch

from bcnet.config.section import latency_share
from bcnet.latency_tables.table import LatencyTable
from bcnet.measure.layer_attribution import layers_ms
from bcnet.measure.network_design import calibration_subnets, plan
from bcnet.measure.network_latency import measure_network, replayed, setting_of, why_not_here
from bcnet.measure.table_build import runs_of_a_profile
from bcnet.pipeline.file_outputs import file_metric
from bcnet.pipeline.original import is_given
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.route import on_trained_network
from bcnet.pipeline.search_inputs import DEFAULT_SHARE, scoring
from bcnet.pipeline.teacher import objective_for
from bcnet.pipeline.trained_scores import TrainedScores
from bcnet.pipeline.training_precision import faster
from bcnet.pipeline.verify import on_this_processor
from bcnet.space.extract import tensors_of
from bcnet.space.supernet import cut
from bcnet.space.widen import supernet_state
from bcnet.space.width_space import Widths
from bcnet.training.assigned_steps import BestAssignments
from bcnet.training.durations import seconds_a_step, seconds_to_fit
from bcnet.training.gradient_importance import gate_importances
from bcnet.training.loop import Trainee
from bcnet.training.parts import SlicedParts
from bcnet.training.recipe import Objective, Recipe
from bcnet.training.step_plan import StepPlan
from bcnet.training.supernet_step import DrawnSteps, SlicedPaths, trainable
from bcnet.width_search.scorer import evaluate_network

T = TypeVar("T")
KIB = 1024
EVALUATED = 1024  # test images of a trial, at most
IMPORTANCES = 4  # batches of a trial


@dataclass(frozen=True)
class Unit:
    """What was tried once: its seconds, and the peak of memory meanwhile, in bytes, on a GPU separately."""

    seconds: float
    memory: int
    gpu_memory: int = 0


def tried(work: Callable[[], object]) -> Unit:
    """What `work` takes until it returns."""
    return _tried(work, lambda _, elapsed: elapsed)


def stated(work: Callable[[], float]) -> Unit:
    """The seconds that `work` returns, with the memory that it takes."""
    return _tried(work, lambda seconds, _: seconds)


def _tried(work: Callable[[], T], seconds_of: Callable[[T, float], float]) -> Unit:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # begins a new peak, on Linux
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    found = work()
    seconds = seconds_of(found, time.perf_counter() - start)
    return Unit(seconds, _peak(), torch.cuda.max_memory_allocated() if cuda else 0)


def _peak() -> int:
    """The peak of this process's memory in bytes."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * KIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB


def seconds_a_supernet_step(problem: Problem, recipe: Recipe, objective: Objective | None = None) -> float:
    """The time of a step of a supernet's training, on a copy; with an `objective` all paths learn by that."""
    state = supernet_state(problem.model, problem.space)
    supernet = trainable(problem.supernet(state), recipe.device)
    plan = StepPlan.of(problem.config.train)
    paths = SlicedPaths(supernet, recipe, objective)
    assign = None
    if supernet.assignments is not None:
        assign = BestAssignments(paths, replace(supernet.assignments, random=0.0), problem.data)
    plan = replace(plan, distilled=plan.distilled and objective is None)
    parts = SlicedParts(paths) if plan.parallel else None
    steps = DrawnSteps.of(paths, plan, recipe.seed, assign, parts)
    trainee = Trainee(paths.parameters, lambda *batch: steps(*batch)[1], lambda: paths.buffers, paths.scaler)
    problem.model.to(recipe.device).train()
    try:
        return seconds_a_step(trainee, problem.data, recipe)
    finally:
        problem.model.cpu().eval()


class Trial:
    """Units of work of a problem, each tried on first use.

    `small` are widths like those of the network that is sliced: by default, uniform ones with about the share
    of the original's multiply-accumulates that the budget is of its latency. `recipe` is how networks are
    trained; if not given, as configured, in the faster precision.
    """

    def __init__(self, problem: Problem, small: Widths | None = None, recipe: Recipe | None = None) -> None:
        self.problem, self.data, self.space = problem, problem.data, problem.space
        share = latency_share(problem.config.search.share or DEFAULT_SHARE)
        self.small = small or self.space.uniform(math.sqrt(min(share, 1.0)))
        self._recipe = recipe
        self._whole: dict[float, Unit] = {}
        self.on = ""  # for texts: " on NAME" on a further device

    @cached_property
    def recipe(self) -> Recipe:
        """Of one epoch; its rate is of no importance here."""
        if self._recipe is not None:
            return replace(self._recipe, epochs=1)
        config = self.problem.config
        recipe = Recipe.of(config, 1, 1.0)
        if on_trained_network(self.problem):
            small = cut(self.problem.model, self.space, self.small)
            return faster(
                config, recipe, lambda own: config.slice.epochs * seconds_to_fit(small, self.data, own)
            )
        steps = config.train.supernets * config.train.epochs * self.steps
        return faster(config, recipe, lambda own: steps * seconds_a_supernet_step(self.problem, own))

    @cached_property
    def away(self) -> str | None:
        """Why nothing can be measured on the device now; None where it can."""
        return why_not_here(self.problem.profile) or replayed(self.problem.profile)

    @property
    def devices(self) -> "tuple[Trial, ...]":
        """This trial, and one of the same configuration on each further device."""
        return (self, *self._further)

    @cached_property
    def _further(self) -> "tuple[Trial, ...]":
        found = tuple(Trial(own, self.small, self._recipe) for own in self.problem.further)
        for own in found:
            own.on = f" on {own.problem.profile.name}"
        return found

    @property
    def measured_on(self) -> "tuple[Trial, ...]":
        """The trials on devices where networks can be measured; none, if the first one's cannot."""
        return () if self.away else tuple(own for own in self.devices if not own.away)

    @cached_property
    def steps(self) -> int:
        """Steps in one pass over the training images."""
        return max(1, len(self.data.train) // self.problem.config.train.batch_size)

    @cached_property
    def supernet_step(self) -> Unit:
        """One step of a supernet's training."""
        return stated(lambda: seconds_a_supernet_step(self.problem, self.recipe))

    @cached_property
    def full_epoch(self) -> Unit:
        """One pass of training the original network."""
        return self._epoch(self.space.original(), None)

    @cached_property
    def small_epoch(self) -> Unit:
        """One pass of training the small network."""
        return self._epoch(self.small, None)

    @cached_property
    def tuned_epoch(self) -> Unit:
        """One pass of fine-tuning it: with distillation where that is configured."""
        problem, small = self.problem, cut(self.problem.model, self.space, self.small)
        known = on_trained_network(problem) or is_given(problem)
        original = cut(problem.model, self.space, self.space.original()) if known else None
        return self._epoch(self.small, objective_for(problem, original, small, self.recipe))

    def _epoch(self, widths: Widths, objective: Objective | None) -> Unit:
        network = cut(self.problem.model, self.space, widths)
        return stated(lambda: seconds_to_fit(network, self.data, self.recipe, objective))

    @cached_property
    def score(self) -> Unit:
        """The score of one network, as a search computes it once images have been read."""
        score: Callable[[Widths], object]
        if on_trained_network(self.problem):
            score = TrainedScores(self.problem, tensors_of(self.problem.model))
        else:
            supernet = self.problem.supernet(supernet_state(self.problem.model, self.space))
            score = scoring(self.problem, [supernet] * self.problem.config.train.supernets)
        score(self.space.largest())
        return tried(lambda: score(self.small))

    @cached_property
    def importance(self) -> Unit:
        """One batch of calculating the importance of channels, of the small network."""
        small, space = cut(self.problem.model, self.space, self.small), self.space.narrowed(self.small)
        gate_importances(small, space, self.data, self.recipe, 1)  # the first one is slower
        unit = tried(lambda: gate_importances(small, space, self.data, self.recipe, IMPORTANCES))
        return replace(unit, seconds=unit.seconds / IMPORTANCES)

    @cached_property
    def test(self) -> Unit:
        """Evaluating the original network on all test images."""
        count = len(self.data.test)
        part = self.data.test.take(torch.arange(min(EVALUATED, count)))
        network = cut(self.problem.model, self.space, self.space.original())
        unit = tried(lambda: evaluate_network(network, self.data, part, self.problem.task))
        return replace(unit, seconds=unit.seconds / len(part) * count)

    @cached_property
    def test_of_file(self) -> Unit:
        """The same of its ONNX file, where the device is, else on this processor."""
        problem, count = self.problem, len(self.data.test)
        some = replace(self.data, test=self.data.test.take(torch.arange(min(EVALUATED, count))))
        profile = on_this_processor(problem.profile) if self.away else problem.profile
        content = problem.graph.variant(self.small)
        unit = tried(lambda: file_metric(content, problem.model, some, profile, problem.task))
        return replace(unit, seconds=unit.seconds / len(some.test) * count)

    @cached_property
    def missing(self) -> tuple[int, int]:
        """Networks that contain the layers missing in latency tables, and whole subnets for calibration."""
        each = [self._missing(self.problem.at(name)) for name in self.problem.precisions]
        return sum(own[0] for own in each), sum(own[1] for own in each)

    def _missing(self, problem: Problem) -> tuple[int, int]:
        path = problem.table.path
        table = LatencyTable.load(path) if path.exists() else LatencyTable(problem.profile.name)
        networks, layers = plan(problem.graph, table, setting_of(problem.profile))
        complete = not layers and problem.table.inputs()["table"] != "none"
        return len(networks), 0 if complete else len(calibration_subnets(self.space, problem.config.seed))

    @cached_property
    def graph(self) -> Unit:
        """Exporting a network to ONNX."""
        return stated(lambda: self.problem.graph.export_seconds)

    @cached_property
    def profiled(self) -> Unit:
        """Profiling the layers of one network."""
        graph, profile = self.problem.graph, self.problem.profile
        whole = self.space.original()
        ms = float(layers_ms(graph, whole, graph.variant(whole), profile, 5).sum(0).min())
        runs = runs_of_a_profile(ms)
        return tried(lambda: layers_ms(graph, self.small, graph.variant(self.small), profile, runs))

    def exporting(self) -> Unit:
        """As `graph`."""
        return self.graph

    def profiling(self) -> Unit:
        """As `profiled`."""
        return self.profiled

    def testing_file(self) -> Unit:
        """As `test_of_file`."""
        return self.test_of_file

    def timing(self, share: float) -> Callable[[], Unit]:
        """A function that tries `whole` for this share of the profile's duration."""
        return partial(self.whole, share)

    def whole(self, share: float) -> Unit:
        """Measuring one whole network, for this share of the profile's duration."""
        if share not in self._whole:
            graph, profile = self.problem.graph, self.problem.profile
            model = graph.variant(self.small)
            self._whole[share] = tried(lambda: measure_network(model, profile, share, quiet=True))
        return self._whole[share]
