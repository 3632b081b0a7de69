"""What the search scored and measured, in each precision, and how it went."""

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Literal

from bcnet.plain import counted, milliseconds
from bcnet.report.chart import Cell, Chart, Marker, Role, Series, Table
from bcnet.report.charts.axes import RUNS, listed, marked, scale_of
from bcnet.report.content import Candidate, RunReport
from bcnet.show.tables import value_of

MARKERS: tuple[Marker, ...] = ("circle", "square", "diamond")  # one for each precision
FRONT = "front"
MOST_POINTS = 3000  # scored networks in a figure, those of the lowest losses


def search_charts(report: RunReport) -> Iterator[Chart]:
    """What was scored and measured."""
    if not report.candidates:
        return
    scale, unit = scale_of(report.metric)
    shown = sorted(report.candidates, key=_loss)[:MOST_POINTS]
    measured = [own for own in report.candidates if own.measured]
    front = sorted((own for own in report.candidates if own.front), key=lambda own: own.predicted_ms)
    winner = [own for own in report.candidates if own.winner]

    def points(name: str, role: Role, own: Sequence[Candidate], *, predicted: bool = True) -> Series:
        texts = tuple(_describe(each, report.metric) for each in own)
        values = tuple(scale * (_expected(each) if name == FRONT else each.accuracy) for each in own)
        ms = tuple(each.predicted_ms if predicted else _latency(each) for each in own)
        kind: Literal["line", "points"] = "line" if name == FRONT else "points"
        return Series(name, role, kind, ms, values, texts, large=name == "winner")

    drawn = [points("scored (predicted latency)", "other", shown)]
    smoothed = any(own.expected_accuracy is not None for own in front)
    expected = " The front is drawn at the accuracies that all scores together give it." if smoothed else ""
    drawn += [points(FRONT, "front", front)] if front else []
    if measured:
        drawn.append(points("measured as a whole", "uniform", measured, predicted=False))
    drawn.append(points("winner", "found", winner, predicted=False))
    most = f"the {MOST_POINTS} of the lowest loss of " if len(report.candidates) > MOST_POINTS else ""
    yield Chart(
        "search",
        "What the search scored",
        f"Validation images, before fine-tuning: {most}{counted(len(report.candidates), 'network')}. "
        f"The table has the front and what was measured.{expected}",
        "latency (ms)",
        f"{report.metric}{unit}",
        tuple(drawn),
        Table(
            ("widths", "predicted (ms)", "measured (ms)", f"{report.metric}{unit}", "loss", "role"),
            tuple(
                (
                    listed(own.widths),
                    own.predicted_ms,
                    own.measured.median_ms if own.measured else None,
                    scale * own.accuracy,
                    own.loss,
                    "winner" if own.winner else "front" if own.front else "measured",
                )
                for own in report.candidates
                if own.front or own.measured or own.winner
            ),
        ),
        marks=marked(report.search_budget),
    )


def precision_charts(report: RunReport) -> Iterator[Chart]:
    """A front for each precision, and the best as delivered."""
    if not report.precisions:
        return
    scale, unit = scale_of(report.metric)
    series, rows = [], list[tuple[Cell, ...]]()
    for number, found in enumerate(report.precisions):
        role, marker = RUNS[number], MARKERS[number]
        front = sorted(found.front, key=lambda own: own.predicted_ms)
        ms, values = tuple(own.predicted_ms for own in front), tuple(scale * own.accuracy for own in front)
        texts = tuple(f"{listed(own.widths)} at {found.precision}" for own in front)
        series.append(Series(f"front at {found.precision}", role, "line", ms, values, texts, marker=marker))
        best, reached = found.best, scale * found.accuracy
        measured = best.measured.median_ms if best.measured else None
        at, text = measured or best.predicted_ms, (f"{listed(best.widths)} at {found.precision}",)
        name = f"best at {found.precision}, as delivered"
        series.append(Series(name, role, "points", (at,), (reached,), text, large=True, marker=marker))
        rows.append((found.precision, listed(best.widths), best.predicted_ms, measured, reached, "best"))
        rows += [
            (found.precision, listed(own.widths), own.predicted_ms, None, scale * own.accuracy, "front")
            for own in front
        ]
    yield Chart(
        "precisions",
        "Fronts in each precision",
        "Validation images. Fronts are of networks before fine-tuning, against their predicted latency, in "
        "their own precision (long ones in steps); the best of each is after its trial where there was one.",
        "latency (ms)",
        f"{report.metric}{unit}",
        tuple(series),
        Table(
            ("precision", "widths", "predicted (ms)", "measured (ms)", f"{report.metric}{unit}", "role"),
            tuple(rows),
        ),
        marks=marked(report.search_budget),
    )


def prediction_charts(report: RunReport) -> Iterator[Chart]:
    """Predicted against measured latency."""
    measured = [own for own in report.candidates if own.measured]
    if not measured:
        return
    pairs = [(own.predicted_ms, _latency(own)) for own in measured]
    ends = min(min(pair) for pair in pairs), max(max(pair) for pair in pairs)
    error = ""
    if report.table_error is not None:
        off = f"{100 * report.table_error:.1f} %"
        error = f" The table is {off} off on average, on networks that it was not fitted to."
    yield Chart(
        "predictions",
        "Predicted against measured",
        f"Networks that the search measured as a whole; on the line, both are equal.{error}",
        "predicted (ms)",
        "measured (ms)",
        (
            Series("equal", "original", "guide", ends, ends),
            Series(
                "measured as a whole",
                "found",
                "points",
                tuple(pair[0] for pair in pairs),
                tuple(pair[1] for pair in pairs),
                tuple(_describe(own, report.metric) for own in measured),
                large=True,
            ),
        ),
        Table(
            ("widths", "predicted (ms)", "measured (ms)", "difference (%)"),
            tuple(
                (listed(own.widths), low, high, 100 * (high / low - 1) if low else None)
                for own, (low, high) in zip(measured, pairs, strict=True)
            ),
        ),
    )


def progress_charts(report: RunReport) -> Iterator[Chart]:
    """The lowest loss so far."""
    if len(report.candidates) < 2:
        return
    best = list(accumulate(map(_loss, report.candidates), min))
    last = len(best)
    steps = [n for n in range(1, last + 1) if n in (1, last) or best[n - 1] < best[n - 2]]
    steps = [n for n in steps if math.isfinite(best[n - 1])]
    if not steps:
        return
    yield Chart(
        "progress",
        "How the search went",
        "The lowest validation loss among the networks scored so far.",
        "networks scored",
        "loss",
        (Series("lowest loss", "found", "steps", tuple(steps), tuple(best[n - 1] for n in steps)),),
        Table(("networks scored", "lowest loss"), tuple((n, best[n - 1]) for n in steps)),
    )


def _loss(own: Candidate) -> float:
    return math.inf if own.loss is None else own.loss


def _expected(own: Candidate) -> float:
    return own.accuracy if own.expected_accuracy is None else own.expected_accuracy


def _latency(own: Candidate) -> float:
    return own.measured.median_ms if own.measured else own.predicted_ms


def _describe(own: Candidate, metric: str) -> str:
    measured = f", measured {milliseconds(own.measured.median_ms)} ms" if own.measured else ""
    reached = value_of(metric, own.accuracy)
    return f"{listed(own.widths)}: {reached}, predicted {milliseconds(own.predicted_ms)} ms{measured}"
