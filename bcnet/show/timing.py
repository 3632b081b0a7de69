"""Print the timing of a file: latencies in one table, the longest layers in another, the comparison."""

from typing import TYPE_CHECKING

from bcnet.plain import cell, counted, milliseconds
from bcnet.show.tables import columns, put

if TYPE_CHECKING:
    from bcnet.measure.file_timing import TimedFile, TimedRuns, TimingReport

LONGEST = 44  # characters of the name of a layer
LONGEST_FILE = 18
SETTING = ("runtime", "runtime_version", "processor")


def show_timing(report: "TimingReport", most_layers: int) -> None:
    """Print latencies and percentiles, at most so many layers, how the two files compare, and warnings."""
    first, *others = report.files
    about = ", ".join(report.runtime[key] for key in SETTING if key in report.runtime)
    threads = counted(report.threads, "thread")
    put(f"{first.file} on {report.device} ({about}), {threads}")
    if first.inputs:
        inputs = [f"{own.name} {_sides(own.shape)} {own.dtype}" for own in first.inputs]
        put(f"input{'' if len(inputs) == 1 else 's'}: {', '.join(inputs)}")
    rows = []
    for own in report.files:
        label = _cut(own.file, LONGEST_FILE) if others else "network"
        rows += [_row(label, own.device_time), _row("  application", own.application)]
    put("", *columns(["", "ms", "interval", "p50", "p90", "p99", "runs", "noise"], rows))
    if first.layers:
        put("", *_layers(first, most_layers))
    elif first.no_layers:
        put("", f"layers are not known: {first.no_layers}")
    put("")
    if report.speedup is not None:
        put(_compared(report))
    for note in report.notes:
        put(f"note: {note}")
    if report.recorded:
        put(f"note: {report.recorded}")
    rounds = len(first.device_time.rounds_ms)
    put(f"ms: what an inference takes while nothing else runs, median of {counted(rounds, 'round')};")
    put("    another call is expected inside the interval in 95 % of all cases")
    if report.not_quiet:
        put(f"warning: {report.not_quiet}")


def _row(name: str, runs: "TimedRuns") -> list[str]:
    interval = f"{milliseconds(runs.low_ms)}-{milliseconds(runs.high_ms)}"
    percentiles = [milliseconds(ms) for ms in (runs.p50_ms, runs.p90_ms, runs.p99_ms)]
    return [name, milliseconds(runs.typical_ms), interval, *percentiles, str(runs.runs), f"{runs.noise:.0%}"]


def _layers(file: "TimedFile", most: int) -> list[str]:
    rows = [
        [_cut(layer.name, LONGEST), _cut(layer.kind, 20), milliseconds(layer.ms), f"{layer.share:.1%}"]
        for layer in file.layers[:most]
    ]
    lines = columns(["layer", "kind", "ms", "share"], rows)
    explained = (file.layers_ms or 0.0) / max(file.device_time.typical_ms, 1e-9)
    left = len(file.layers) - most
    more = f"{counted(left, 'more layer')}; " if left > 0 else ""
    return [*lines, f"{more}the sum of all {len(file.layers)} is {explained:.0%} of the network's time"]


def _compared(report: "TimingReport") -> str:
    found, (first, second) = report.speedup, (own.file for own in report.files)
    assert found is not None
    ratio, low, high = found.ratio, found.low, found.high
    if not found.separable:
        return f"{first} and {second} are not separable (ratio {ratio:.2f}, 95 %: {low:.2f} to {high:.2f})"
    if ratio < 1:
        first, second = second, first
        ratio, low, high = 1 / ratio, 1 / high, 1 / low
    return f"{second} is {ratio:.2f} times as fast as {first} (95 %: {low:.2f} to {high:.2f})"


def _sides(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _cut(name: str, most: int) -> str:
    """A name of at most `most` characters: its end distinguishes better than its beginning."""
    text = cell(name, 10 * most)
    return text if len(text) <= most else f"...{text[3 - most :]}"
