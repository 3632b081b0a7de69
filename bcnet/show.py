"""Results as people read them, on stdout."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any


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


def _with_interval(entry: Mapping[str, Any]) -> str:
    if entry["accuracy_low"] is None:
        return f"{entry['accuracy']:.4f}"
    return f"{entry['accuracy']:.2%} ({entry['accuracy_low']:.1%} to {entry['accuracy_high']:.1%})"
