"""The page. In: `RunReport`s. Out: one HTML file that needs nothing else, and no network.

Plotly is in it, compressed: a browser unpacks it. All text is escaped, as names in it are a user's.
"""

import base64
import gzip
import json
from collections.abc import Iterator, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from bcnet.plain import plain
from bcnet.report.chart import Cell, Chart, Series, Table, cell
from bcnet.report.charts import charts, devices, overview
from bcnet.report.content import RunReport

LONGEST = 10_000  # characters of a text: names of a network, a table or a device are foreign text
LONG = 40  # characters of a cell that may be broken into lines
# Nothing is loaded from anywhere, whatever a text would ask for.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def plotly_installed() -> bool:
    """Whether the library that draws the figures is there."""
    try:
        import plotly.offline  # noqa: F401
    except ImportError:
        return False
    return True


def page(reports: Sequence[RunReport]) -> bytes:
    """The HTML file of one run, or of several side by side. Needs plotly."""
    title = f"bcnet: {', '.join(own.run for own in reports)}"
    several = len(reports) > 1
    body = [*(_overview(reports) if several else ()), '<div class="runs">']
    for number, report in enumerate(reports):
        body += _run(report, number, several)
    body.append("</div>")
    style, program = (
        files("bcnet.report").joinpath(f"page.{kind}").read_text("utf-8") for kind in ("css", "js")
    )
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(title)}</title><style>{style}</style></head><body>",
        f'<main class="{"several" if several else "one"}">',
        *body,
        "</main>",
        f'<script type="text/plain" id="plotly">{_plotly()}</script>',
        f"<script>{program}</script></body></html>\n",
    ]
    return "\n".join(parts).encode()


@cache
def _plotly() -> str:
    """Plotly's program, compressed."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()


def _overview(reports: Sequence[RunReport]) -> Iterator[str]:
    table, chart = overview(reports)
    yield "<h1>Runs side by side</h1>"
    if chart is None:
        yield _table(table)
    else:
        yield from _figure(chart, "all", opened=True)


def _run(report: RunReport, number: int, several: bool) -> Iterator[str]:
    device = f" on {report.device}" if report.device else ""
    yield f'<section class="run" aria-label="run {_text(report.run)}">'
    yield f"<h1>{_text(report.run)}{_text(device)}</h1>"
    if report.problems:
        yield '<div class="problems" role="alert"><ul>'
        yield from (f"<li>{_text(own.text)}</li>" for own in report.problems)
        yield "</ul></div>"
    yield f'<p class="headline">{_text(report.headline)}</p>'
    if report.notes:
        yield '<ul class="notes">'
        yield from (f"<li>{_text(note)}</li>" for note in report.notes)
        yield "</ul>"
    if report.further:
        yield "<h2>On all devices</h2>"
        yield _table(devices(report))
    for chart in charts(report):
        yield from _figure(chart, f"run{number}", opened=chart.name == "networks")
    if report.no_layers:
        yield f'<p class="caption">No milliseconds by layer: {_text(report.no_layers)}</p>'
    if report.deployment:
        yield f"<h2>Deploy</h2>{_code(report.deployment)}"
    yield f"<h2>Repeat</h2>{_code(report.commands)}"
    if report.settings:
        yield '<p class="caption">Settings that are not the defaults, as they are configured now:</p>'
        yield _table(Table(("setting", "value"), tuple(report.settings.items())))
    if report.environment:
        yield "<h2>Environment</h2>"
        yield _table(Table(("of the measurements", "value"), tuple(report.environment.items())))
    yield "</section>"


def _figure(chart: Chart, prefix: str, *, opened: bool) -> Iterator[str]:
    """A figure, and below it the same numbers as a table."""
    name = f"{prefix}-{chart.name}"
    data = {"data": [_trace(own, chart) for own in chart.series], "layout": _layout(chart)}
    label = f"{chart.title}. {chart.caption} The table below has the same numbers."
    yield f'<h2 id="{name}-title">{_text(chart.title)}</h2><p class="caption">{_text(chart.caption)}</p>'
    yield f'<figure aria-labelledby="{name}-title">'
    place = f'class="plot" id="{name}" role="img" aria-label="{_text(label)}"'
    yield f'<div {place} style="height:{_height(chart)}px"></div>'
    yield f'<script type="application/json" id="{name}-data">{_json(data)}</script>'
    yield f"<details{' open' if opened else ''}><summary>Table: {_text(chart.title)}</summary>"
    yield f"{_table(chart.table)}</details></figure>"


def _trace(own: Series, chart: Chart) -> dict[str, Any]:
    trace: dict[str, Any] = {
        "role": own.role,
        "name": _label(own.name),
        "x": [_label(value) if isinstance(value, str) else value for value in own.x],
        "y": [_label(value) if isinstance(value, str) else value for value in own.y],
    }
    if own.texts:
        trace |= {
            "text": [_label(text) for text in own.texts],
            "hoverinfo": "text+name",
            "textposition": "none",
        }
    if own.kind == "bars":
        trace |= {"type": "bar", "orientation": "h" if chart.flat else "v"}
        if chart.stacked:  # one entry in the legend for all steps
            first = next(each for each in chart.series if each.name == own.name)
            trace |= {"legendgroup": own.name, "showlegend": own is first}
        return trace
    mode = {"points": "markers", "guide": "lines"}.get(own.kind, "lines+markers")
    trace |= {"type": "scatter", "mode": mode, "marker": {"size": 12 if own.large else 6}}
    if own.marker != "circle":
        trace["marker"]["symbol"] = own.marker
    trace["line"] = {"shape": "hv" if own.kind == "steps" else "linear"}
    trace["line"]["dash"] = "dot" if own.kind == "guide" else "solid"
    trace.pop("textposition", None)
    if own.errors:
        ends = list(zip(own.y, own.errors, strict=True))
        above = [high - y for y, (_, high) in ends if not isinstance(y, str)]
        below = [y - low for y, (low, _) in ends if not isinstance(y, str)]
        trace["error_y"] = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    return trace


def _layout(chart: Chart) -> dict[str, Any]:
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": _label(chart.x)}},
        "yaxis": {"title": {"text": _label(chart.y)}},
        "height": _height(chart),
        "barmode": "relative" if chart.stacked else "group",
        "hovermode": "closest",
    }
    if chart.flat:
        order = [_label(name) for name in chart.categories]
        layout["yaxis"] |= {"autorange": "reversed", "type": "category", "categoryarray": order}
    if chart.marks:
        layout["shapes"] = [
            {"type": "line", "x0": at, "x1": at, "y0": 0, "y1": 1, "yref": "paper", "line": {"dash": "dash"}}
            for _, at in chart.marks
        ]
        layout["annotations"] = [
            {"x": at, "y": 0, "yref": "paper", "text": _label(text), "showarrow": False}
            | {"xanchor": "left", "yanchor": "bottom"}
            for text, at in chart.marks
        ]
    return layout


def _height(chart: Chart) -> int:
    """In pixels: of lying bars, as many as there are lines."""
    if not chart.flat:
        return 420
    return 120 + (22 if chart.stacked else 30) * len(chart.categories)


def _table(table: Table) -> str:
    """Rows are sorted by the values of their cells, not by what is shown of them."""
    heads = "".join(_head(name, [row[n] for row in table.rows]) for n, name in enumerate(table.headings))
    rows = "".join(f"<tr>{''.join(map(_cell, row, table.headings))}</tr>" for row in table.rows)
    inside = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{inside}</div>'


def _head(name: str, column: Sequence[Cell]) -> str:
    kind = ' class="text"' if any(isinstance(value, str) for value in column) else ""
    return f'<th scope="col" aria-sort="none"{kind}><button type="button">{_text(name)}</button></th>'


def _cell(value: Cell, heading: str) -> str:
    sort = "" if value is None else value
    kind = ""
    if isinstance(value, str):
        kind = ' class="text long"' if len(value) > LONG else ' class="text"'
    return f'<td{kind} data-value="{_text(str(sort))}">{_text(cell(value, heading))}</td>'


def _code(lines: Sequence[str]) -> str:
    text = "\n".join(map(_text, lines))
    return f'<pre tabindex="0"><code>{text}</code></pre>'


def _text(text: str) -> str:
    """Text for HTML and its attributes."""
    return escape(plain(text, LONGEST))


def _label(text: str) -> str:
    """Text for a figure: Plotly reads some HTML in it."""
    return escape(plain(text, LONGEST), quote=False)


def _json(value: object) -> str:
    """JSON inside a script element, which nothing in it can end."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
