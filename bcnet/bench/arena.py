"""The arena: compare all methods, and other pruning libraries, on one trained network at equal latency.

In: a trained network with its table and device, budgets, seeds, rows. Out: in `runs/NAME/bench/arena/`
arena.json, arena.txt and arena.svg; for each cell, a row at a budget and a seed, a fine-tuned network as ONNX
in `networks/`. Fine-tuning is the slice stage's; seeds are those of fine-tuning and of fresh weights.

Finished work is kept (`cells.jsonl`, `latencies.jsonl`, see also `arena_starts.py`), and a training has a
checkpoint: a stopped arena continues with the same command. A row that cannot be made is reported and
omitted.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from bcnet.bench.arena_figure import figure
from bcnet.bench.arena_report import as_text, report_of
from bcnet.bench.arena_rows import ORIGINAL, Row
from bcnet.bench.arena_starts import Starts, counts, percent, slug
from bcnet.bench.kept import Kept
from bcnet.bench.outside_job import Failed, NotInstalled
from bcnet.errors import (
    ArtifactError,
    BudgetError,
    ConfigError,
    DeviceError,
    ModelError,
    NetworkError,
    TrainingError,
)
from bcnet.latency_tables.rows import LatencyStat
from bcnet.measure.network_latency import measure_network
from bcnet.onnx_export.onnx_supernet import to_onnx
from bcnet.pipeline import build_lut, train
from bcnet.pipeline.accuracy import file_answers
from bcnet.pipeline.fine_tuning import FineTuning, at_lower_rate
from bcnet.pipeline.original import original_network, trained_network
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.repeated import measured_alternately
from bcnet.pipeline.route import fine_tuning_rate
from bcnet.pipeline.search_inputs import bounds_of
from bcnet.pipeline.teacher import objective_for, teacher_digest
from bcnet.pipeline.training_precision import announced
from bcnet.pipeline.verify import check_file
from bcnet.progress import say, working
from bcnet.reading import read_bytes
from bcnet.runs import Run, alone_in, bytes_digest, digest, json_bytes, write_file
from bcnet.space.extract import tensors_of, with_state
from bcnet.training.checkpoints import CheckpointFile
from bcnet.training.loop import seconds_to_fit
from bcnet.training.recipe import Recipe, fine_tuning_digest, metric_digest

FOLDER = "bench/arena"  # in the run's
ONNX_BYTES = 1 << 31  # no file of that format is larger
AMONG = "chosen_among"  # of a cell: the methods whose networks were compared, where there are several
DURATION = 0.25  # of the profile's, for each measurement of a network
OMITTED = BudgetError, NotInstalled, Failed, TrainingError, NetworkError, ModelError  # a row's own failures


@dataclass(frozen=True)
class Plan:
    """The cells to make: every row at every budget (a share of the original's latency) and every seed."""

    rows: tuple[Row, ...]
    budgets: tuple[float, ...]
    seeds: tuple[int, ...]


class Arena:
    """The cells of one trained network, loaded from disk or made."""

    def __init__(self, run: Run, problem: Problem, plan: Plan) -> None:
        """Prepare the run: its first stage and the latency table. Raises ConfigError without weights."""
        self.run, self.problem, self.plan, self.config = run, problem, plan, problem.config
        self.folder = run.folder / FOLDER
        bounds = [f"search.{bound.key}" for bound in bounds_of(problem)]
        if bounds:
            raise ConfigError(
                "the arena compares networks of equal latency; pruning libraries support no other bounds: "
                f"remove {' and '.join(bounds)}"
            )
        if not problem.trained:
            raise ConfigError("the arena starts from a trained network: set model.weights")
        if run.stage("train").outdated(train.stage_inputs(run, problem)) is not None:
            train.run(run, problem)
        if run.stage("build-lut").outdated(build_lut.stage_inputs(run, problem)) is not None:
            build_lut.run(run, problem)
        reason = problem.table.not_measured(problem.table.latency_model())
        if reason:
            raise DeviceError(f"the arena measures networks on the device: {reason}")
        teacher = trained_network(run, problem)
        assert teacher is not None
        self.teacher = teacher
        self.cells = Kept(
            self.folder / "cells.jsonl", self._cell_inputs, lambda value: isinstance(value, dict)
        )
        self.latencies = Kept(
            self.folder / "latencies.jsonl", self.problem.device_key, lambda value: isinstance(value, dict)
        )
        self.omitted: dict[tuple[str, float], str] = {}

    @cached_property
    def starts(self) -> Starts:
        """The networks before fine-tuning."""
        return Starts(self.run, self.problem, self.teacher, self.folder, self._start_inputs)

    @property
    def _start_inputs(self) -> str:
        """A digest of all that starts depend on: of fine-tuning's settings, all but its length."""
        config = self.config
        search = config.search.model_dump(
            include={"recalibration_images", "measured", "trials", "trial_epochs"}
        )
        own = config.search.model_dump(include={"adjust_by"}, exclude_defaults=True)
        tuning = config.slice.model_dump(
            exclude={"epochs", "inherit", "from_scratch", "latency", "latency_ms"}
        )
        of_project = self.problem.inputs(), self.problem.device_key, teacher_digest(self.problem)
        parts = [of_project, search, tuning, fine_tuning_digest(config), metric_digest(config)]
        return digest([*parts, *own.values()])

    @property
    def _cell_inputs(self) -> str:
        passes = self.config.search.model_dump(include={"prune_epochs"}, exclude_defaults=True)
        return digest([self._start_inputs, self.config.slice.epochs, *passes.values()])

    def train(self) -> None:
        """Make every missing cell, seed by seed."""
        self._cell(ORIGINAL, self._original)
        for share in self.plan.budgets:
            for seed in self.plan.seeds:
                for row in self.plan.rows:
                    self._try(row, share, seed)

    def _try(self, row: Row, share: float, seed: int) -> None:
        if (row.name, share) in self.omitted:
            return
        name = cell_name(row.name, share, seed)
        try:
            self._cell(name, lambda: self._tuned(name, row, share, seed), row.chosen_among)
        except OMITTED as reason:
            self.omitted[row.name, share] = str(reason)
            say(f"{row.name} at {percent(share)} is left out: {reason}")

    def _cell(self, name: str, make: Callable[[], dict[str, Any]], among: tuple[str, ...] = ()) -> None:
        known = self._known(name, among)
        if known is not None:
            if self._network(known) is not None:
                return
            say(f"{self.folder / known['file']} is missing or was changed: it is made again")
        elif name in self.cells.values:
            say(f"{name} did not choose among {', '.join(among)}: it is made again")
        self.cells.add(name, make())
        self.publish()

    def _known(self, name: str, among: tuple[str, ...]) -> dict[str, Any] | None:
        """A finished cell; None for one that chose among other methods, or does not say which."""
        cell: dict[str, Any] | None = self.cells.values.get(name)
        return cell if cell is None or tuple(cell.get(AMONG, ())) == among else None

    def _network(self, cell: Mapping[str, Any]) -> bytes | None:
        """A cell's ONNX file; None where it is missing or was changed."""
        with suppress(OSError, ValueError):
            content = read_bytes(self.folder / cell["file"], ONNX_BYTES)
            if bytes_digest(content) == cell["digest"]:
                return content
        return None

    def _original(self) -> dict[str, Any]:
        network = original_network(self.run, self.problem)
        if network is None:
            network = self.teacher
        facts = {"row": ORIGINAL, "widths": list(self.problem.space.original()), "passes": None}
        return {**facts, **self._evaluated(ORIGINAL, network)}

    def _tuned(self, name: str, row: Row, share: float, seed: int) -> dict[str, Any]:
        problem, config = self.problem, self.config
        start = self.starts.of(row, share, seed)
        network = with_state(problem.model, problem.space, start.state)
        rate = config.train.learning_rate if row.scratch else fine_tuning_rate(problem)
        # Every network gets as many in all.
        before = start.about.get("pruning_passes", 0) + start.about.get("supernet_passes", 0)
        recipe = replace(Recipe.of(config, config.slice.epochs - before, rate), seed=seed)
        objective = objective_for(problem, self.teacher, network, recipe) if row.distilled else None
        say(f"{name}: {start.about['source']}" + (", distilled from the original" if objective else ""))
        checkpoint = CheckpointFile(
            self.folder / "checkpoint.safetensors",
            {"cell": name, "inputs": self._cell_inputs, "start": digest(start.about)},
        )
        recipe = announced(
            self.run,
            problem,
            "fine-tuning",
            recipe,
            lambda own: seconds_to_fit(network, problem.data, own, objective),
            begun=len(self.cells.values) > 1 or checkpoint.path.exists(),  # all cells are trained alike
        )
        began = time.perf_counter()
        tune = FineTuning(problem.data, recipe, config.search.recalibration_images, objective)
        network = tune(network, f"fine-tuning: {name}", checkpoint).network
        facts = {
            "row": row.name,
            "budget": share,
            "seed": seed,
            **start.about,
            **({AMONG: list(row.chosen_among)} if row.chosen_among else {}),
            "distilled": objective is not None,
            "passes": before + recipe.epochs,
            "training_s": round(time.perf_counter() - began, 1),
        }
        facts |= self._evaluated(name, network.eval())
        for path in (checkpoint.path, at_lower_rate(checkpoint.path)):
            path.unlink(missing_ok=True)
        return facts

    def _evaluated(self, name: str, network: nn.Module) -> dict[str, Any]:
        """Export a network: its accuracy through the runtime, images it classifies correctly, its size."""
        problem = self.problem
        with working(f"exporting to ONNX: {name}"):
            proto = problem.at_precision(to_onnx(network, problem.data.example(problem.profile.batch)))
        check_file(proto)
        content = proto.SerializeToString()
        file = Path("networks") / f"{slug(name)}.onnx"
        accuracy, correct = file_answers(problem, content)
        write_file(self.folder / file, content)
        shapes = {own: tuple(tensor.shape) for own, tensor in tensors_of(network).items()}
        return {
            "accuracy": round(accuracy, 6),
            # As bits in hexadecimal, the first image first.
            "correct": None if correct is None else np.packbits(correct).tobytes().hex(),
            "shape": digest(shapes),
            **counts(problem, network),
            "file": str(file),
            "digest": bytes_digest(content),
        }

    def measure(self, again: bool) -> None:
        """Time the networks of each budget and the original alternately; timed ones only if `again`."""
        for share in self.plan.budgets:
            cells = {cell["shape"]: cell for cell in self._done(share)}
            known = self.latencies.values.get(percent(share), {})
            if cells and (again or not cells.keys() <= known.keys()):
                self.latencies.add(percent(share), self._timed(cells))
                self.publish()

    def _timed(self, cells: Mapping[str, Mapping[str, Any]]) -> dict[str, list[float]]:
        contents: dict[str, bytes] = {}
        for shape, cell in cells.items():
            content = self._network(cell)
            if content is None:
                raise ArtifactError(
                    f"{self.folder / cell['file']} is missing or was changed: run the same command without "
                    "--measure to make it again"
                )
            contents[shape] = content

        def timed(shape: str) -> LatencyStat:
            return measure_network(contents[shape], self.problem.profile, DURATION, quiet=True)

        found = measured_alternately(timed, {shape: shape for shape in contents})
        return {shape: own.medians_ms for shape, own in found.items()}

    def _done(self, share: float) -> Iterator[dict[str, Any]]:
        """The finished cells of a budget, the original first."""
        names: dict[str, tuple[str, ...]] = {ORIGINAL: ()}
        for row in self.plan.rows:
            names |= {cell_name(row.name, share, seed): row.chosen_among for seed in self.plan.seeds}
        known = (self._known(name, among) for name, among in names.items())
        yield from (cell for cell in known if cell is not None)

    def publish(self) -> dict[str, Any]:
        """Write the results so far: arena.json and arena.txt."""
        problem, config = self.problem, self.config
        cells = {share: list(self._done(share)) for share in self.plan.budgets}
        latencies = {share: self.latencies.values.get(percent(share), {}) for share in self.plan.budgets}
        about = {
            "benchmark": "arena",
            "model": config.model.name,
            "data": config.data.name,
            "device": problem.profile.name,
            "setting": str(problem.profile.setting),
            "metric": config.task.metric,
            "training_images": len(problem.data.train),
            "test_images": len(problem.data.test),
            "passes": config.slice.epochs,
            "learning_rate": fine_tuning_rate(self.problem),
            "teacher": config.slice.teacher,
            "seeds": list(self.plan.seeds),
        }
        report = report_of(about, [row.name for row in self.plan.rows], cells, latencies, self.omitted)
        write_file(self.folder / "arena.json", json_bytes(report))
        write_file(self.folder / "arena.txt", (as_text(report) + "\n").encode())
        return report


@alone_in("bench")
def run_arena(run: Run, problem: Problem, plan: Plan, measure_only: bool = False) -> dict[str, Any]:
    """Make all cells, time new ones, and report. With `measure_only`, only time all cells again."""
    arena = Arena(run, problem, plan)
    if not measure_only:
        arena.train()
    elif ORIGINAL not in arena.cells.values:
        raise ConfigError("there is nothing to measure yet: run the same command without --measure")
    arena.measure(again=measure_only)
    report = arena.publish()
    if not figure(arena.folder / "arena.svg", report):
        say('no figure: it needs matplotlib (pip install "bcnet[arena]")')
    return report


def cell_name(row: str, share: float, seed: int) -> str:
    """What a cell is called, also in messages."""
    return f"{row} at {percent(share)}, seed {seed}"
