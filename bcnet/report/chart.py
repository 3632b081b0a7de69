"""A figure of a report as values: series of points, lines or bars, and a table of the same numbers."""

from dataclasses import dataclass
from itertools import chain
from typing import Literal

from bcnet.plain import milliseconds
from bcnet.show.tables import short_count

Cell = str | int | float | None
# What is drawn in a colour of its own, in all figures alike.
Role = Literal["found", "original", "uniform", "front", "other", "open"]

Marker = Literal["circle", "square", "diamond"]
COUNTS = ("parameters", "MACs")  # headings of columns in which every count has three digits and a unit


@dataclass(frozen=True)
class Table:
    """Rows under headings. A cell is shown as `cell` has it, and sorted by its value."""

    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Series:
    """Points, a line or bars of one meaning. `texts` describe each; `errors` are ends of intervals on y.

    A line of "steps" is horizontal up to the next point, a "guide" is no measurement.
    """

    name: str
    role: Role
    kind: Literal["points", "line", "steps", "guide", "bars"]
    x: tuple[float | str, ...]
    y: tuple[float | str, ...]
    texts: tuple[str, ...] = ()
    errors: tuple[tuple[float, float], ...] = ()
    large: bool = False
    marker: Marker = "circle"


@dataclass(frozen=True)
class Chart:
    """A figure with its axes; `flat`: bars lie, a category a line; `stacked`: those of one category follow
    each other. `marks` are vertical lines (text, value on x)."""

    name: str
    title: str
    caption: str
    x: str
    y: str
    series: tuple[Series, ...]
    table: Table
    flat: bool = False
    stacked: bool = False
    marks: tuple[tuple[str, float], ...] = ()

    @property
    def categories(self) -> tuple[str, ...]:
        """Of lying bars, from the top: in the order of the table, where a group has several rows."""
        names = (
            (row[0] for row in self.table.rows) if self.stacked else chain(*(own.y for own in self.series))
        )
        return tuple(dict.fromkeys(map(str, names)))


def cell(value: Cell, heading: str = "") -> str:
    """A table cell as text: milliseconds and `COUNTS` by their heading, else four significant digits."""
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, float):
        return milliseconds(value) if heading.endswith("(ms)") else f"{value:.4g}"
    if isinstance(value, int):
        return short_count(value) if heading in COUNTS else str(value)
    return value
