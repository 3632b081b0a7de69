"""What came out of a run, in one sentence. In: its results. Out: text."""

from bcnet.pipeline.results import ExportSummary, FurtherExport
from bcnet.plain import milliseconds
from bcnet.report.found import Found
from bcnet.show.tables import measured_as, value_of

ORIGINAL, FULL = "original", "full (from scratch)"


def headline(found: Found) -> str:
    """Speed, accuracy, budget and latency; and first whether that counts."""
    export, search = found.export, found.search
    if search is None:
        return "Nothing has been searched yet."
    prefix = ""
    if found.failed is not None:
        before = " Of the export before it" if export else " Of what was searched"
        prefix = f"The last export failed its checks.{before}: "
    elif export is not None and not export.passed:
        prefix = "Checks failed: "
    elif found.is_outdated("export" if export else "search"):
        prefix = "Outdated: "
    at = f" at {search.precision}" if search.precision else ""
    parts = [f"{_speed(found)} on {search.device}{at}", _accuracy(found)]
    text = f"{prefix}{', '.join(part for part in parts if part)}; {_budget(found)}"
    return f"{text[0].upper()}{text[1:]}."


def reference(found: Found) -> str:
    """What the delivered network is compared with."""
    given = found.export is not None and found.export.original.state is not None
    rows = found.compare.networks if found.compare else ()
    return "the original" if given or any(row.name == ORIGINAL for row in rows) else "the full network"


def speedup(found: Found) -> float | None:
    """How many times as fast as the original or the full network it was measured to be."""
    return found.export.original.speedup if found.export else None


def accuracy_lost(found: Found) -> float | None:
    """How much of the metric is lost against the original, or the full network of as many passes."""
    export, compare = found.export, found.compare
    if export is None:
        return None
    if export.original.accuracy_lost is not None:
        return export.original.accuracy_lost
    full = next((row for row in compare.networks if row.name == FULL), None) if compare else None
    if full is None or export.accuracy is None or found.is_outdated("compare"):
        return None
    return full.accuracy - export.accuracy


def _speed(found: Found) -> str:
    measured, against, search = speedup(found), reference(found), found.search
    assert search is not None
    if measured is not None:
        return f"{_times(measured)} as fast as {against}"
    predicted = search.full_predicted_ms / _predicted_ms(found)
    word = "estimated" if found.estimate else "predicted"
    return f"{word} to be {_times(predicted)} as fast as {against}"


def _times(ratio: float) -> str:
    return f"{ratio:.2f} times" if 0.95 <= ratio < 1.05 else f"{ratio:.1f} times"


def _predicted_ms(found: Found) -> float:
    assert found.search is not None
    return found.slice.predicted_ms if found.slice else found.search.best.predicted_ms


def _accuracy(found: Found) -> str:
    lost, export = accuracy_lost(found), found.export
    metric = found.search.metric if found.search else "accuracy"
    if lost is not None:
        word = "less" if lost > 0 else "more"
        if metric != "accuracy":
            return f"{metric} {abs(lost):.3g} {'lower' if lost > 0 else 'higher'}"
        points = f"{100 * abs(lost):.1f}"
        return "as accurate" if points == "0.0" else f"{points} points {word} accurate"
    reached = _reached(found, export)
    if reached is None:
        return ""
    return f"{metric} {value_of(metric, reached)} on the test images"


def _reached(found: Found, export: ExportSummary | None) -> float | None:
    if export is not None and export.accuracy is not None:
        return export.accuracy
    return found.slice.test_accuracy_after if found.slice else None


def _budget(found: Found) -> str:
    search, export = found.search, found.export
    assert search is not None
    budget = (export or found.slice or search).budget
    if budget is not None:
        asked = f"{budget}, "
    elif search.min_accuracy is not None:
        asked = f"required {search.metric} {value_of(search.metric, search.min_accuracy)}, "
    else:
        asked = ""
    if export is not None and export.measured is not None and export.further:
        others = [f"on {one.device}: {_measured(one)}" for one in export.further]
        return "; ".join([f"{asked}measured {measured_as(export.measured, budget)}", *others])
    if export is not None and export.measured is not None:
        return f"{asked}measured {measured_as(export.measured, budget)}"
    return f"{asked}predicted {milliseconds(_predicted_ms(found))} ms, not measured"


def _measured(own: FurtherExport) -> str:
    """The budget on a further device, and what was measured there."""
    asked = f"{own.budget}, " if own.budget else ""
    if own.measured is None:
        return f"{asked}predicted {milliseconds(own.predicted_ms)} ms, not measured"
    return f"{asked}measured {measured_as(own.measured, own.budget)}"
