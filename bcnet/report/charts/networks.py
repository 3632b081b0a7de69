"""The compared networks: their metric against measured latency, and a table."""

from collections.abc import Iterator

from bcnet.plain import milliseconds
from bcnet.report.chart import Chart, Role, Series, Table
from bcnet.report.charts.axes import listed, marked, scale_of
from bcnet.report.content import RunReport
from bcnet.show.tables import value_of

ROLES: dict[str, Role] = {"original": "original", "full": "original", "uniform": "uniform"}
SCRATCH = "found (from scratch)"


def network_charts(report: RunReport) -> Iterator[Chart]:
    """Accuracy against measured latency."""
    if not report.networks:
        return
    scale, unit = scale_of(report.metric)
    series = []
    for own in report.networks:
        ends = (own.accuracy_low, own.accuracy_high)
        text = (
            f"{own.name}: {milliseconds(own.latency.median_ms)} ms, {value_of(report.metric, own.accuracy)}"
        )
        role = "front" if own.name == SCRATCH else ROLES.get(own.name.split(" ")[0], "found")
        point = (own.latency.median_ms,), (scale * own.accuracy,)
        errors = ((scale * ends[0], scale * ends[1]),) if ends[0] is not None and ends[1] is not None else ()
        texts = (f"{text}, widths {listed(own.widths)}",)
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
        marks=marked(report.compared_budget),
    )


def comparison(report: RunReport) -> Table:
    """The networks side by side."""
    scale, unit = scale_of(report.metric)
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
            *(there.latency.median_ms for there in own.further or ()),
        )
        for own in report.networks
    ]
    more = ("latency (ms)", "90th percentile (ms)", "times as fast", "noise (%)", "parameters", "MACs")
    headings = ("network", f"{report.metric}{unit}", "lost", *more, "size (MB)", "passes")
    devices = tuple(f"on {there.device} (ms)" for there in first.further or ())
    return Table((*headings, *devices), tuple(rows))
