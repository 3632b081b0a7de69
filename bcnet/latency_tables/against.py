"""Compare two latency tables of one device without measuring. In: head and base. Out: a report.

For CI, where one job builds both tables on the same machine.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from bcnet.errors import TableError
from bcnet.latency_tables.check_report import CheckReport
from bcnet.latency_tables.machine import Probed
from bcnet.latency_tables.observations import TICK_MS, Observation
from bcnet.latency_tables.regression_check import verdict_on
from bcnet.latency_tables.rows import Row
from bcnet.latency_tables.table import LatencyTable
from bcnet.plain import counted

LISTED = 3  # maximum number of rows that a finding names


def compare_tables(
    head: LatencyTable,
    base: LatencyTable,
    *,
    max_slowdown: float = 0.05,
    names: tuple[str, str] = ("head", "base"),
) -> CheckReport:
    """The verdict on the rows that both tables have; rows that only `base` has are reported as a finding.

    The statistics are those of a check that measures. Raises TableError if the devices differ, no row is in
    both tables, or a row is an estimate.
    """
    if head.device != base.device:
        raise TableError(
            f"{names[0]} is for device '{head.device}', {names[1]} for '{base.device}'; "
            "compare tables of the same device"
        )
    common = sorted(head.rows.keys() & base.rows.keys(), key=lambda key: (key[1], key[0]))
    if not common:
        raise TableError(f"{names[0]} and {names[1]} have no row in common; build both for the same network")
    now, then = [head.rows[key] for key in common], [base.rows[key] for key in common]
    refuse_estimates(head, now, names[0])
    refuse_estimates(base, then, names[1])
    settings = {setting for _, setting in common}
    observations = [
        Observation(
            layer=layer,
            then_ms=base.rows[layer, setting].stat.median_ms,
            then_spread=base.rows[layer, setting].stat.spread,
            now_ms=((head.rows[layer, setting].stat.median_ms,),),
            now_spread=head.rows[layer, setting].stat.spread,
            setting=str(setting) if len(settings) > 1 else "",
        )
        for layer, setting in common
        # Below the resolution of the runtime's profiler, a ratio is meaningless.
        if min(base.rows[layer, setting].stat.median_ms, head.rows[layer, setting].stat.median_ms) >= TICK_MS
    ]
    verdict = verdict_on(
        observations,
        probed_then(base, then),
        probed_then(head, now),
        max_slowdown=max_slowdown,
        other_machine=other_machine(processors(base, then), processors(head, now)),
    )
    if head == base:  # however noisy the rows were: nothing has changed
        verdict = replace(verdict, status="ok", reason="both are the same table", seconds_needed=None)
    missing, added = base.rows.keys() - head.rows.keys(), head.rows.keys() - base.rows.keys()
    findings = []
    if missing:
        listed = ", ".join(str(layer) for layer, _ in sorted(missing)[:LISTED])
        more = f" and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
        findings.append(f"{len(missing)} of {len(base.rows)} rows are missing: {listed}{more}")
    broken = sorted(missing & head.failures.keys())
    if broken:
        error = head.failures[broken[0]].error
        findings.append(f"the runtime fails on {len(broken)} of them, such as {broken[0][0]}: {error}")
    return CheckReport(
        table=names[0],
        against=names[1],
        device=head.device,
        verdict=verdict,
        rows=len(observations),
        unchecked=len(head.rows) - len(observations),
        findings=tuple(findings),
        notes=(
            *edited_by_hand(base, then, names[1]),
            *edited_by_hand(head, now, names[0]),
            *([counted(len(added), "new row")] if added else ()),
            *_versions(head, base, now, then),
        ),
    )


def edited_by_hand(table: LatencyTable, rows: Iterable[Row], name: str) -> list[str]:
    """A note for each session of these rows with edits that were accepted."""
    sessions = [table.sessions[number] for number in sorted({row.session for row in rows})]
    return [
        f"{name} was edited: {session.provenance['edited']}"
        for session in sessions
        if "edited" in session.provenance
    ]


def refuse_estimates(table: LatencyTable, rows: Iterable[Row], name: str) -> None:
    """Raises TableError if a row was calculated."""
    count = sum(table.sessions[row.session].estimate for row in rows)
    if count:
        raise TableError(
            f"{name} is an estimate: {count} of these rows were calculated, not measured; "
            f"run `bcnet build-lut --device {table.device}` on the device"
        )


def probed_then(table: LatencyTable, rows: Iterable[Row]) -> Probed:
    """The reference microbenchmark of the sessions of these rows, each session weighted by its rows.

    The spread is the larger of the sessions' own and the median absolute deviation between sessions.
    """
    sessions = [table.sessions[row.session] for row in rows]
    medians, spreads = {}, {}
    for part in sorted(set.intersection(*(set(session.probe) for session in sessions))):
        values = np.array([session.probe[part] for session in sessions])
        medians[part] = float(np.median(values))
        between = float(np.median(np.abs(values - medians[part]))) / medians[part]
        spreads[part] = max(between, *(session.probe_spread.get(part, 0.0) for session in sessions), 0.0)
    return Probed(medians, spreads)


def processors(table: LatencyTable, rows: Iterable[Row]) -> set[str]:
    """The names of the processors on which these rows were measured."""
    return {table.sessions[row.session].provenance.get("processor", "") for row in rows} - {""}


def other_machine(then: set[str], now: set[str]) -> str:
    """Why two sets of processors are not the same machine; empty if they are, or if one is not known."""
    if not then or not now or then == now:
        return ""
    return f"another processor: {', '.join(sorted(then))} then, {', '.join(sorted(now))} now"


def _versions(head: LatencyTable, base: LatencyTable, now: list[Row], then: list[Row]) -> list[str]:
    """The other provenance that both tables record, where it differs."""
    found: list[dict[str, set[str]]] = []
    for table, rows in ((base, then), (head, now)):
        values: dict[str, set[str]] = {}
        for row in rows:
            for key, value in table.sessions[row.session].provenance.items():
                values.setdefault(key, set()).add(value)
        found.append(values)
    return [
        f"{key}: {', '.join(sorted(found[0][key]))} then, {', '.join(sorted(found[1][key]))} now"
        for key in sorted(found[0].keys() & found[1].keys())
        if found[0][key] != found[1][key]
    ]
