"""Which figures a report has. In: `RunReport`. Out: charts as values, each with the same numbers as a table.

`page.py` draws them in a browser, `figures.py` as PNG files.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Literal

from bcnet.plain import milliseconds
from bcnet.report.chart import Cell, Chart, Marker, Role, Series, Table
from bcnet.report.content import Candidate, RunReport
from bcnet.report.reasons import basis_of
from bcnet.show.tables import short_count, value_of
from bcnet.width_search.latency_budget import LatencyBudget

ROLES: dict[str, Role] = {"original": "original", "full": "original", "uniform": "uniform"}
RUNS: tuple[Role, ...] = ("found", "uniform", "front", "original")  # of several runs, in turn
MARKERS: tuple[Marker, ...] = ("circle", "square", "diamond")  # one for each precision
SCRATCH = "found (from scratch)"
FRONT = "front"
MOST_BARS = 40  # of a figure; its table has all
MOST_POINTS = 3000  # scored networks in a figure, those of the lowest losses


def charts(report: RunReport) -> tuple[Chart, ...]:
    """The figures of a run, without those for which there is nothing."""
    makers = (
        _networks,
        _search,
        _precisions,
        _widths,
        _layers,
        _steps,
        _predictions,
        _progress,
        _training,
        _tuning,
    )
    return tuple(chart for maker in makers for chart in maker(report))


def overview(reports: Sequence[RunReport]) -> tuple[Table, Chart | None]:
    """What several runs delivered: a row each, and their metric against measured latency."""
    metric = reports[0].metric
    scale, unit = _scale(metric)
    rows = tuple(
        (
            own.run,
            own.device,
            own.budget.ms if own.budget else None,
            own.predicted_ms,
            own.measured.median_ms if own.measured else None,
            own.speedup,
            None if own.accuracy is None else scale * own.accuracy,
            None if own.accuracy_lost is None else scale * own.accuracy_lost,
            "verified" if own.verified else "not verified",
        )
        for own in reports
    )
    more = ("budget (ms)", "predicted (ms)", "measured (ms)", "times as fast", f"{metric}{unit}", "lost")
    table = Table(("run", "device", *more, "export"), rows)
    series = tuple(
        Series(str(row[0]), RUNS[number % len(RUNS)], "points", (row[4],), (row[6],), large=True)
        for number, (own, row) in enumerate(zip(reports, rows, strict=True))
        if own.metric == metric and row[4] is not None and row[6] is not None
    )
    if not series:
        return table, None
    caption = "On the test images, against the latency measured on each run's device."
    title, y = "What the runs delivered", f"{metric}{unit}"
    return table, Chart("runs", title, caption, "measured latency (ms)", y, series, table)


def devices(report: RunReport) -> Table:
    """The delivered network on each device that it was searched for; it is verified where measured."""
    first = (report.device, report.budget, report.predicted_ms, report.measured)
    others = [(own.device, own.budget, own.predicted_ms, own.measured) for own in report.further]
    rows = tuple(
        (
            device,
            budget.ms if budget else None,
            predicted_ms,
            budget.counted_ms(measured) if budget and measured else None,
            "verified" if measured else "not verified",
        )
        for device, budget, predicted_ms, measured in (first, *others)
    )
    return Table(("device", "budget (ms)", "predicted (ms)", "measured (ms)", "export"), rows)


def _networks(report: RunReport) -> Iterator[Chart]:
    if not report.networks:
        return
    scale, unit = _scale(report.metric)
    series = []
    for own in report.networks:
        ends = (own.accuracy_low, own.accuracy_high)
        text = (
            f"{own.name}: {milliseconds(own.latency.median_ms)} ms, {value_of(report.metric, own.accuracy)}"
        )
        role = "front" if own.name == SCRATCH else ROLES.get(own.name.split(" ")[0], "found")
        point = (own.latency.median_ms,), (scale * own.accuracy,)
        errors = ((scale * ends[0], scale * ends[1]),) if ends[0] is not None and ends[1] is not None else ()
        texts = (f"{text}, widths {_text(own.widths)}",)
        series.append(Series(own.name, role, "points", *point, texts, errors, large=True))
    interval = " Bars are 95 % intervals." if any(own.errors for own in series) else ""
    yield Chart(
        "networks",
        f"{report.metric.capitalize()} against measured latency",
        f"On the test images, through ONNX Runtime; latencies measured alternately on {report.device}."
        f"{interval}",
        "measured latency (ms)",
        f"{report.metric}{unit}",
        tuple(series),
        comparison(report),
        marks=_budget(report.budget),
    )


def comparison(report: RunReport) -> Table:
    """The networks side by side."""
    scale, unit = _scale(report.metric)
    first = report.networks[0]
    rows = [
        (
            own.name,
            scale * own.accuracy,
            None if own is first else scale * (first.accuracy - own.accuracy),
            own.latency.median_ms,
            own.latency.p90_ms,
            first.latency.median_ms / own.latency.median_ms,
            100 * own.noise,
            own.params,
            own.macs,
            own.size_bytes / 1e6,
            own.passes,
        )
        for own in report.networks
    ]
    more = ("latency (ms)", "90th percentile (ms)", "times as fast", "noise (%)", "parameters", "MACs")
    headings = ("network", f"{report.metric}{unit}", "lost", *more, "size (MB)", "passes")
    return Table(headings, tuple(rows))


def _search(report: RunReport) -> Iterator[Chart]:
    if not report.candidates:
        return
    scale, unit = _scale(report.metric)
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
        f"Validation images, before fine-tuning: {most}{len(report.candidates)} networks. The table has the "
        f"front and what was measured.{expected}",
        "latency (ms)",
        f"{report.metric}{unit}",
        tuple(drawn),
        Table(
            ("widths", "predicted (ms)", "measured (ms)", f"{report.metric}{unit}", "loss", "role"),
            tuple(
                (
                    _text(own.widths),
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
        marks=_budget(report.search_budget),
    )


def _precisions(report: RunReport) -> Iterator[Chart]:
    if not report.precisions:
        return
    scale, unit = _scale(report.metric)
    series, rows = [], list[tuple[Cell, ...]]()
    for number, found in enumerate(report.precisions):
        role, marker = RUNS[number], MARKERS[number]
        front = sorted(found.front, key=lambda own: own.predicted_ms)
        ms, values = tuple(own.predicted_ms for own in front), tuple(scale * own.accuracy for own in front)
        texts = tuple(f"{_text(own.widths)} at {found.precision}" for own in front)
        series.append(Series(f"front at {found.precision}", role, "line", ms, values, texts, marker=marker))
        best, reached = found.best, scale * found.accuracy
        measured = best.measured.median_ms if best.measured else None
        at, text = measured or best.predicted_ms, (f"{_text(best.widths)} at {found.precision}",)
        name = f"best at {found.precision}, as delivered"
        series.append(Series(name, role, "points", (at,), (reached,), text, large=True, marker=marker))
        rows.append((found.precision, _text(best.widths), best.predicted_ms, measured, reached, "best"))
        rows += [
            (found.precision, _text(own.widths), own.predicted_ms, None, scale * own.accuracy, "front")
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
        marks=_budget(report.search_budget),
    )


def _widths(report: RunReport) -> Iterator[Chart]:
    if not report.widths:
        return
    names = tuple(own.name for own in report.widths)
    after = Series("found", "found", "bars", tuple(own.after for own in report.widths), names)
    known = all(own.before is not None for own in report.widths)
    wide = tuple(own.before or 0 for own in report.widths)
    before = (Series("original", "original", "bars", wide, names),) if known else ()
    why = {own.group: own.sentence for own in report.reasons}
    kept = [100 * own.after / own.before if own.before else None for own in report.widths]
    rows = [
        (own.name, own.before, own.after, share, why.get(own.name))
        for own, share in zip(report.widths, kept, strict=True)
    ]
    headings = "group", "original", "found", "kept (%)", "next choices"
    basis = f" Of the next choices {basis_of(report.reasons)}." if why else ""
    yield Chart(
        "widths",
        "Widths before and after",
        f"Channels of each group, in the order of the network.{basis}",
        "channels",
        "",
        (*before, after),
        Table(headings, tuple(rows)) if why else Table(headings[:-1], tuple(row[:-1] for row in rows)),
        flat=True,
    )


def _layers(report: RunReport) -> Iterator[Chart]:
    if not report.layers:
        return
    shown = report.layers[:MOST_BARS]
    names = tuple(_unique([own.name for own in shown]))
    hidden = f" The {MOST_BARS} slowest; the table has all." if len(report.layers) > MOST_BARS else ""
    first = tuple(own.before_ms or 0.0 for own in shown), tuple(own.after_ms or 0.0 for own in shown)
    yield Chart(
        "layers",
        "Milliseconds by layer",
        "Predicted by the latency table: its rows, times the scale of its calibration; what a whole network "
        f"takes beside its layers is not included. The slowest first.{hidden}",
        "ms",
        "",
        (
            Series("original", "original", "bars", first[0], names, tuple(own.before for own in shown)),
            Series("found", "found", "bars", first[1], names, tuple(own.after for own in shown)),
        ),
        Table(
            ("layer", "original", "found", "original (ms)", "found (ms)", "saved (ms)"),
            tuple(
                (
                    own.name,
                    own.before,
                    own.after,
                    own.before_ms,
                    own.after_ms,
                    None if own.before_ms is None or own.after_ms is None else own.before_ms - own.after_ms,
                )
                for own in report.layers
            ),
        ),
        flat=True,
    )


def _steps(report: RunReport) -> Iterator[Chart]:
    if not report.steps:
        return
    order = list(dict.fromkeys(own.group for own in report.steps))
    by_group = {name: [own for own in report.steps if own.group == name] for name in order}
    series = []
    for number in range(max(map(len, by_group.values()))):
        for taken, role in ((True, "found"), (False, "open")):
            own = [steps[number] for steps in by_group.values() if len(steps) > number]
            own = [step for step in own if step.taken is taken]
            if own:
                name = "saved already" if taken else "could still be saved"
                texts = tuple(
                    f"{step.wider} to {step.narrower}: {milliseconds(step.saved_ms or 0.0)} ms"
                    for step in own
                )
                ms, groups = tuple(step.saved_ms or 0.0 for step in own), tuple(step.group for step in own)
                series.append(Series(name, role, "bars", ms, groups, texts))  # type: ignore[arg-type]
    yield Chart(
        "sensitivity",
        "What each step of a group saves",
        "Predicted milliseconds from each choice of a group to the next narrower one, at the found widths of "
        "all others; a segment a step, the widest first. Long segments are the device's cliffs.",
        "ms saved",
        "",
        tuple(series),
        Table(
            ("group", "from", "to", "saves (ms)", "taken"),
            tuple(
                (
                    own.group,
                    own.wider,
                    own.narrower,
                    own.saved_ms,
                    "saved already" if own.taken else "could be",
                )
                for own in report.steps
            ),
        ),
        flat=True,
        stacked=True,
    )


def _predictions(report: RunReport) -> Iterator[Chart]:
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
                (_text(own.widths), low, high, 100 * (high / low - 1) if low else None)
                for own, (low, high) in zip(measured, pairs, strict=True)
            ),
        ),
    )


def _progress(report: RunReport) -> Iterator[Chart]:
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


def _training(report: RunReport) -> Iterator[Chart]:
    if not report.curve:
        return
    epochs = tuple(range(1, len(report.curve) + 1))
    yield Chart(
        "training",
        "Training of the supernet",
        "Mean loss over the paths of each epoch.",
        "epoch",
        "loss",
        (Series("loss", "found", "line", epochs, report.curve),),
        Table(("epoch", "loss"), tuple(zip(epochs, report.curve, strict=True))),
    )


def _tuning(report: RunReport) -> Iterator[Chart]:
    if not report.tuning:
        return
    scale, unit = _scale(report.metric)
    epochs = tuple(own.epoch for own in report.tuning)
    values = tuple(scale * own.accuracy for own in report.tuning)
    texts = tuple(f"epoch {own.epoch}: loss {own.loss:.4g}, rate {own.rate:.3g}" for own in report.tuning)
    losses = tuple(own.loss for own in report.tuning)
    headings = "epoch", "loss", f"validation {report.metric}{unit}", "learning rate"
    rows = zip(epochs, losses, values, (own.rate for own in report.tuning), strict=True)
    table = Table(headings, tuple(rows))
    yield Chart(
        "tuning",
        "Training of the small network",
        "The metric on the validation images after each epoch, of the weights as they were then.",
        "epoch",
        f"validation {report.metric}{unit}",
        (Series(f"validation {report.metric}", "found", "line", epochs, values, texts),),
        table,
    )
    yield Chart(
        "tuning-loss",
        "Loss of the small network's training",
        "Mean of each epoch; with a teacher it includes what is learned from it.",
        "epoch",
        "loss",
        (Series("loss", "found", "line", epochs, losses, texts),),
        Table(("epoch", "loss"), tuple(zip(epochs, losses, strict=True))),
    )


def _scale(metric: str) -> tuple[float, str]:
    """What values of a metric are shown by: accuracy in percent, and the unit on its axis."""
    return (100.0, " (%)") if metric == "accuracy" else (1.0, "")


def _loss(own: Candidate) -> float:
    return math.inf if own.loss is None else own.loss


def _expected(own: Candidate) -> float:
    return own.accuracy if own.expected_accuracy is None else own.expected_accuracy


def _latency(own: Candidate) -> float:
    return own.measured.median_ms if own.measured else own.predicted_ms


def _describe(own: Candidate, metric: str) -> str:
    measured = f", measured {milliseconds(own.measured.median_ms)} ms" if own.measured else ""
    reached = value_of(metric, own.accuracy)
    return f"{_text(own.widths)}: {reached}, predicted {milliseconds(own.predicted_ms)} ms{measured}"


def _text(widths: Sequence[int]) -> str:
    return "-".join(map(str, widths))


def _budget(budget: LatencyBudget | None) -> tuple[tuple[str, float], ...]:
    return () if budget is None else ((str(budget), budget.ms),)


def _unique(names: Sequence[str]) -> Iterator[str]:
    """The names, later ones of the same text with a number: a category of an axis is found by its text."""
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        yield name if seen[name] == 1 else f"{name} ({seen[name]})"


def cell(value: Cell, heading: str = "") -> str:
    """A table cell as text: milliseconds (if the heading says so), four significant digits, short counts."""
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, float):
        return milliseconds(value) if heading.endswith("(ms)") else f"{value:.4g}"
    if isinstance(value, int):
        return short_count(value) if value >= 100_000 else str(value)
    return value
