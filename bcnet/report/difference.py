"""How two runs differ. In: what their stages left. Out: `RunDifference`, without network or data.

Accuracies are compared image by image where both exports kept their answers to the same test images.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from bcnet.errors import ArtifactError
from bcnet.latency_tables.row_changes import DRIFT
from bcnet.pipeline.accuracy import paired_difference
from bcnet.pipeline.answers import FILE, correct_of
from bcnet.pipeline.results import Answers, Values
from bcnet.report.content import run_report
from bcnet.report.found import Found, found_in
from bcnet.runs import Run, Stage
from bcnet.width_search.latency_budget import LatencyBudget

Name = Literal["accuracy", "latency", "predicted", "parameters", "MACs", "size"]


class Change(Values):
    """A figure of both runs; None where a run does not have it.

    `change` is the difference of accuracies, and of all others a part of the first: -0.12 is 12 % less. It
    has an interval from `low` to `high` where one is known, and then is `separable` if that excludes zero.
    """

    ABSENT: ClassVar[frozenset[str]] = frozenset({"low", "high", "separable"})

    name: Name
    first: float | None
    second: float | None
    change: float | None
    low: float | None = None
    high: float | None = None
    separable: bool | None = None


class GroupChange(Values):
    """The widths of a group of which the two differ; None in a run without this group."""

    name: str
    first: int | None
    second: int | None


class RunDifference(Values):
    """Two runs side by side; `groups` of `of_groups` have another width. `notes` qualify the figures.

    `status` is "ok", "worse" than allowed, or "inconclusive" where that cannot be decided.
    """

    first: str
    second: str
    metric: str
    device: str | None
    changes: tuple[Change, ...]
    groups: tuple[GroupChange, ...]
    of_groups: int
    budgets: tuple[LatencyBudget | None, LatencyBudget | None]
    verified: tuple[bool, bool]
    notes: tuple[str, ...]
    status: Literal["ok", "worse", "inconclusive"]
    reasons: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0: ok; 3: worse than allowed; 4: inconclusive."""
        return {"ok": 0, "worse": 3, "inconclusive": 4}[self.status]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {**super().to_json(), "exit_code": self.exit_code}


@dataclass(frozen=True)
class Allowed:
    """What fails a comparison; None: nothing does.

    A `slowdown` as a part of the latency; a `loss` in percentage points, of another metric than accuracy in
    its own unit.
    """

    slowdown: float | None = None
    loss: float | None = None


@dataclass(frozen=True)
class _Side:
    """One of the runs: its results, and its answers to the test images."""

    found: Found
    answers: Answers | None

    @classmethod
    def of(cls, run: Run) -> "_Side":
        found = found_in(run)
        known = found.export is not None and FILE in run.stage("export").manifest()["outputs"]
        return cls(found, _answers(run.stage("export")) if known else None)

    @property
    def target(self) -> dict[str, Any]:
        """The first device and its setting, as far as known, regardless of how the device is reached."""
        search, table = self.found.search, self.found.table
        own = (search.target if search else None) or (table.target if table else None) or {}
        device = {"device": search.device} if search else {}
        return {**{key: value for key, value in own.items() if key != "host"}, **device}


def _named(target: Mapping[str, Any]) -> str:
    """ "cpu (batch 1, threads 1, precision fp32)"; of several devices, their names before that."""
    devices = target.get("device", "an unknown device")
    names = " and ".join(devices) if isinstance(devices, list | tuple) else str(devices)
    setting = ", ".join(f"{key} {value}" for key, value in target.items() if key != "device")
    return f"{names} ({setting})" if setting else names


def difference_of(first: Run, second: Run, allowed: Allowed | None = None) -> RunDifference:
    """Compare the second run with the first. Raises ArtifactError where one of them has no result."""
    allowed, sides = allowed or Allowed(), (_Side.of(first), _Side.of(second))
    for run, side in zip((first, second), sides, strict=True):
        if side.found.search is None:
            raise ArtifactError(f"{run.folder} has no result yet; run `{run.stage('search').command}`")
    reports = [run_report(run, "not asked for", {}) for run in (first, second)]
    wrong = [(own.run, problem) for own in reports for problem in own.problems if problem.kind != "missing"]
    notes = [f"{name}: {problem.text}" for name, problem in wrong]
    targets, metrics = [own.target for own in sides], {own.metric for own in reports}
    if targets[0] != targets[1]:
        both = " and ".join(_named(own) for own in targets)
        notes.append(f"latencies are not compared: they are of {both}")
    if len(metrics) > 1:
        notes.append(f"the metric is not compared: it is {' and '.join(own.metric for own in reports)}")
    accuracy = _accuracy(sides, notes) if len(metrics) == 1 else _change("accuracy", None, None)
    latency = _latency(sides) if targets[0] == targets[1] else _change("latency", None, None)
    predicted = [own.predicted_ms if targets[0] == targets[1] else None for own in reports]
    sizes = [own.found.slice or own.found.search for own in sides]
    changes = (
        accuracy,
        latency,
        _change("predicted", *predicted),
        _change("parameters", *(own.params if own else None for own in sizes)),
        _change("MACs", *(own.macs if own else None for own in sizes)),
        _change("size", *(own.found.export.size_bytes if own.found.export else None for own in sides)),
    )
    widths = [{group.name: group.after for group in own.widths} for own in reports]
    names = dict.fromkeys([*widths[0], *widths[1]])
    points = 100 if reports[1].metric == "accuracy" else 1
    loss = None if allowed.loss is None else allowed.loss / points
    status, reasons = _status((accuracy, loss), (latency, allowed.slowdown))
    return RunDifference(
        first=str(first.folder),
        second=str(second.folder),
        metric=reports[1].metric,
        device=reports[1].device,
        changes=changes,
        groups=tuple(
            GroupChange(name=name, first=widths[0].get(name), second=widths[1].get(name))
            for name in names
            if widths[0].get(name) != widths[1].get(name)
        ),
        of_groups=len(names),
        budgets=(reports[0].budget, reports[1].budget),
        verified=(reports[0].verified, reports[1].verified),
        notes=tuple(notes),
        status=status,
        reasons=reasons,
    )


def _change(name: Name, first: float | None, second: float | None) -> Change:
    """A figure whose change is a part of the first."""
    known = first is not None and second is not None and first > 0
    return Change(
        name=name,
        first=first,
        second=second,
        change=second / first - 1 if known else None,  # type: ignore[operator]
    )


def _accuracy(sides: tuple[_Side, _Side], notes: list[str]) -> Change:
    exports = [own.found.export for own in sides]
    values = [own.accuracy if own else None for own in exports]
    answers = [own.answers for own in sides]
    change = None if None in values else values[1] - values[0]  # type: ignore[operator]
    interval: dict[str, Any] = {}
    first, second = answers
    if first is None or second is None:
        notes.append("the metric has no interval: answers to single test images are not kept in both runs")
    elif (first.test, first.images) != (second.test, second.images):
        notes.append("the metric has no interval: the test images are not the same")
    else:
        sources = None if second.sources is None else np.array(second.sources)
        _, low, high = paired_difference(correct_of(second), correct_of(first), sources)
        interval = {"low": low, "high": high, "separable": low > 0 or high < 0}
    return Change(name="accuracy", first=values[0], second=values[1], change=change, **interval)


def _latency(sides: tuple[_Side, _Side]) -> Change:
    """With an interval as wide as the noise of both measurements and the drift between two sessions."""
    exports = [own.found.export for own in sides]
    first, second = (own.measured.median_ms if own and own.measured else None for own in exports)
    found = _change("latency", first, second)
    if found.change is None:
        return found
    half = DRIFT + sum(own.noise or 0.0 for own in exports if own)
    low, high = ((1 + found.change) * (1 + sign * half) - 1 for sign in (-1, 1))
    return found.model_copy(update={"low": low, "high": high, "separable": low > 0 or high < 0})


def _status(
    accuracy: tuple[Change, float | None], latency: tuple[Change, float | None]
) -> tuple[Literal["ok", "worse", "inconclusive"], tuple[str, ...]]:
    """Whether the second run is worse than allowed, and why; both changes with their limits."""
    worse, unsure = [], []
    for (change, limit), sign, what in ((accuracy, -1, "loss of the metric"), (latency, 1, "slowdown")):
        if limit is None:
            continue
        if change.change is None:
            unsure.append(f"the {what} is not known")
        elif sign * change.change > limit:
            if change.separable:
                worse.append(f"the {what} is above what is allowed")
            else:
                unsure.append(f"the {what} is above what is allowed, but not separable from the noise")
    status: Literal["ok", "worse", "inconclusive"] = "worse" if worse else "inconclusive" if unsure else "ok"
    return status, (*worse, *unsure)


def _answers(stage: Stage) -> Answers:
    found = Answers.model_validate(stage.json(FILE))
    correct_of(found)
    return found
