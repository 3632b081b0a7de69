"""Print what latencies a network can have on a device, and why a search chose its widths."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bcnet.plain import milliseconds
from bcnet.show.tables import put, show_table

if TYPE_CHECKING:
    from bcnet.pipeline.expected_latency import ExpectedLatency
    from bcnet.report.reasons import Reason


def show_latency(found: "ExpectedLatency") -> None:
    """Print what each group's narrowest choice saves, the most first, and the budgets that can be met."""
    kind = "an estimate, not measured" if found.estimate else "measured layers"
    if found.full_ms is None or found.fastest_ms is None:
        put(f"latency   unknown on {found.device}: {found.source}")
        return
    ordered = sorted(found.saved_ms.items(), key=lambda own: -(own[1] or 0.0))
    rows = [
        [name, "cannot be run", ""] if ms is None else [name, milliseconds(ms), f"{ms / found.full_ms:.1%}"]
        for name, ms in ordered
    ]
    show_table(["group", "narrowest saves (ms)", "of the original"], rows)
    put(
        f"latency   {milliseconds(found.full_ms)} ms predicted on {found.device} ({kind}: {found.source})",
        f"budgets   from {milliseconds(found.fastest_ms)} to {milliseconds(found.full_ms)} ms can be met, "
        f"{found.fastest_ms / found.full_ms:.0%} to 100%",
    )


def show_reasons(reasons: Sequence["Reason"], basis: str) -> None:
    """Print a sentence a group, and what its figures are."""
    rows = [[own.group, str(own.width), own.sentence] for own in reasons]
    show_table(["group", "width", "next choices"], rows)
    put(basis)
