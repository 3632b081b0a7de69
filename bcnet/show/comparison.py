"""Print the comparison at the end of a run: a table of at most 80 columns, and notes."""

import json
from typing import TYPE_CHECKING

from bcnet.plain import counted, milliseconds
from bcnet.show.tables import columns, original_as, put, short_count, value_of

if TYPE_CHECKING:
    from bcnet.pipeline.results import AccuracyDifference, ComparedNetwork, CompareSummary

LONGEST = 18  # letters of a metric's name that fit above its column


def show_comparison(summary: "CompareSummary") -> None:
    """Print the networks in one table, and the notes on them."""
    metric, entries = summary.metric, summary.networks
    close = {name for pair in summary.not_separable for name in pair}
    original = next((entry for entry in entries if entry.name == "original"), None)
    rows = []
    for entry in entries:
        latency_ms = entry.latency.median_ms
        latency = ("~" if entry.name in close else "") + milliseconds(latency_ms)
        row = [entry.name, _with_interval(metric, entry), latency]
        if original is not None:
            row += [_lost(metric, original, entry), f"{original.latency.median_ms / latency_ms:.2f}x"]
        row += [f"{entry.noise:.0%}", short_count(entry.params)]
        rows.append(row if original is not None else [*row, short_count(entry.macs)])
    heading = metric if len(metric) <= LONGEST else "metric"
    heading = "accuracy (95 %)" if entries[0].accuracy_low is not None else heading
    more = ["lost", "speed", "noise", "params"] if original is not None else ["noise", "params", "MACs"]
    put(*columns(["network", heading, "ms", *more], rows), "")
    if devices := [own.device for own in entries[0].further or ()]:
        shown = [
            [entry.name, *(milliseconds(own.latency.median_ms) for own in entry.further or ())]
            for entry in entries
        ]
        put(*columns(["network", *(f"ms on {device}" for device in devices)], shown), "")
    budget = f"{summary.budget}, " if summary.budget else ""
    put(f"on {summary.device}: {budget}predicted {milliseconds(summary.predicted_ms)} ms")
    put(f"{metric} on {counted(summary.test_images, 'test image')}, through ONNX Runtime")
    given = f" (original: {original_as(summary.original)})" if entries[0].passes is None else ""
    passes = counted(summary.passes, "pass", "passes")
    kept = "up to " if any(entry.discarded_passes for entry in entries) else ""
    each = "" if kept else " each"
    put(f"trained for {kept}{passes} over the training images{each}{given}")
    rounds = len(entries[0].rounds_ms)
    for first, second in summary.not_separable:
        put(f"~ latency not separable in {counted(rounds, 'round')}: {first} / {second}")
    if summary.difference is not None:
        put(*difference_lines(summary.difference))
    for note in summary.notes:
        put(f"note: {note}")
    put(f"verified network: {summary.file}")
    if summary.better:
        lines = ", ".join(f"{key} = {json.dumps(value)}" for key, value in summary.better.items())
        put(f"its widths are better when trained from scratch: set {lines} under [slice], and run again")


def difference_lines(own: "AccuracyDifference") -> list[str]:
    """Whether the found network is more accurate than the uniform one, in one sentence."""
    points, low, high = (100 * value for value in (own.difference, own.low, own.high))
    if not own.separated:
        difference = f"{points:+.2f} points on the same test images (95 %: {low:+.2f} to {high:+.2f})"
        return [f"accuracy does not separate {own.found} from {own.uniform}:", f"  {difference}"]
    more, (least, most) = "more" if points > 0 else "less", sorted((abs(low), abs(high)))
    interval = f"(95 %: {least:.2f} to {most:.2f})"
    return [
        f"{own.found} is {more} accurate than {own.uniform}:",
        f"  by {abs(points):.2f} points on the same test images {interval}",
    ]


def _lost(metric: str, original: "ComparedNetwork", entry: "ComparedNetwork") -> str:
    """How much of the original network's metric is lost; of an accuracy, in percentage points."""
    if entry is original:
        return ""
    lost = original.accuracy - entry.accuracy
    return f"{100 * lost:.2f}" if metric == "accuracy" else f"{lost:.3g}"


def _with_interval(metric: str, entry: "ComparedNetwork") -> str:
    if entry.accuracy_low is None or entry.accuracy_high is None:
        return value_of(metric, entry.accuracy)
    low, high = 100 * entry.accuracy_low, 100 * entry.accuracy_high
    return f"{100 * entry.accuracy:.2f} ({low:.1f}-{high:.1f})"
