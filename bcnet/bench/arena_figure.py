"""The arena's figure. In: its report. Out: an SVG of accuracy against measured latency, one line per row."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bcnet.bench.arena_rows import ORIGINAL, outside
from bcnet.registry import AUTO
from bcnet.runs import write_file

MARKERS = "osD^v<>pPX*hd"
COLOURS = ("gold", "navy", "teal", "salmon", "darkgreen")  # beyond matplotlib's own ten


def figure(path: Path, report: Mapping[str, Any]) -> bool:
    """Draw the report with matplotlib. Returns False where that is not installed."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        return False
    scale = 100 if report["metric"] == "accuracy" else 1
    points: dict[str, list[Mapping[str, Any]]] = {}
    for budget in report["budgets"]:
        for entry in budget["rows"]:
            if entry["share"] is not None:
                points.setdefault(entry["row"], []).append(entry)
    drawn = Figure(figsize=(8, 5), layout="constrained")
    axes = drawn.add_subplot()
    if ORIGINAL in points:
        whole = points.pop(ORIGINAL)[0]
        axes.axhline(scale * whole["accuracy"], color="0.6", linestyle=":", label=ORIGINAL)
    for number, (row, entries) in enumerate(points.items()):
        ordered = sorted(entries, key=lambda entry: entry["share"])
        middle = [scale * entry["accuracy"] for entry in ordered]
        errors: list[list[float]] = [[], []]
        for entry, at in zip(ordered, middle, strict=True):
            known = entry["accuracy_low"] is not None
            errors[0].append(max(0.0, at - scale * entry["accuracy_low"]) if known else 0.0)
            errors[1].append(max(0.0, scale * entry["accuracy_high"] - at) if known else 0.0)
        axes.errorbar(
            [100 * entry["share"] for entry in ordered],
            middle,
            yerr=errors,
            color="black" if row == AUTO else f"C{number}" if number < 10 else COLOURS[number % len(COLOURS)],
            linestyle="--" if outside(row) else "-",
            marker=MARKERS[number % len(MARKERS)],
            markersize=5,
            linewidth=1,
            elinewidth=0.7,
            capsize=2,
            label=row,
        )
    axes.set_xlabel(f"latency on {report['device']} (% of the original's, measured)")
    axes.set_ylabel(f"{report['metric']} (%)" if scale == 100 else report["metric"])
    axes.set_title(f"{report['model']} on {report['data']}, passes: {report['passes']}", fontsize=9)
    drawn.legend(loc="outside right upper", fontsize=7)
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "arena"}):
        drawn.savefig(content, format="svg", metadata={"Date": None})
    write_file(path, content.getvalue())
    return True
