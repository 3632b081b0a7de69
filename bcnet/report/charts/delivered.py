"""What runs delivered: several runs side by side, and one run on each of its devices."""

from collections.abc import Sequence

from bcnet.report.chart import Chart, Series, Table
from bcnet.report.charts.axes import RUNS, scale_of
from bcnet.report.content import RunReport


def overview(reports: Sequence[RunReport]) -> tuple[Table, Chart | None]:
    """What several runs delivered: a row each, and their metric against measured latency."""
    metric = reports[0].metric
    scale, unit = scale_of(metric)
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
