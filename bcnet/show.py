"""Results as people read them, on stdout."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bcnet.latency_tables.check_report import CheckReport


def show_summary(summary: Mapping[str, Any], indent: str = "") -> None:
    """What a stage found, a line each; what belongs together is indented."""
    for key, value in summary.items():
        if isinstance(value, dict):
            print(f"{indent}{key}")
            show_summary(value, f"{indent}  ")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            print(f"{indent}{key:<22} {len(value)} entries")
        else:
            print(f"{indent}{key:<22} {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def show_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows under headings, as wide as the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row)
    # A pipe has no width of its own: do not fold what a script reads.
    Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160).print(table)


def show_comparison(summary: Mapping[str, Any]) -> None:
    """The table that a run ends with."""
    rows = []
    entries = summary["networks"]
    for entry in entries:
        latency = entry["latency"]
        rows.append(
            [
                entry["name"],
                _with_interval(entry),
                f"{latency['median_ms']:.3f}",
                f"{latency['p90_ms']:.3f}",
                f"{entry['params']:,}",
                f"{entry['macs']:,}",
                f"{entry['size_bytes']:,}",
                str(entry["passes"]),
            ]
        )
    show_table(
        [
            "network",
            "accuracy (95 % interval)" if entries[0]["accuracy_low"] is not None else summary["metric"],
            "median ms",
            "p90 ms",
            "parameters",
            "MACs",
            "file bytes",
            "passes",
        ],
        rows,
    )
    budget = f"budget {summary['budget_ms']:.3f} ms, " if summary["budget_ms"] is not None else ""
    print(
        f"on {summary['device']}: {budget}predicted {summary['predicted_ms']:.3f} ms; "
        f"{summary['metric']} on {summary['test_images']} test images, through ONNX Runtime"
    )
    print(f"verified network: {summary['file']}")
    if summary.get("better"):
        lines = ", ".join(f"{key} = {json.dumps(value)}" for key, value in summary["better"].items())
        print(f"its widths are better when trained from scratch: set {lines} under [slice], and run again")


def show_check(report: "CheckReport") -> None:
    """The verdict on a latency table in one line, what it rests on, and the worst."""
    from bcnet.latency_tables.check_report import WORST

    verdict = report.verdict
    print(f"{report.table}: {report.headline}")
    changes = [verdict.everything, *verdict.kinds]
    names = {change.name for change in changes}
    slower = [change for change in verdict.slower if change.name not in names]
    faster = [change for change in verdict.faster if change.name not in names]
    marks = {change.name: "slower" for change in verdict.slower}
    marks |= {change.name: "faster" for change in verdict.faster}
    show_table(
        ["layers", "rows", "then ms", "now ms", "change", "95 % interval", "clearly"],
        [
            [
                change.name,
                str(change.rows),
                f"{change.then_ms:.4g}",
                f"{change.now_ms:.4g}",
                f"{change.change:+.1%}",
                f"{change.low:+.1%} to {change.high:+.1%}",
                marks.get(change.name, ""),
            ]
            for change in (*changes, *slower[:WORST], *faster[:WORST])
        ],
    )
    for change in verdict.relative:
        print(f"against all other rows, {change.name}: {change.change:+.1%}")
    if len(slower) > WORST or len(faster) > WORST:
        print(f"single layers in all: {len(slower)} slower, {len(faster)} faster")
    probe = ", ".join(f"{part.name} {part.change:+.1%}" for part in verdict.probe)
    measured = f"{report.networks} networks, {report.rounds} rounds, " if report.networks else ""
    print(
        f"probe of the machine: {probe}; {measured}{report.rows} rows compared, {report.unchecked} not; "
        f"finds a slowdown of all rows from {verdict.detectable:.0%}"
    )
    for note in report.notes:
        print(f"note: {note}")


def _with_interval(entry: Mapping[str, Any]) -> str:
    if entry["accuracy_low"] is None:
        return f"{entry['accuracy']:.4f}"
    return f"{entry['accuracy']:.2%} ({entry['accuracy_low']:.1%} to {entry['accuracy_high']:.1%})"
