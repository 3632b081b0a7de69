"""The figures as PNG files for slides. In: charts. Out: files, with text that can be read from afar."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bcnet.errors import BcnetError
from bcnet.plain import plain
from bcnet.report.chart import Chart, Series
from bcnet.runs import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "found": "#0067b1",
    "original": "#7a828b",
    "uniform": "#c25e00",
    "front": "#00795a",
    "other": "#b4bcc5",
    "open": "#a9cdea",
}
MARKERS = {"circle": "o", "square": "s", "diamond": "D"}
INCHES = (40 / 3, 7.5)  # a slide of 16:9
DPI = 144
FONT = 20  # points
STYLE: dict[Any, Any] = {
    "font.size": FONT,
    "text.parse_math": False,  # a name may hold dollar signs
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "figure.constrained_layout.w_pad": 0.2,  # inches
    "figure.constrained_layout.h_pad": 0.2,
}
MOST_BARS = 14  # names of categories that fit on a slide
NAME = 32  # characters of a category


def write_figures(folder: Path, charts: Sequence[Chart]) -> list[Path]:
    """Draw each chart into `folder`, with matplotlib. Raises BcnetError where that is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise BcnetError("PNG figures need matplotlib: pip install 'bcnet[plot]'") from None
    paths = []
    with matplotlib.rc_context(STYLE):
        for chart in charts:
            path = folder / f"{chart.name}.png"
            write_file(path, _drawn(chart))
            paths.append(path)
    return paths


def _drawn(chart: Chart) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, layout="constrained")
    axes = figure.add_subplot()
    if chart.flat:
        _bars(axes, chart)
    else:
        for series in chart.series:
            _points(axes, series)
    for text, at in chart.marks:
        axes.axvline(at, color="#b3131b", linestyle="--", label=_text(text))
    axes.set_title(_text(chart.title), fontweight="bold", loc="left")
    axes.set_xlabel(_text(chart.x))
    axes.set_ylabel(_text(chart.y))
    if len(chart.series) > 1 or chart.marks:
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=FONT - 3)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
    return content.getvalue()


def _points(axes: "Axes", series: Series) -> None:
    colour, label, own = COLOURS[series.role], _text(series.name), series.marker
    x, y = [float(value) for value in series.x], [float(value) for value in series.y]
    if series.kind != "points":
        line: dict[str, Any] = {"linestyle": ":"} if series.kind == "guide" else {"marker": MARKERS[own]}
        shape: Literal["default", "steps-post"] = "steps-post" if series.kind == "steps" else "default"
        axes.plot(x, y, color=colour, label=label, linewidth=3, drawstyle=shape, **line)
    elif series.errors:
        ends = [(at - low, high - at) for at, (low, high) in zip(y, series.errors, strict=True)]
        below_and_above = [list(side) for side in zip(*ends, strict=True)]
        axes.errorbar(
            x, y, yerr=below_and_above, fmt=MARKERS[own], markersize=14, capsize=6, color=colour, label=label
        )
    else:
        size = 180 if series.large else 40
        axes.scatter(x, y, s=size, color=colour, label=label, marker=MARKERS[own])


def _bars(axes: "Axes", chart: Chart) -> None:
    """Lying bars, from the top; those of one category beside each other, or stacked from zero."""
    order = {name: at for at, name in enumerate(chart.categories)}
    height = 0.8 if chart.stacked else 0.8 / len(chart.series)
    left = [0.0] * len(order)
    named: set[str] = set()
    for number, series in enumerate(chart.series):
        shift = 0.0 if chart.stacked else (number + 0.5) * height - 0.4
        label = None if series.name in named else _text(series.name)
        named.add(series.name)
        for value, name in zip(series.x, series.y, strict=True):
            at, length = order[str(name)], float(value)
            axes.barh(
                at + shift,
                length,
                height,
                left=left[at] if chart.stacked else 0.0,
                color=COLOURS[series.role],
                edgecolor="white",
                linewidth=1.0 if chart.stacked else 0.0,
                label=label,
            )
            left[at] += length
            label = None
    step = -(-len(order) // MOST_BARS)
    names = list(order)[::step]
    axes.set_yticks(range(0, len(order), step), [plain(name, NAME) for name in names])
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def _text(text: str) -> str:
    return plain(text, 200)
