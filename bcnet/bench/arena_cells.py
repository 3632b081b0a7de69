"""Make the networks of an arena's cells. In: a row, a budget, a seed, what was found for the row. Out: facts.

A network is fine-tuned, and written as ONNX to `networks/`. The checkpoint of its training is removed only
when the cell is saved, so that a finished cell is not trained again if the command is stopped before. Nothing
here is timed on the device, so any process may make a cell.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from bcnet.bench.arena_rows import ORIGINAL, Row
from bcnet.bench.arena_starts import Starts, counts, percent, slug
from bcnet.bench.outside_job import Failed, NotInstalled
from bcnet.errors import BudgetError, ModelError, NetworkError, TrainingError
from bcnet.onnx_export.onnx_supernet import to_onnx
from bcnet.pipeline.fine_tuning import FineTuning, at_lower_rate
from bcnet.pipeline.original import original_network, trained_network
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.route import fine_tuning_rate
from bcnet.pipeline.teacher import objective_for, teacher_digest
from bcnet.pipeline.training_precision import announced
from bcnet.pipeline.verify import check_file
from bcnet.progress import say, working
from bcnet.runs import Run, bytes_digest, digest, write_file
from bcnet.sealed import read_about
from bcnet.space.extract import tensors_of, with_state
from bcnet.training.checkpoints import CheckpointFile
from bcnet.training.durations import seconds_to_fit
from bcnet.training.recipe import Recipe, fine_tuning_digest, metric_digest

FOLDER = "bench/arena"  # inside the run's folder
AMONG = "chosen_among"  # a cell's key: the methods whose networks were compared, if there were several
ONE_FOR_ALL = "checkpoint.safetensors"  # in earlier versions, the checkpoint of the cell being trained
OMITTED = BudgetError, NotInstalled, Failed, TrainingError, NetworkError, ModelError  # a row's own failures


@dataclass(frozen=True)
class Cell:
    """A network to be made: a row at a budget and a seed, and what was found for the row at that budget."""

    row: Row
    share: float
    seed: int
    found: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its name, also in messages."""
        return cell_name(self.row.name, self.share, self.seed)

    @property
    def weights(self) -> tuple[object, ...]:
        """What the fine-tuned network depends on: cells of a budget with equal values have the same one."""
        return self.row.weights, self.seed, tuple(self.found["widths"] or (self.row.name,))


def cell_name(row: str, share: float, seed: int) -> str:
    """The name of a cell."""
    return f"{row} at {percent(share)}, seed {seed}"


class Networks:
    """The networks of the cells of a run's arena: fine-tuned, and exported.

    All are trained alike: once the first has begun (`begun`), the training precision is not chosen again.
    `omitted` has the reasons why rows cannot be made at a budget.
    """

    def __init__(self, run: Run, problem: Problem) -> None:
        self.run, self.problem, self.begun = run, problem, False
        self.omitted: dict[tuple[str, float], str] = {}
        self.folder = run.folder / FOLDER
        teacher = trained_network(run, problem)
        assert teacher is not None
        self.teacher = teacher

    @cached_property
    def starts(self) -> Starts:
        """The networks before fine-tuning."""
        return Starts(self.run, self.problem, self.teacher, self.folder, self._start_inputs)

    @property
    def _start_inputs(self) -> str:
        """A digest of all that networks before fine-tuning depend on: of its settings, all but its length."""
        config = self.problem.config
        search = config.search.model_dump(
            include={"recalibration_images", "measured", "trials", "trial_epochs"}
        )
        own = config.search.model_dump(include={"adjust_by"}, exclude_defaults=True)
        tuning = config.slice.model_dump(
            exclude={"epochs", "inherit", "inherit_by_group", "from_scratch", "latency", "latency_ms"}
        )
        of_project = self.problem.inputs(), self.problem.device_key, teacher_digest(self.problem)
        parts = [of_project, search, tuning, fine_tuning_digest(config), metric_digest(config)]
        return digest([*parts, *own.values()])

    @property
    def inputs(self) -> str:
        """A digest of all that cells depend on."""
        config = self.problem.config
        passes = config.search.model_dump(include={"prune_epochs"}, exclude_defaults=True)
        return digest([self._start_inputs, config.slice.epochs, *passes.values()])

    def original(self) -> dict[str, Any]:
        """The original network, exported; its facts."""
        network = original_network(self.run, self.problem)
        if network is None:
            network = self.teacher
        facts = {"row": ORIGINAL, "widths": list(self.problem.space.original()), "passes": None}
        return {**facts, **self._exported(ORIGINAL, network)}

    def tuned(self, cell: Cell) -> dict[str, Any] | str:
        """A cell's network, fine-tuned and exported: its facts, or why it cannot be made."""
        known = self.omitted.get((cell.row.name, cell.share))
        if known is not None:
            return known
        try:
            return self._tuned(cell)
        except OMITTED as reason:
            return str(reason)

    def _tuned(self, cell: Cell) -> dict[str, Any]:
        problem, config, row, name = self.problem, self.problem.config, cell.row, cell.name
        start = self.starts.of(row, cell.share, cell.seed, cell.found)
        network = with_state(problem.model, problem.space, start.state)
        rate = config.train.learning_rate if row.scratch else fine_tuning_rate(problem)
        # Every network gets the same number of passes in total.
        before = start.about.get("pruning_passes", 0) + start.about.get("supernet_passes", 0)
        recipe = replace(Recipe.of(config, config.slice.epochs - before, rate), seed=cell.seed)
        objective = objective_for(problem, self.teacher, network, recipe) if row.distilled else None
        say(f"{name}: {start.about['source']}" + (", distilled from the original" if objective else ""))
        checkpoint = CheckpointFile(
            self._checkpoint(name), {"cell": name, "inputs": self.inputs, "start": digest(start.about)}
        )
        recipe = announced(
            self.run,
            problem,
            "fine-tuning",
            recipe,
            lambda own: seconds_to_fit(network, problem.data, own, objective),
            begun=self.begun or checkpoint.path.exists(),
        )
        began = time.perf_counter()
        tune = FineTuning(problem.data, recipe, config.search.recalibration_images, objective)
        network = tune(network, f"fine-tuning: {name}", checkpoint).network
        facts = {
            "row": row.name,
            "budget": cell.share,
            "seed": cell.seed,
            **start.about,
            **({AMONG: list(row.chosen_among)} if row.chosen_among else {}),
            "distilled": objective is not None,
            "passes": before + recipe.epochs,
            "training_s": round(time.perf_counter() - began, 1),
        }
        return facts | self._exported(name, network.eval())

    def same(self, cell: Cell, facts: Mapping[str, Any], content: bytes) -> dict[str, Any]:
        """The facts of a cell whose network another cell has: `facts` are that one's, `content` its file."""
        own = {key: value for key, value in facts.items() if key != AMONG} | dict(cell.found)
        if cell.row.chosen_among:
            own[AMONG] = list(cell.row.chosen_among)
        say(f"{cell.name}: the network of {cell_name(facts['row'], cell.share, cell.seed)}")
        return {**own, "row": cell.row.name, "file": self._written(cell.name, content)}

    def _written(self, name: str, content: bytes) -> str:
        """Write a network's file; its path in the folder."""
        file = Path("networks") / f"{slug(name)}.onnx"
        write_file(self.folder / file, content)
        return str(file)

    def _exported(self, name: str, network: nn.Module) -> dict[str, Any]:
        """Write a network as ONNX: its size, the file, what identifies its shape and its content."""
        problem = self.problem
        with working(f"exporting to ONNX: {name}"):
            proto = problem.at_precision(to_onnx(network, problem.data.example(problem.profile.batch)))
        check_file(proto)
        content = proto.SerializeToString()
        shapes = {own: tuple(tensor.shape) for own, tensor in tensors_of(network).items()}
        return {
            "shape": digest(shapes),
            **counts(problem, network),
            "file": self._written(name, content),
            "digest": bytes_digest(content),
        }

    def _checkpoint(self, name: str) -> Path:
        return self.folder / f"checkpoint-{slug(name)}.safetensors"

    def forget(self, name: str) -> None:
        """Remove the checkpoints of a cell that is kept, or cannot be made."""
        own = self._checkpoint(name)
        for path in (own, at_lower_rate(own)):
            path.unlink(missing_ok=True)

    def adopt(self) -> None:
        """Rename an earlier version's checkpoint after its cell, so that this cell's training continues."""
        old = self.folder / ONE_FOR_ALL
        for path, of in ((old, Path), (at_lower_rate(old), at_lower_rate)):
            if path.exists():
                with suppress(ValueError, KeyError, TypeError):
                    path.replace(of(self._checkpoint(read_about(path)["made_from"]["cell"])))
                path.unlink(missing_ok=True)


def networks_of_run(run: Run, problem: Problem) -> Networks:
    """The networks of a run's arena, in a process that helps the first one."""
    return Networks(run, problem)
