"""Print the result of a regression check of a latency table."""

from typing import TYPE_CHECKING

from bcnet.plain import counted, milliseconds
from bcnet.show.tables import put, show_table

if TYPE_CHECKING:
    from bcnet.latency_tables.check_report import CheckReport


def show_check(report: "CheckReport") -> None:
    """Print the verdict on a latency table in one line, then the evidence and the worst changes."""
    from bcnet.latency_tables.check_report import WORST
    from bcnet.latency_tables.row_changes import ALPHA

    verdict = report.verdict
    put(f"{report.table}: {report.headline}")
    changes = [verdict.everything, verdict.total, *([verdict.part] if verdict.part else []), *verdict.kinds]
    names = {change.name for change in changes}
    slower = [change for change in verdict.slower if change.name not in names]
    faster = [change for change in verdict.faster if change.name not in names]
    marks = {change.name: "slower" for change in verdict.slower}
    marks |= {change.name: "faster" for change in verdict.faster}
    marks |= {each.name: "slower" for each in (verdict.everything, verdict.total) if each.p < ALPHA}
    marks |= {verdict.part.name: "slower"} if verdict.part else {}
    show_table(
        ["layers", "rows", "then ms", "now ms", "change", "95 % interval", "verdict"],
        [
            [
                change.name,
                str(change.rows),
                milliseconds(change.then_ms),
                milliseconds(change.now_ms),
                f"{change.change:+.1%}",
                f"{change.low:+.1%} to {change.high:+.1%}",
                marks.get(change.name, ""),
            ]
            for change in (*changes, *slower[:WORST], *faster[:WORST])
        ],
    )
    put("changes are weighted medians over rows; that of the total time is the ratio of the sums")
    for change in verdict.relative:
        put(f"against all other rows, {change.name}: {change.change:+.1%}")
    if len(slower) > WORST or len(faster) > WORST:
        put(f"single layers in total: {len(slower)} slower, {len(faster)} faster")
    probe = ", ".join(f"{part.name} {part.change:+.1%}" for part in verdict.probe)
    sizes = f"{counted(report.networks, 'network')}, {counted(report.rounds, 'round')}, "
    measured = sizes if report.networks else ""
    put(
        f"reference microbenchmark: {probe}; {measured}{counted(report.rows, 'row')} compared, "
        f"{report.unchecked} not compared; "
        f"detects a slowdown of all rows from {verdict.detectable:.0%}"
    )
    for note in report.notes:
        put(f"note: {note}")
