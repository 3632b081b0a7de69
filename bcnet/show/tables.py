"""Format tables and numbers for people. In: values. Out: text that fits 80 columns."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bcnet.plain import cell, milliseconds, plain

if TYPE_CHECKING:
    from bcnet.latency_tables.rows import LatencyStat
    from bcnet.pipeline.results import FurtherExport, FurtherSliced, OnDevice
    from bcnet.width_search.latency_budget import LatencyBudget

LONGEST = 10_000  # characters of a cell or a line: names in a network, a table or a device are foreign text
COLUMNS = 80  # where the width of the page is unknown, as in a pipe


def put(*lines: str) -> None:
    """Print lines; unprintable characters in them are escaped."""
    for line in lines:
        print(plain(line, LONGEST))


def labelled(parts: Sequence[tuple[str, str]]) -> list[str]:
    """A line for each label and text; those without text are left out."""
    return [f"{name:<10} {text}" for name, text in parts if text]


def show_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows under headings, as wide as the terminal; cells that are too long are folded."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(cell(text, LONGEST) for text in row))
    Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else COLUMNS).print(table)


def columns(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table of short cells: the first column left-aligned, numbers right-aligned."""
    table = [headings, *rows]
    sizes = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for name, *numbers in table:
        cells = [cell.rjust(size) for cell, size in zip(numbers, sizes[1:], strict=True)]
        lines.append("  ".join([name.ljust(sizes[0]), *cells]).rstrip())
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown: the first column left-aligned, all others right-aligned."""
    table = [[plain(text, LONGEST).replace("|", "\\|") for text in row] for row in (headings, *rows)]
    marks = ["---", *["---:"] * (len(headings) - 1)]
    return [f"| {' | '.join(row)} |" for row in (table[0], marks, *table[1:])]


def short_count(count: float) -> str:
    """A count with three significant digits: 1.91M for 1,914,490."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * size:
            value = count / size
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}{unit}"
    return f"{count:.0f}"


def measured_as(measured: "LatencyStat", budget: "LatencyBudget | None") -> str:
    """The statistic of a measured latency that is held to the budget, in ms."""
    return budget.counted(measured) if budget else f"{milliseconds(measured.median_ms)} ms"


def on_device(
    device: str, budget: "LatencyBudget | None", found: "OnDevice | FurtherSliced | FurtherExport"
) -> str:
    """A network's latencies on a further device, and the budget there."""
    measured = getattr(found, "measured", None)
    text = f"{measured_as(measured, budget)} measured, " if measured else ""
    return f"on {device}: {text}{milliseconds(found.predicted_ms)} ms predicted; {budget}"


def original_as(state: str | None) -> str:
    """The state of the original network, with which others are compared, by `state` in the JSON."""
    states = {"head trained": "after its head was trained", "trained": "after it was trained"}
    return states.get(state or "given", "as it was given")


def value_of(metric: str, value: float | None) -> str:
    """A value of the metric: accuracy in percent, any other unchanged; ? where it is not known."""
    if value is None:
        return "?"
    return f"{value:.2%}" if metric == "accuracy" else f"{value:.4f}"


def text_of(value: Any) -> str:
    """A value of any kind, on one line."""
    if isinstance(value, float):
        return f"{value:.5g}"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
