"""The runs in the working folder. In: runs/. Out: what each holds, as text and as JSON; removal of one."""

import datetime
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bcnet.artifacts import MANIFEST, Run, read_json
from bcnet.errors import ArtifactError, BcnetError, UsageError
from bcnet.hw_profiles.target import Target
from bcnet.locks import Locked, locked
from bcnet.run_choice import RUNS, bound_to, checked_name

STAGES = ("train", "build-lut", "search", "slice", "export", "compare")


@dataclass(frozen=True)
class RunState:
    """What a run holds: its target, its winner, whether the export is verified. None: not there (yet).

    `latency_ms` is the export's as measured, else the winner's, measured or predicted; `date` is when the
    last of its stages was finished. `problem` is the reason why it cannot be read.
    """

    name: str
    folder: str
    stages: tuple[str, ...]
    target: Target | None = None
    budget_ms: float | None = None
    min_accuracy: float | None = None
    widths: tuple[int, ...] | None = None
    latency_ms: float | None = None
    accuracy: float | None = None
    macs: int | None = None
    verified: bool | None = None
    date: str | None = None
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {**asdict(self), "target": self.target.to_json() if self.target else None}

    def row(self) -> list[str]:
        """The table row that people read: run, device, budget, winner, export, date."""
        if self.problem:
            return [self.name, f"cannot be read: {self.problem}", "", "", "", self.date or ""]
        verdict = {True: "verified", False: "not verified", None: ""}[self.verified]
        return [self.name, self._device(), self._budget(), self._winner(), verdict, self.date or ""]

    def _device(self) -> str:
        if self.target is None:
            return ""
        own = self.target
        batch = f", batch {own.batch}" if own.batch > 1 else ""
        threads = f", {own.threads} threads" if own.threads > 1 else ""
        return f"{own.device}, {own.precision}{batch}{threads}"

    def _budget(self) -> str:
        if self.budget_ms is not None:
            return f"{self.budget_ms:.4g} ms"
        return "" if self.min_accuracy is None else f"accuracy {self.min_accuracy:.4g}"

    def _winner(self) -> str:
        if self.latency_ms is None:
            return f"none yet, {self.stages[-1]} done" if self.stages else "none yet"
        accuracy = f", {self.accuracy:.4f}" if self.accuracy is not None else ""
        return f"{self.latency_ms:.4g} ms{accuracy}"


def runs() -> list[RunState]:
    """All runs, by name."""
    folders = RUNS.iterdir() if RUNS.is_dir() else ()
    return [
        _state(folder) for folder in sorted(folders) if not folder.name.startswith(".") and folder.is_dir()
    ]


def _state(folder: Path) -> RunState:
    run = Run(folder)
    manifests = {name: run.stage(name).path(MANIFEST) for name in STAGES}
    done = tuple(name for name, path in manifests.items() if path.exists())
    newest = max((manifests[name].stat().st_mtime for name in done), default=None)
    date = None if newest is None else datetime.datetime.fromtimestamp(newest).date().isoformat()
    state = RunState(folder.name, str(folder), done, date=date)
    try:
        bound = bound_to(run)
        found = _read(run, "search", "result.json") if "search" in done else {}
        sliced = _read(run, "slice", "result.json") if "slice" in done else {}
        exported = _read(run, "export", "verify.json") if "export" in done else {}
        best = found.get("best") or {}
        # What was sliced counts: it may be another point of the front than the search's winner.
        measured = (exported.get("measured") or best.get("measured") or {}).get("median_ms")
        predicted = sliced.get("predicted_ms", best.get("predicted_ms"))
        widths = sliced.get("widths", best.get("widths"))
        return RunState(
            folder.name,
            str(folder),
            done,
            target=bound.target if bound else None,
            budget_ms=_number(sliced.get("budget_ms", found.get("budget_ms"))),
            min_accuracy=_number(found.get("min_accuracy")),
            widths=tuple(int(width) for width in widths) if widths else None,
            latency_ms=_number(predicted if measured is None else measured),
            accuracy=_number(exported.get("accuracy", best.get("accuracy"))),
            macs=sliced.get("macs", found.get("macs")),
            verified=exported.get("verified"),
            date=date,
        )
    except BcnetError as reason:
        problem = str(reason)
    except (AttributeError, TypeError, ValueError) as cause:
        problem = f"its results are not those of a stage ({cause})"
    return RunState(state.name, state.folder, done, date=date, problem=problem)


def _read(run: Run, name: str, file: str) -> dict[str, Any]:
    stage = run.stage(name)
    path = stage.path(file)
    found = read_json(path, stage.command)
    if not isinstance(found, dict):
        raise ArtifactError(f"{path} is not in the form that {name} writes")
    return found


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


@dataclass(frozen=True)
class Removal:
    """What is lost when the run is removed."""

    run: Run
    files: int
    size_bytes: int
    verified: bool

    def __str__(self) -> str:
        export = "with its verified export" if self.verified else "without a verified export"
        return f"{self.run.folder}: {self.files} files, {self.size_bytes / 1e6:.1f} MB, {export}"


def removal(name: str) -> Removal:
    """What `remove` would remove. Raises UsageError where there is no such run, or it is a link."""
    run = Run.named(checked_name(name))
    if run.folder.is_symlink():
        raise UsageError(
            f"{run.folder} is a link, and what it points at is left alone: remove the link itself"
        )
    if not run.folder.is_dir():
        names = ", ".join(state.name for state in runs()) or "none"
        raise UsageError(f"there is no run '{name}'; there is: {names}")
    sizes = [
        (Path(folder) / file).lstat().st_size for folder, _, files in os.walk(run.folder) for file in files
    ]
    return Removal(run, len(sizes), sum(sizes), _state(run.folder).verified is True)


def remove(wanted: Removal) -> None:
    """Remove a run's folder; links in it are removed, not followed. Latency tables stay.

    Raises ArtifactError where a process is at work in it.
    """
    folder = wanted.run.folder
    try:
        with locked(folder):
            aside = folder.with_name(f".{folder.name}.removed")
            shutil.rmtree(aside, ignore_errors=True)  # left by an interrupted removal
            folder.rename(aside)  # removed at once, or not at all
            shutil.rmtree(aside)
    except Locked:
        raise ArtifactError(f"a process is at work in {folder}; wait until it is done, or stop it") from None
