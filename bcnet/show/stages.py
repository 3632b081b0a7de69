"""What each stage found, as people read it. In: a stage's JSON. Out: at most ten lines.

What was done, the figures that matter with their units, where the files are, and what to run next.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from bcnet.plain import loss_text
from bcnet.show.tables import milliseconds, original_as, put, text_of, value_of

Summary = Mapping[str, Any]


def show_summary(summary: Summary) -> None:
    """Print what a stage found; for anything else, its fields."""
    lines = STAGES.get(str(summary.get("stage")), _fields)(summary)
    put(*lines)


def _lines(parts: Sequence[tuple[str, str]]) -> list[str]:
    return [f"{name:<10} {text}" for name, text in parts if text]


def _next(summary: Summary, command: str) -> str:
    """A command for the same run."""
    folder = PurePath(str(summary.get("folder", "runs/default")))
    name = folder.parent.name
    return command if name in ("", "default") else f"{command} --run {name}"


def _epochs(count: int) -> str:
    return f"{count} epoch" if count == 1 else f"{count} epochs"


def _size(summary: Summary) -> str:
    return f"{summary['params']:,} parameters, {summary['macs']:,} multiply-accumulates"


def _widths(widths: Sequence[int]) -> str:
    shown = "-".join(map(str, widths))
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _network(summary: Summary) -> list[str]:
    """The first stage where no supernet is trained."""
    if summary["network"] == "given":
        done = "nothing: the weights are given, and widths are found on the network itself"
    else:
        done = f"the network itself, {_epochs(summary['epochs'])} in {summary['seconds']:.0f} s"
    reached = f"{value_of(summary['metric'], summary['test_accuracy'])} on the test images"
    return _lines(
        [
            ("trained", done),
            (summary["metric"][:9], reached),
            ("searched", f"{summary['groups']} groups of channels"),
            ("files", f"{summary['folder']}/"),
            ("next", _next(summary, "bcnet build-lut")),
        ]
    )


def _train(summary: Summary) -> list[str]:
    if "network" in summary:
        return _network(summary)
    count, epochs = summary["supernets"], summary["epochs"]
    what = "supernet" if count == 1 else f"{count} supernets"
    seconds = f" in {summary['seconds']:.0f} s" if summary["seconds"] else ""
    return _lines(
        [
            (
                "trained",
                f"{what}: {summary['groups']} groups ({summary['method']}), {_epochs(epochs)}{seconds}",
            ),
            ("loss", f"{loss_text(summary['final_loss'])}, mean over the paths of the last epoch"),
            ("files", f"{summary['folder']}/"),
            ("next", _next(summary, "bcnet build-lut")),
        ]
    )


def _build_lut(summary: Summary) -> list[str]:
    if summary.get("estimate"):
        done = f"{summary['rows_used']} layers from the roofline of {summary['device']}: nothing was measured"
        full, narrowest = (milliseconds(summary[key]) for key in ("full_ms", "narrowest_ms"))
        error = f"full network about {full} ms, narrowest about {narrowest} ms"
    else:
        fit, measured = summary["calibration"], summary["rows_measured"]
        done = (
            f"{measured} layers on {summary['device']} in {summary['seconds']:.0f} s; "
            f"this network uses {summary['rows_used']}"
        )
        error = (
            f"{fit['mean_error']:.1%} on average, on {fit['held_out']} whole networks; "
            f"noise {fit['noise']:.1%}"
        )
    failed = summary.get("rows_failed")
    return _lines(
        [
            ("estimated" if summary.get("estimate") else "measured", done),
            ("error", error),
            ("failed", f"{failed} layers that the runtime cannot run" if failed else ""),
            ("replayed", f"from {summary['recorded']}" if summary.get("recorded") else ""),
            ("file", summary["table"]),
            ("next", _next(summary, "bcnet search --latency 60%")),
        ]
    )


def _search(summary: Summary) -> list[str]:
    best, metric = summary["best"], summary["metric"]
    measured = best["measured"]
    latency = f"{milliseconds(measured['median_ms'])} ms measured, " if measured else ""
    latency += f"{milliseconds(best['predicted_ms'])} ms predicted"
    if summary["budget_ms"] is not None:
        latency += f"; budget {milliseconds(summary['budget_ms'])} ms"
    wanted, by = summary["min_accuracy"], summary.get("method")
    where = "on the validation images" if by or summary.get("criterion") else "in the supernet"
    how = f", channels by {summary['criterion']}" if summary.get("criterion") else ""
    if summary.get("pruning_passes"):
        how = f", channels removed over {_epochs(summary['pruning_passes'])}"
    asked = f" (at least {value_of(metric, wanted)} was asked for)" if wanted is not None else ""
    return _lines(
        [
            ("winner", _widths(best["widths"])),
            (metric[:9], f"{value_of(metric, best['accuracy'])} {where}, before fine-tuning{asked}"),
            ("method", f"{by}{how}" if by else ""),
            ("latency", latency),
            ("size", _size(summary)),
            ("searched", f"{summary['candidates']} networks; {summary['pareto']} are on the front"),
            ("note", summary["note"]),
            ("files", f"{summary['folder']}/: result.json, history.json, pareto.json"),
            ("next", _next(summary, "bcnet slice")),
        ]
    )


def _slice(summary: Summary) -> list[str]:
    metric, epochs = summary["metric"], summary["epochs"]
    after, before = (value_of(metric, summary[f"test_accuracy_{when}"]) for when in ("after", "before"))
    if summary["from_scratch"]:
        trained, reached = f"trained from scratch, {_epochs(epochs)}", after
    else:
        source = summary.get("inherited") or f"{summary['side']} side of supernet {summary['supernet']}"
        distilled = " with distillation" if summary.get("distilled") else ""
        trained = f"from {source}, fine-tuned for {_epochs(epochs)}{distilled}"
        reached = f"{after} on the test images, {before} before fine-tuning"
    budget = summary["budget_ms"]
    held = f", budget {milliseconds(budget)} ms" if budget is not None else ""
    return _lines(
        [
            ("sliced", _widths(summary["widths"])),
            ("trained", trained),
            (metric[:9], reached),
            ("latency", f"{milliseconds(summary['predicted_ms'])} ms predicted{held}"),
            ("size", _size(summary)),
            ("files", f"{summary['folder']}/: model.safetensors, model.pt2, widths.json"),
            ("next", _next(summary, "bcnet export")),
        ]
    )


def _export(summary: Summary) -> list[str]:
    metric, original = summary.get("metric", "accuracy"), summary.get("original") or {}
    accuracy = (
        f"{value_of(metric, summary['accuracy'])}, {value_of(metric, summary['accuracy_torch'])} in PyTorch"
    )
    beside = ""
    if original.get("accuracy") is not None:
        lost = original["accuracy_lost"]
        much = f"{100 * abs(lost):.2f} points" if metric == "accuracy" else f"{abs(lost):.4f}"
        change = f"{much} {'lost' if lost >= 0 else 'gained'}"
        beside = f"{value_of(metric, original['accuracy'])} {original_as(original.get('state'))}: {change}"
    measured, budget = summary["measured"], summary["budget_ms"]
    latency = f"{milliseconds(summary['predicted_ms'])} ms predicted"
    if measured:
        latency = f"{milliseconds(measured['median_ms'])} ms, {latency}"
    if budget is not None:
        latency += f", budget {milliseconds(budget)} ms"
    if summary.get("noise") is not None:
        latency += f"; noise {summary['noise']:.0%}"
    speed = ""
    if original.get("speedup"):
        full = milliseconds(original["median_ms"])
        speed = f"{original['speedup']:.2f} times that of the full network ({full} ms)"
    where = f"{summary['device']}, {summary['backend']}, {summary['precision']}"
    return _lines(
        [
            ("verified" if summary["verified"] else "unverified", where),
            (metric[:9], accuracy),
            ("original", beside),
            ("latency", latency),
            ("speed", speed),
            ("outputs", f"differ from PyTorch by {_error(summary['output_error'])} of the largest"),
            ("size", f"{summary['size_bytes'] / 1e6:.2f} MB"),
            ("file", summary["file"]),
            ("next", summary["verify_with"] or ""),
        ]
    )


def _error(value: float | None) -> str:
    return "?" if value is None else f"{value:.1e}"


def _fields(summary: Summary, indent: str = "") -> list[str]:
    """One field per line; continued lines are indented."""
    lines = []
    for key, value in summary.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}", *_fields(value, f"{indent}  ")]
        else:
            lines.append(f"{indent}{key:<22} {text_of(value)}")
    return lines


STAGES: dict[str, Callable[[Summary], list[str]]] = {
    "train": _train,
    "build-lut": _build_lut,
    "search": _search,
    "slice": _slice,
    "export": _export,
}
