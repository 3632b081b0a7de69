"""The lines of an export: what was verified where, and how it compares with the original.

In: the result of `bcnet export` or `bcnet verify`. Out: lines of text.
"""

from typing import TYPE_CHECKING

from bcnet.plain import milliseconds
from bcnet.show.tables import labelled, measured_as, on_device, original_as, value_of

if TYPE_CHECKING:
    from bcnet.pipeline.results import AccuracyLost, ExportSummary, FurtherExport


def export_lines(summary: "ExportSummary") -> list[str]:
    """What was exported, whether it is verified, and against what."""
    metric, original = summary.metric, summary.original
    accuracy = f"{value_of(metric, summary.accuracy)}, {value_of(metric, summary.accuracy_torch)} in PyTorch"
    measured, budget = summary.measured, summary.budget
    latency = f"{milliseconds(summary.predicted_ms)} ms predicted"
    if measured:
        latency = f"{measured_as(measured, budget)}, {latency}"
    if budget is not None:
        latency += f", {budget}"
    if summary.noise is not None:
        latency += f"; noise {summary.noise:.0%}"
    speed = ""
    if original.speedup and original.median_ms:
        full = milliseconds(original.median_ms)
        speed = f"{original.speedup:.2f} times that of the full network ({full} ms)"
    where = f"{summary.device}, {summary.backend}, {summary.precision}"
    return labelled(
        [
            ("verified" if summary.verified else "unverified", where),
            (metric[:9], accuracy),
            ("original", against_original(metric, original)),
            ("latency", latency),
            *(("", on_device(own.device, own.budget, own)) for own in summary.further or ()),
            ("speed", speed),
            ("takes", _takes(summary)),
            ("outputs", f"differ from PyTorch by {_error(summary.output_error)} of the largest output"),
            ("size", f"{summary.size_bytes / 1e6:.2f} MB{_packed(summary)}"),
            ("file", summary.file),
            *(("", own.file) for own in summary.further or ()),
            *(("1-bit file", own.one_bit_file) for own in _every(summary) if own.one_bit_file),
            ("next", summary.verify_with or ""),
        ]
    )


def _every(summary: "ExportSummary") -> "tuple[ExportSummary | FurtherExport, ...]":
    """The findings on each device, those on the first one in front."""
    return summary, *(summary.further or ())


def _packed(summary: "ExportSummary") -> str:
    """What the constants take with binary weights in one bit each; empty for a network without any."""
    if summary.packed_bytes is None:
        return ""
    computed = "" if summary.one_bit_file else ", but this runtime has no 1-bit kernels"
    return f" ({summary.packed_bytes / 1e6:.2f} MB in packed bits{computed})"


def _takes(summary: "ExportSummary") -> str:
    """The inputs of a file with its own pre-processing, and how it compares with Pillow's."""
    own = summary.preprocess
    if own is None:
        return ""
    height, width = own.input_size
    alone = f"; {milliseconds(own.without.median_ms)} ms without pre-processing" if own.without else ""
    if own.resized_by is None:
        return f"uint8 images of {height} x {width} pixels, (N, H, W, C){alone}"
    agreement = "?" if own.agreement is None else f"{own.agreement:.2%}"
    return (
        f"uint8 images of {height} x {width} pixels, (N, H, W, C), scaled by {own.resized_by}: pixels differ "
        f"from Pillow's by at most {own.pixel_error or 0:.2g} of 255, {agreement} of predictions are the same"
        f"{alone}"
    )


def against_original(metric: str, original: "AccuracyLost") -> str:
    """The original's accuracy and what is lost of it; empty where it is not known."""
    lost = original.accuracy_lost
    if lost is None:
        return ""
    much = f"{100 * abs(lost):.2f} points" if metric == "accuracy" else f"{abs(lost):.4f}"
    change = f"{much} {'lost' if lost >= 0 else 'gained'}"
    return f"{value_of(metric, original.accuracy)} {original_as(original.state)}: {change}"


def _error(value: float | None) -> str:
    return "?" if value is None else f"{value:.1e}"
