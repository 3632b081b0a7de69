"""Print a stage's result in at most ten lines.

They say what was done, the main figures with their units, where the files are, and what to run next.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bcnet.plain import counted, loss_text, milliseconds
from bcnet.show.comparison import show_comparison
from bcnet.show.exported import against_original, export_lines
from bcnet.show.tables import labelled, measured_as, on_device, put, text_of, value_of

if TYPE_CHECKING:
    from bcnet.pipeline.results import (
        EstimateSummary,
        NetworkSummary,
        SearchSummary,
        SliceSummary,
        StageResult,
        SupernetSummary,
        TableSummary,
    )


def show_summary(summary: "StageResult", following: str = "") -> None:
    """Print what a stage found, and the `following` command, if there is one."""
    from bcnet.pipeline import results

    match summary:
        case results.SupernetSummary():
            put(*_supernet(summary))
        case results.NetworkSummary():
            put(*_network(summary))
        case results.TableSummary():
            put(*_table(summary))
        case results.EstimateSummary():
            put(*_estimate(summary))
        case results.SearchSummary():
            put(*_search(summary))
        case results.SliceSummary():
            put(*_slice(summary))
        case results.ExportSummary():
            put(*export_lines(summary))
        case results.CompareSummary():
            show_comparison(summary)
    put(*labelled([("next", following)]))


def show_fields(values: Mapping[str, Any]) -> None:
    """Print one field per line."""
    put(*_fields(values))


def _epochs(count: int) -> str:
    return counted(count, "epoch")


def _size(summary: "SearchSummary | SliceSummary") -> str:
    return f"{summary.params:,} parameters, {summary.macs:,} multiply-accumulates"


def _widths(widths: Sequence[int]) -> str:
    shown = "-".join(map(str, widths))
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _network(summary: "NetworkSummary") -> list[str]:
    """The first stage where no supernet is trained."""
    if summary.network == "given":
        done = "nothing: the weights are given; widths are searched on the network itself"
    else:
        done = f"the network itself, {_epochs(summary.epochs)} in {summary.seconds:.0f} s"
    reached = f"{value_of(summary.metric, summary.test_accuracy)} on the test images"
    return labelled(
        [
            ("trained", done),
            (summary.metric[:9], reached),
            ("searched", counted(summary.groups, "group of channels", "groups of channels")),
            ("files", f"{summary.folder}/"),
        ]
    )


def _supernet(summary: "SupernetSummary") -> list[str]:
    count, epochs = summary.supernets, summary.epochs
    what = "supernet" if count == 1 else f"{count} supernets"
    seconds = f" in {summary.seconds:.0f} s" if summary.seconds else ""
    return labelled(
        [
            (
                "trained",
                f"{what}: {counted(summary.groups, 'group')} ({summary.method}), {_epochs(epochs)}{seconds}",
            ),
            ("loss", f"{loss_text(summary.final_loss)}, mean over the paths of the last epoch"),
            ("files", f"{summary.folder}/"),
        ]
    )


def _table(summary: "TableSummary") -> list[str]:
    fit, measured, failed = summary.calibration, summary.rows_measured, summary.rows_failed
    done = f"{counted(measured, 'layer')} on {summary.device} in {summary.seconds:.0f} s"
    error = f"{fit.mean_error or 0:.1%} on average, on {counted(fit.held_out, 'whole network')}"
    return labelled(
        [
            ("measured", f"{done}; this network uses {summary.rows_used}"),
            ("error", f"{error}; noise {fit.noise or 0:.1%}"),
            *(
                (
                    f"at {own.precision}",
                    f"{own.calibration.mean_error or 0:.1%} error, {counted(own.rows_used, 'layer')}",
                )
                for own in summary.precisions or ()
            ),
            ("failed", f"{counted(failed, 'layer')} that the runtime cannot run" if failed else ""),
            ("replayed", f"from {summary.recorded}" if summary.recorded else ""),
            ("file", summary.table),
        ]
    )


def _estimate(summary: "EstimateSummary") -> list[str]:
    layers = counted(summary.rows_used, "layer")
    done = f"{layers} from the roofline of {summary.device}: nothing was measured"
    full, narrowest = milliseconds(summary.full_ms), milliseconds(summary.narrowest_ms)
    latency = f"full network about {full} ms, narrowest about {narrowest} ms"
    return labelled([("estimated", done), ("latency", latency), ("file", summary.table)])


def _search(summary: "SearchSummary") -> list[str]:
    best, metric = summary.best, summary.metric
    measured = best.measured
    latency = f"{measured_as(measured, summary.budget)} measured, " if measured else ""
    latency += f"{milliseconds(best.predicted_ms)} ms predicted"
    if summary.budget is not None:
        latency += f"; {summary.budget}"
    wanted, by = summary.min_accuracy, summary.method
    where = "on the validation images" if by or summary.criterion else "in the supernet"
    how = f", channels by {summary.criterion}" if summary.criterion else ""
    if summary.pruning_passes:
        how = f", channels removed over {_epochs(summary.pruning_passes)}"
    on_front = counted(summary.pareto, "is", "are")
    asked = f" (required: at least {value_of(metric, wanted)})" if wanted is not None else ""
    return labelled(
        [
            ("winner", _widths(best.widths)),
            ("precision", precisions_compared(summary)),
            (metric[:9], f"{value_of(metric, best.accuracy)} {where}, before fine-tuning{asked}"),
            ("method", f"{by}{how}" if by else ""),
            ("latency", latency),
            *_further_of_search(summary),
            ("size", _size(summary)),
            ("searched", f"{counted(summary.candidates, 'network')}; {on_front} on the front"),
            ("note", summary.note),
            ("files", f"{summary.folder}/: result.json, history.json, pareto.json"),
        ]
    )


def precisions_compared(summary: "SearchSummary") -> str:
    """Which precision won, and by how much; empty if only one was searched."""
    if not summary.precisions:
        return ""
    first, *others = summary.precisions
    reached = f"{first.precision}, {value_of(summary.metric, first.accuracy)} as delivered"
    if not others:
        return f"{reached}; no other precision has a network inside the budget"
    gains = []
    for own in others:
        ahead = first.accuracy - own.accuracy
        much = f"{100 * ahead:+.2f} points" if summary.metric == "accuracy" else f"{ahead:+.4f}"
        losses = f"loss {loss_text(first.loss or math.inf)} to {loss_text(own.loss or math.inf)}"
        gains.append(f"{much} against {own.precision}, {losses}")
    return f"{reached}: {'; '.join(gains)}"


def _further_of_search(summary: "SearchSummary") -> Iterator[tuple[str, str]]:
    """A line for each further device."""
    found = {own.device: own for own in summary.best.further or ()}
    for own in summary.further or ():
        yield "", on_device(own.device, own.budget, found[own.device])


def _slice(summary: "SliceSummary") -> list[str]:
    metric, epochs = summary.metric, summary.epochs
    after, before = (
        value_of(metric, value) for value in (summary.test_accuracy_after, summary.test_accuracy_before)
    )
    if summary.from_scratch:
        trained, reached = f"trained from scratch, {_epochs(epochs)}", after
    else:
        source = summary.inherited or f"{summary.side} side of supernet {summary.supernet}"
        distilled = " with distillation" if summary.distilled else ""
        rate = f" at a rate of {summary.lower_rate:g}" if summary.lower_rate is not None else ""
        trained = f"from {source}, fine-tuned for {_epochs(epochs)}{distilled}{rate}"
        if summary.discarded_epochs:
            discarded = _epochs(summary.discarded_epochs)
            trained = f"from {source}; {discarded} of fine-tuning made it worse and were discarded"
        if summary.integer_epochs:
            trained += f", then for {_epochs(summary.integer_epochs)} through integers"
        reached = f"{after} on the test images, {before} before fine-tuning"
    held = f", {summary.budget}" if summary.budget is not None else ""
    return labelled(
        [
            ("sliced", _widths(summary.widths)),
            ("trained", trained),
            (metric[:9], reached),
            ("original", against_original(metric, summary.original) if summary.original else ""),
            ("latency", f"{milliseconds(summary.predicted_ms)} ms predicted{held}"),
            *(("", on_device(own.device, own.budget, own)) for own in summary.further or ()),
            ("size", _size(summary)),
            ("files", f"{summary.folder}/: model.safetensors, model.pt2, widths.json"),
        ]
    )


def _fields(values: Mapping[str, Any], indent: str = "") -> list[str]:
    """One field per line; continued lines are indented."""
    lines = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}", *_fields(value, f"{indent}  ")]
        else:
            lines.append(f"{indent}{key:<22} {text_of(value)}")
    return lines
