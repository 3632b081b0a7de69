"""List the runs in the working folder, as text and as JSON, and remove one."""

import datetime
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bcnet.errors import ArtifactError, BcnetError, UsageError
from bcnet.hw_profiles.target import Target
from bcnet.locks import Locked, lock_file, locked
from bcnet.pipeline.results import ExportSummary, SearchSummary, SliceSummary, TableSummary
from bcnet.plain import counted, milliseconds
from bcnet.run_choice import checked_name
from bcnet.run_target import bound_to
from bcnet.runs import MANIFEST, RUNS, Run
from bcnet.width_search.latency_budget import LatencyBudget

STAGES = ("train", "build-lut", "search", "slice", "export", "compare")
HEADINGS = ("run", "device", "budget", "winner, accuracy", "export", "date")
# What a stage is made from: the key in its manifest, and the stage whose digest that is.
MADE_FROM = {
    "search": {"supernet": "train"},
    "slice": {"supernet": "train", "search": "search"},
    "export": {"search": "search", "slice": "slice"},
    "compare": {"export": "export"},
}


@dataclass(frozen=True)
class RunState:
    """What a run holds: its target, its winner, whether the export is verified; None if unknown.

    `further` are other devices on which the network has to meet a budget. `latency_ms` is that of the export
    where it was measured, else the winner's, measured or predicted; `date` is when its last stage was
    finished. `accuracy` is the value of `metric`: that of the small network on the "test" images, or until it
    exists that of the winner on the "validation" images. `outdated` are stages that were made from results
    which have been replaced since; budget and winner are not those of an outdated export. `problem` is the
    reason why the run cannot be read.
    """

    name: str
    folder: str
    stages: tuple[str, ...]
    target: Target | None = None
    budget: LatencyBudget | None = None
    further: tuple[str, ...] = ()
    min_accuracy: float | None = None
    widths: tuple[int, ...] | None = None
    latency_ms: float | None = None
    accuracy: float | None = None
    accuracy_on: str | None = None
    metric: str = "accuracy"
    macs: int | None = None
    verified: bool | None = None
    outdated: tuple[str, ...] = ()
    date: str | None = None
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        own = {
            "target": self.target.to_json() if self.target else None,
            "budget": self.budget.model_dump(mode="json") if self.budget else None,
        }
        return {**asdict(replace(self, budget=None)), **own}

    def row(self) -> list[str]:
        """The row of the printed table, below `HEADINGS`."""
        if self.problem:
            return [self.name, "cannot be read", "", "", "", self.date or ""]
        verdict = {True: "verified", False: "not verified", None: ""}[self.verified]
        verdict += ", outdated" if "export" in self.outdated else ""
        return [self.name, self._device(), self._budget(), self._winner(), verdict, self.date or ""]

    def _device(self) -> str:
        if self.target is None:
            return ""
        own = self.target
        batch = f", batch {own.batch}" if own.batch > 1 else ""
        threads = f", {own.threads} threads" if own.threads > 1 else ""
        further = "".join(f" and {device}" for device in self.further)
        return f"{own.device}, {own.precision}{batch}{threads}{further}"

    def _budget(self) -> str:
        if self.budget is not None:
            return self.budget.amount
        return "" if self.min_accuracy is None else f"accuracy {self.min_accuracy:.4g}"

    def _winner(self) -> str:
        if self.latency_ms is None:
            return f"none yet, {self.stages[-1]} done" if self.stages else "none yet"
        outdated = ", outdated" if "search" in self.outdated else ""
        return f"{milliseconds(self.latency_ms)} ms{self._accuracy()}{outdated}"

    def _accuracy(self) -> str:
        if self.accuracy is None:
            return ""
        by_name = f"{self.metric} {self.accuracy:.4g}"
        return f", {f'{self.accuracy:.2%}' if self.metric == 'accuracy' else by_name} ({self.accuracy_on})"


def runs() -> list[RunState]:
    """All runs, by name."""
    folders = RUNS.iterdir() if RUNS.is_dir() else ()
    return [
        _state(folder) for folder in sorted(folders) if not folder.name.startswith(".") and folder.is_dir()
    ]


def require_run(run: Run) -> None:
    """Raise UsageError, with the names of those that there are, where there is no such run."""
    if not run.folder.is_dir():
        names = ", ".join(state.name for state in runs()) or "none"
        raise UsageError(f"there is no run '{run.folder.name}'; available: {names}")


def _state(folder: Path) -> RunState:
    run = Run(folder)
    manifests = {name: run.stage(name).path(MANIFEST) for name in STAGES}
    done = tuple(name for name, path in manifests.items() if path.exists())
    newest = max((manifests[name].stat().st_mtime for name in done), default=None)
    date = None if newest is None else datetime.datetime.fromtimestamp(newest).date().isoformat()
    state = RunState(folder.name, str(folder), done, date=date)
    try:
        if "build-lut" in done:
            run.stage("build-lut").json(TableSummary.FILE)
        searched = SearchSummary.checked(run.stage("search")) if "search" in done else None
        sliced = SliceSummary.checked(run.stage("slice")) if "slice" in done else None
        exported = ExportSummary.checked(run.stage("export")) if "export" in done else None
        bound = bound_to(run)
        stale = tuple(name for name in done if outdated(run, name, done))
        verified = exported.verified if exported else None
        state = replace(state, target=bound.target if bound else None, verified=verified, outdated=stale)
        if searched:
            best = searched.best
            state = replace(
                state,
                budget=searched.budget,
                further=tuple(own.device for own in searched.further or ()),
                min_accuracy=searched.min_accuracy,
                widths=best.widths,
                latency_ms=best.measured.median_ms if best.measured else best.predicted_ms,
                accuracy=best.accuracy,
                accuracy_on="validation",
                metric=searched.metric,
                macs=searched.macs,
            )
        if sliced and "slice" not in stale:
            # The sliced network counts: it may be another point of the front than the search's winner.
            known = state.latency_ms if sliced.widths == state.widths else None
            state = replace(
                state,
                budget=sliced.budget,
                widths=sliced.widths,
                latency_ms=sliced.predicted_ms if known is None else known,
                accuracy=sliced.test_accuracy_after,
                accuracy_on="test",
                macs=sliced.macs,
            )
        if exported and "export" not in stale:
            measured = exported.measured.median_ms if exported.measured else state.latency_ms
            accuracy = state.accuracy if exported.accuracy is None else exported.accuracy
            state = replace(state, latency_ms=measured, accuracy=accuracy, accuracy_on="test")
        return state
    except BcnetError as reason:
        return RunState(folder.name, str(folder), done, date=date, problem=str(reason))


def outdated(run: Run, name: str, done: Sequence[str]) -> bool:
    """Whether a finished stage was made from results that have been replaced since."""
    made_from = {key: stage for key, stage in MADE_FROM.get(name, {}).items() if stage in done}
    inputs = run.stage(name).inputs() if made_from else {}
    return any(
        inputs.get(key) != run.stage(stage).digest() or outdated(run, stage, done)
        for key, stage in made_from.items()
    )


@dataclass(frozen=True)
class Removal:
    """A run that may be removed, and what would be lost."""

    run: Run
    files: int
    size_bytes: int
    verified: bool

    def __str__(self) -> str:
        export = "with its verified export" if self.verified else "without a verified export"
        return f"{self.run.folder}: {counted(self.files, 'file')}, {self.size_bytes / 1e6:.1f} MB, {export}"


def removal(name: str) -> Removal:
    """What `remove` would remove. Raises UsageError where there is no such run, or it is a link."""
    run = Run.named(checked_name(name))
    if run.folder.is_symlink():
        raise UsageError(f"{run.folder} is a link, and its target is kept: remove the link itself")
    left = [path for path in (lock_file(run.folder), _aside(run.folder)) if path.exists()]
    if not left:
        require_run(run)
    if not run.folder.is_dir():
        return Removal(run, len(left), 0, verified=False)
    sizes = [
        (Path(folder) / file).lstat().st_size for folder, _, files in os.walk(run.folder) for file in files
    ]
    return Removal(run, len(sizes), sum(sizes), _state(run.folder).verified is True)


def _aside(folder: Path) -> Path:
    """The name that a run's folder has while it is being removed."""
    return folder.with_name(f".{folder.name}.removed")


def remove(wanted: Removal) -> None:
    """Remove a run's folder, or what a killed process left of it; links in it are removed, not followed.
    Latency tables stay.

    Raises ArtifactError where a process is using it.
    """
    folder = wanted.run.folder
    try:
        with locked(folder):
            aside = _aside(folder)
            shutil.rmtree(aside, ignore_errors=True)  # left by an interrupted removal
            if folder.is_dir():
                folder.rename(aside)  # removed completely or not at all
                shutil.rmtree(aside)
    except Locked:
        raise ArtifactError(f"a process is using {folder}; wait until it ends, or stop it") from None
