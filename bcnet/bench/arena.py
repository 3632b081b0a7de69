"""The arena: compare all methods, and other pruning libraries, on one trained network at equal latency.

In: a trained network with its table and device, budgets, seeds, rows. Out: in `runs/NAME/bench/arena/`
arena.json, arena.txt and arena.svg; for each cell (a row at a budget and a seed) a fine-tuned network as ONNX
in `networks/`. Fine-tuning is the slice stage's; seeds are those of fine-tuning and of fresh weights.

For each budget, the first process finds what all rows start from, which takes measurements; then the
processes take one cell after the other. Finished work is saved (`cells.jsonl`, `latencies.jsonl`, see also
`arena_starts.py`), and a training has a checkpoint: a stopped arena continues with the same command, in any
number of processes. A row that cannot be made is reported and omitted.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from bcnet.bench.arena_cells import AMONG, OMITTED, Cell, Networks, cell_name, networks_of_run
from bcnet.bench.arena_figure import figure
from bcnet.bench.arena_report import as_text, report_of
from bcnet.bench.arena_rows import ORIGINAL, Row
from bcnet.bench.arena_starts import percent
from bcnet.bench.kept import Kept
from bcnet.errors import ArtifactError, ConfigError, DeviceError, ProcessEnded
from bcnet.latency_tables.rows import LatencyStat
from bcnet.measure.network_latency import measure_network
from bcnet.pipeline import build_lut, train
from bcnet.pipeline.accuracy import file_answers
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.repeated import measured_alternately
from bcnet.pipeline.route import fine_tuning_rate
from bcnet.pipeline.search_inputs import bounds_of
from bcnet.progress import say, working
from bcnet.reading import read_bytes
from bcnet.runs import Run, alone_in, bytes_digest, json_bytes, write_file
from bcnet.training.shared_work import Shared, each

ONNX_BYTES = 1 << 31  # no file of that format is larger
DURATION = 0.25  # of the profile's, for each measurement of a network


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
        if problem.further:
            others = ", ".join(own.profile.name for own in problem.devices)
            raise ConfigError(
                "the arena compares networks of equal latency, which is possible on one device only: choose "
                f"one of {others} with --device NAME"
            )
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
        self.networks = Networks(run, problem)
        self.folder = self.networks.folder
        self.cells = Kept(
            self.folder / "cells.jsonl", self.networks.inputs, lambda value: isinstance(value, dict)
        )
        self.latencies = Kept(
            self.folder / "latencies.jsonl", self.problem.device_key, lambda value: isinstance(value, dict)
        )

    def train(self) -> None:
        """Make every missing cell, seed by seed."""
        self.networks.adopt()
        if self._is_missing(ORIGINAL):
            self._keep(ORIGINAL, self.networks.original())
        for share in self.plan.budgets:
            self._train(share)

    def _train(self, share: float) -> None:
        """Make the missing cells of a budget; cells that would have the same network share one."""
        cells, known = list(self._missing(share)), self._made(share)
        first: dict[tuple[object, ...], Cell] = {}
        for cell in cells:
            if cell.weights not in known:
                first.setdefault(cell.weights, cell)
        own = list(first.values())
        made = each(Shared(networks_of_run, Networks.tuned, self.networks), own)
        for cell, network in zip(own, made, strict=True):
            if (cell.row.name, share) not in self.networks.omitted:  # an earlier seed of the row failed
                self._finish(cell, network)
        known = self._made(share)
        for cell in cells:
            if cell is first.get(cell.weights) or (cell.row.name, share) in self.networks.omitted:
                continue
            if cell.weights in known:
                self._finish(cell, self.networks.same(cell, *known[cell.weights]))
            else:
                self._omit(cell.row.name, share, self.networks.omitted[first[cell.weights].row.name, share])

    def _made(self, share: float) -> dict[tuple[object, ...], tuple[dict[str, Any], bytes]]:
        """The facts and the files of a budget's finished cells, by what their networks depend on."""
        made: dict[tuple[object, ...], tuple[dict[str, Any], bytes]] = {}
        for seed in self.plan.seeds:
            for row in self.plan.rows:
                facts = self._known(cell_name(row.name, share, seed), row.chosen_among)
                content = self._network(facts) if facts else None
                if facts and content is not None:
                    made.setdefault(Cell(row, share, seed, facts).weights, (facts, content))
        return made

    def _missing(self, share: float) -> Iterator[Cell]:
        """The cells to be made at a budget, after finding (and measuring) what their rows start from."""
        found: dict[str, Mapping[str, Any]] = {}
        for seed in self.plan.seeds:
            for row in self.plan.rows:
                if (row.name, share) in self.networks.omitted:
                    continue
                if not self._is_missing(cell_name(row.name, share, seed), row.chosen_among):
                    continue
                try:
                    found[row.name] = found.get(row.name) or self.networks.starts.found(row, share)
                except ProcessEnded:
                    raise
                except OMITTED as reason:
                    self._omit(row.name, share, str(reason))
                else:
                    yield Cell(row, share, seed, found[row.name])

    def _finish(self, cell: Cell, made: dict[str, Any] | str) -> None:
        """Save a cell: its facts, or as a text the reason why it cannot be made."""
        try:
            if isinstance(made, dict):
                self._keep(cell.name, made)
            else:
                self._omit(cell.row.name, cell.share, made)
        except OMITTED as reason:
            self._omit(cell.row.name, cell.share, str(reason))
        self.networks.forget(cell.name)

    def _omit(self, row: str, share: float, reason: str) -> None:
        self.networks.omitted[row, share] = reason
        say(f"{row} at {percent(share)} is left out: {reason}")

    def _keep(self, name: str, made: Mapping[str, Any]) -> None:
        """Save a cell's facts, its accuracy in the runtime, and which images are classified correctly."""
        content = self._network(made)
        if content is None:
            raise self._lost(made)
        with working(f"the test images: {name}"):
            accuracy, correct = file_answers(self.problem, content)
        # As bits in hexadecimal, the first image first.
        bits = None if correct is None else np.packbits(correct).tobytes().hex()
        self.cells.add(name, {**made, "accuracy": round(accuracy, 6), "correct": bits})
        self.networks.begun = len(self.cells.values) > 1
        self.publish()

    def _is_missing(self, name: str, among: tuple[str, ...] = ()) -> bool:
        """Whether a cell has to be made; reports why if it was made before."""
        known = self._known(name, among)
        if known is not None:
            if self._network(known) is not None:
                self.networks.forget(name)  # left by a command that was stopped right after saving the cell
                return False
            say(f"{self.folder / known['file']} is missing or was changed: it is made again")
        elif name in self.cells.values:
            say(f"{name} did not choose among {', '.join(among)}: it is made again")
        return True

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

    def _lost(self, cell: Mapping[str, Any]) -> ArtifactError:
        return ArtifactError(
            f"{self.folder / cell['file']} is missing or was changed: run the same command without "
            "--measure to make it again"
        )

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
                raise self._lost(cell)
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
        report = report_of(
            about, [row.name for row in self.plan.rows], cells, latencies, self.networks.omitted
        )
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
