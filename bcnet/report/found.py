"""What the stages of a run left. In: the run's folder. Out: their results, and what is wrong with them.

A file that is missing, damaged or outdated is a problem that the report states; it stops nothing.
"""

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from bcnet.errors import ArtifactError, BcnetError, message_of
from bcnet.latency_tables.table import LatencyTable
from bcnet.pipeline.results import (
    LOSSES,
    CompareSummary,
    EstimateSummary,
    ExportSummary,
    ScoredNetwork,
    SearchSummary,
    SliceSummary,
    StageResult,
    TableSummary,
    Values,
    scored_networks,
)
from bcnet.reading import read_text
from bcnet.report.reasons import Losses
from bcnet.run_list import STAGES, outdated
from bcnet.runs import MANIFEST, Run, Stage, read_json

Result = TypeVar("Result", bound=StageResult)
Read = TypeVar("Read")
CURVE = "curve.csv"
FAILED = "failed.json"
VERDICTS = ("failed", "unverified", "estimate")  # which come first


class TuningEpoch(Values):
    """An epoch of the small network's training; `accuracy`: the metric on the validation images after it."""

    epoch: int
    loss: float
    rate: float
    accuracy: float


class Problem(Values):
    """What a reader must know before anything else; `stage` is the stage that it is about."""

    kind: Literal["failed", "unverified", "estimate", "missing", "unreadable", "outdated"]
    stage: str
    text: str


@dataclass(frozen=True)
class Found:
    """The results of a run's stages, None where there is none; `failed` is an export that was refused.

    `history` are all scored networks, `curve` the mean loss of each epoch of the first stage, `tuning` the
    epochs of the small network's training, `losses` those of single widths, where they were kept;
    `environment` the machine and the versions that measured the latency table.
    """

    run: Run
    table: TableSummary | EstimateSummary | None
    search: SearchSummary | None
    history: tuple[ScoredNetwork, ...]
    slice: SliceSummary | None
    export: ExportSummary | None
    failed: ExportSummary | None
    compare: CompareSummary | None
    curve: tuple[float, ...]
    tuning: tuple[TuningEpoch, ...]
    losses: Losses
    environment: Mapping[str, str]
    problems: tuple[Problem, ...]

    @property
    def widths(self) -> tuple[int, ...] | None:
        """Those of the network that is delivered, or until one is cut out, of the search's winner."""
        if self.slice is not None:
            return self.slice.widths
        return self.search.best.widths if self.search else None

    @property
    def estimate(self) -> bool:
        """Whether the latencies are from an estimated table."""
        return isinstance(self.table, EstimateSummary) or bool(self.search and self.search.estimate)

    @property
    def uncompared(self) -> bool:
        """Whether a comparison could be made, but was not asked for: nothing is missing then."""
        verified = self.export is not None and self.export.verified and self.failed is None
        return verified and not _is_begun(self.run.stage("compare"))

    def is_outdated(self, stage: str) -> bool:
        """Whether this stage was made from results that have been replaced since."""
        return any(own.kind == "outdated" and own.stage == stage for own in self.problems)


@dataclass
class _Reader:
    """Reads the stages of a run, and collects what is wrong with them."""

    run: Run
    problems: list[Problem] = field(default_factory=list)

    def note(self, kind: str, stage: str, text: str) -> None:
        self.problems.append(Problem.model_validate({"kind": kind, "stage": stage, "text": text}))

    def read(self, stage: str, reader: Callable[[Stage], Read]) -> Read | None:
        """What `reader` makes of a finished stage; None where there is none, or it cannot be read."""
        own = self.run.stage(stage)
        if not own.path(MANIFEST).exists():
            return None
        return self.attempt(stage, lambda: reader(own))

    def attempt(self, stage: str, reader: Callable[[], Read]) -> Read | None:
        try:
            return reader()
        except (BcnetError, OSError) as reason:
            self.note("unreadable", stage, message_of(reason))
            return None

    def state_of_stages(self) -> None:
        """Note what is missing or outdated."""
        done = [name for name in STAGES if self.run.stage(name).path(MANIFEST).exists()]
        for name in STAGES:
            own = self.run.stage(name)
            if name in done or (name == "compare" and not _is_begun(own)):  # which has to be asked for
                continue
            what = "is not finished" if _is_begun(own) else "has not been done"
            self.note("missing", name, f"{name} {what}; run `{own.command}`")
        for name in done:
            stale = self.attempt(name, lambda name=name: outdated(self.run, name, done))  # type: ignore[misc]
            if stale:
                command = self.run.stage(name).command
                what = "what it was made from has been replaced since"
                self.note("outdated", name, f"{name} is outdated: {what}; run `{command}`")


def found_in(run: Run) -> Found:
    """Read all that the stages of a run left."""
    reader = _Reader(run)
    table = reader.read("build-lut", _table)
    search = reader.read("search", SearchSummary.checked)
    history = reader.read("search", lambda stage: scored_networks(stage, "history.json")) if search else None
    export = reader.read("export", ExportSummary.checked)
    failed = reader.attempt("export", lambda: _failed(run.stage("export")))
    measured = run.folder.parent.parent / (table.table if table else "")  # as seen from here
    environment = reader.attempt("build-lut", lambda: _environment(measured)) if table else None
    found = Found(
        run,
        table,
        search,
        tuple(history or ()),
        reader.read("slice", SliceSummary.checked),
        export,
        failed,
        reader.read("compare", CompareSummary.checked),
        tuple(reader.read("train", _curve) or ()),
        tuple(reader.read("slice", _tuning) or ()),
        reader.read("search", _losses) or {},
        environment or {},
        (),
    )
    _verdicts(reader, found)
    reader.state_of_stages()
    ordered = sorted(reader.problems, key=lambda own: own.kind not in VERDICTS)
    return Found(**{**vars(found), "problems": tuple(ordered)})


def _is_begun(stage: Stage) -> bool:
    """Whether a stage has left any file: it is finished, or was stopped."""
    return stage.folder.is_dir() and any(stage.folder.iterdir())


def _table(stage: Stage) -> TableSummary | EstimateSummary:
    estimated = stage.json(EstimateSummary.FILE).get("estimate")
    return EstimateSummary.checked(stage) if estimated else TableSummary.checked(stage)


def _failed(stage: Stage) -> ExportSummary | None:
    path = stage.path(FAILED)
    if not path.exists():
        return None
    return ExportSummary.parsed(read_json(path, stage.command), path, stage.command)


def _curve(stage: Stage) -> list[float]:
    return _rows(stage, lambda row: float(row["loss"]))


def _tuning(stage: Stage) -> list[TuningEpoch]:
    return _rows(stage, lambda row: TuningEpoch.model_validate_strings(dict(row)))


def _losses(stage: Stage) -> Losses:
    if LOSSES not in stage.manifest()["outputs"]:
        return {}
    try:
        return {
            group: {int(width): float(loss) for width, loss in own.items()}
            for group, own in stage.json(LOSSES).items()
        }
    except (AttributeError, TypeError, ValueError):
        what = f"{stage.path(LOSSES)} is not what search wrote"
        raise ArtifactError(f"{what}; run `{stage.command}` again") from None


def _rows(stage: Stage, row_of: Callable[[Mapping[str, str]], Read]) -> list[Read]:
    """The rows of a stage's curve.csv; none where it has no such file. Raises ArtifactError."""
    path = stage.path(CURVE)
    if not path.exists():
        return []
    try:
        return [row_of(row) for row in csv.DictReader(io.StringIO(read_text(path)))]
    except (KeyError, TypeError, ValueError):
        raise ArtifactError(f"{path} is not what {stage.name} wrote; run `{stage.command}` again") from None


def _environment(path: Path) -> dict[str, str]:
    """The date, machine and versions of the last session of a latency table."""
    table = LatencyTable.load(path)
    newest = max(table.sessions, key=lambda session: session.date, default=None)
    return {"measured on": newest.date, **newest.provenance} if newest else {}


def _verdicts(reader: _Reader, found: Found) -> None:
    """Note what failed, what was not verified, and what was not measured."""
    if found.failed is not None:
        kept = " The files are those of an earlier export, which passed." if found.export else ""
        reasons = "; ".join(found.failed.failures)
        reader.note("failed", "export", f"the last export failed its checks: {reasons}.{kept}")
    export = found.export
    if export is not None and not export.passed:
        reader.note("failed", "export", f"checks failed: {'; '.join(export.failures)}")
    if export is not None and export.passed and not export.verified:
        todo = f"; to verify it, {export.verify_with}" if export.verify_with else ""
        reader.note("unverified", "export", f"not verified: {export.not_verified or 'not measured'}{todo}")
    if export is None:
        reader.note("unverified", "export", "nothing is verified: there is no export")
    if found.estimate:
        what = "latencies are predicted from a table that is an estimate: nothing was measured on the device"
        reader.note("estimate", "build-lut", what)
    recorded = found.search.recorded if found.search else None
    if recorded:
        reader.note("estimate", "search", f"latencies are replayed from {recorded}, not measured")
