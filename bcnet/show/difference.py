"""Print how two runs differ, for a terminal or as Markdown for a pull request."""

from typing import TYPE_CHECKING

from bcnet.plain import counted, milliseconds
from bcnet.show.tables import markdown, put, short_count, show_table, value_of

if TYPE_CHECKING:
    from bcnet.report.difference import Change, RunDifference


def show_difference(found: "RunDifference", *, as_markdown: bool) -> None:
    """Print the figures of both runs, the groups of other widths, and the notes."""
    title = f"{found.second} against {found.first}" + (f", on {found.device}" if found.device else "")
    count = f"another width in {len(found.groups)} of {counted(found.of_groups, 'group')}"
    figures = ("", found.first, found.second, "change", "interval"), _figures(found)
    widths = [[own.name, _width(own.first), _width(own.second)] for own in found.groups]
    groups = ("group", found.first, found.second), widths
    if as_markdown:
        put(f"### {title}", "", *markdown(*figures), "")
        put(*(f"**{found.status}**: {reason}" for reason in found.reasons), *([""] if found.reasons else []))
        folded = [f"<details><summary>{count}</summary>", "", *markdown(*groups), "", "</details>", ""]
        put(*(folded if widths else [f"{count}.", ""]))
        put(*(f"- {note}" for note in found.notes))
        return
    put(title)
    show_table(*figures)
    put(count)
    if widths:
        show_table(*groups)
    put(*(f"note: {note}" for note in found.notes))
    put(*(f"{found.status}: {reason}" for reason in found.reasons))


def _figures(found: "RunDifference") -> list[list[str]]:
    names = {"accuracy": found.metric, "latency": "latency (ms)", "predicted": "predicted (ms)"}
    rows = []
    for own in found.changes:
        if own.first is None and own.second is None:
            continue
        values = [_value(own, value, found.metric) for value in (own.first, own.second)]
        change = _signed(own, own.change, found.metric)
        rows.append([names.get(own.name, own.name), *values, change, _interval(own, found.metric)])
    if any(found.budgets):
        budgets = [own.amount if own else "" for own in found.budgets]
        rows.append(["budget", *budgets, "", ""])
    verified = ["yes" if own else "no" for own in found.verified]
    return [*rows, ["verified", *verified, "", ""]]


def _value(own: "Change", value: float | None, metric: str) -> str:
    if value is None:
        return ""
    if own.name == "accuracy":
        return value_of(metric, value)
    if own.name in ("latency", "predicted"):
        return milliseconds(value)
    return f"{value / 1e6:.2f} MB" if own.name == "size" else short_count(value)


def _signed(own: "Change", value: float | None, metric: str) -> str:
    """A change: of an accuracy in percentage points, of another metric in its own unit, else in percent."""
    if value is None:
        return ""
    if own.name != "accuracy":
        return f"{value:+.1%}"
    return f"{100 * value:+.2f} points" if metric == "accuracy" else f"{value:+.4f}"


def _interval(own: "Change", metric: str) -> str:
    if own.low is None or own.high is None:
        return ""
    ends = f"{_signed(own, own.low, metric)} to {_signed(own, own.high, metric)}".replace(" points to", " to")
    return ends if own.separable else f"{ends}, not separable"


def _width(value: int | None) -> str:
    return "" if value is None else str(value)
