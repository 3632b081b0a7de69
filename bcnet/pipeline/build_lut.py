"""Stage 2, the latency table. In: a network's space and a device. Out: measured layers, calibrated.

Layers are timed inside whole networks, with the runtime's own profile, so that each row holds what the layer
costs where it stands: fused with its neighbours, in their memory layout. The sums are then calibrated on
whole subnets, and the error on subnets that were left out of the fit is kept.
"""

import datetime
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bcnet.errors import ModelError
from bcnet.events import followed_stage
from bcnet.hw_profiles import HwProfile
from bcnet.hw_profiles.target import target_json
from bcnet.latency_tables.calibration import calibrated
from bcnet.latency_tables.journal import Journal, journal_of
from bcnet.latency_tables.model import LatencyModel
from bcnet.latency_tables.noise import QUIETER, noisy
from bcnet.latency_tables.probe import pool_readings
from bcnet.latency_tables.rows import Calibration, Failure, Row, Session
from bcnet.latency_tables.table import LatencyTable
from bcnet.measure.layer_attribution import row_stat
from bcnet.measure.network_design import calibration_subnets, needed_layers, plan
from bcnet.measure.network_latency import runtime_of, setting_of, why_not_here
from bcnet.measure.table_build import Plan, TableBuild
from bcnet.onnx_export.onnx_supernet import OnnxSupernet
from bcnet.pipeline.binary_layers import not_in_single_bits, without_kernels
from bcnet.pipeline.device_table import model_key
from bcnet.pipeline.measured_again import FILE as AGAIN
from bcnet.pipeline.measured_again import MeasuredAgain, forget_forms
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.results import PrecisionTable, TableSummary
from bcnet.plain import counted, duration, plain
from bcnet.progress import say
from bcnet.runs import Run, Stage, json_bytes
from bcnet.space.width_space import Widths


@dataclass(frozen=True)
class BuildReport:
    """What a build measured: rows that were missing, networks they were seen in, seconds.

    `calibration_seconds` is the part of `seconds` that went into whole subnets. `failed` are the layers of
    this network that the runtime could not run, of this build and earlier ones.
    """

    measured: int
    rows: int
    networks: int
    seconds: float
    calibration_seconds: float
    calibration: Calibration
    failed: tuple[Failure, ...] = ()


def build_lut(
    graph: OnnxSupernet,
    profile: HwProfile,
    table: LatencyTable,
    *,
    seed: int = 0,
    path: Path | None = None,
    again: bool = False,
) -> BuildReport:
    """Add to `table` what it lacks for every width of `graph`'s space, measured on this machine.

    With `again`, all layers of the space are measured again. Layers that failed with another version of the
    runtime are tried once more.

    The table is saved to `path`, if there is one, when all is measured; until then a journal beside it holds
    what was, so that a killed build continues. Nothing is measured when no row and no calibration is
    missing. Layers that the runtime cannot run become the table's failures; NetworkError is raised only
    where it can run none of the networks.
    """
    start = time.perf_counter()
    space, setting = graph.space, setting_of(profile)
    choices = tuple(group.choices for group in space.groups)
    table.drop_estimates(setting)  # what is measured takes their place
    provenance = {} if why_not_here(profile) else _provenance(profile)
    table.forget(table.old_failures(setting, provenance), setting)
    if again:
        table.forget(needed_layers(graph), setting)
    networks, missing = plan(graph, table, setting)
    key = model_key(graph.slots, choices)
    own = {"model": key, "setting": asdict(setting)}  # identifies the journal of a build
    calibration_seconds = 0.0

    def model_now() -> LatencyModel:
        return LatencyModel(table, setting, graph.slots, choices, table.calibrations.get((key, setting)))

    model = None if missing else model_now()
    if model is None or not model.current:
        provenance = _provenance(profile)
        belongs_to = {"missing": sorted(map(repr, missing)), "provenance": provenance, "seed": seed}
        journal = Journal(path, own, belongs_to)
        subnets = calibration_subnets(space, seed)
        say_exports(graph, {*networks, *subnets})
        build = TableBuild(graph, profile, Plan(missing, networks, subnets), journal, seed)
        build.measure()
        calibration_seconds = build.whole_seconds
        if missing:
            number, session = len(table.sessions), _session(provenance, build.readings)
            table.sessions.append(session)
            for spec, observed in build.layers.items():
                use = _cache_use(build.beside_mb[spec], session.cache_mb)
                table.rows[spec, setting] = Row(spec, setting, row_stat(observed), number, use)
            for spec, error in build.failed.items():
                table.failures[spec, setting] = Failure(spec, setting, plain(error), number)
        model = model or model_now()
        table.calibrations[key, setting] = calibrated(model, key, list(build.whole.items()))
        if path is not None:
            table.save(path)
        journal.close()
    elif path is not None:
        journal_of(path, own).unlink(missing_ok=True)  # its build was killed after the table was complete
    return BuildReport(
        measured=len(missing),
        rows=len(model.used),
        networks=len(networks),
        seconds=round(time.perf_counter() - start, 1),
        calibration_seconds=round(calibration_seconds, 1),
        calibration=table.calibrations[key, setting],
        failed=tuple(
            failure
            for (layer, at), failure in table.failures.items()
            if at == setting and layer in model.used
        ),
    )


def say_exports(graph: OnnxSupernet, networks: Collection[Widths]) -> None:
    """Report how long exports will take where each network needs its own, before the first one begins."""
    if not graph.sliceable:
        seconds = len(networks) * graph.export_seconds
        exported = f"exporting {counted(len(networks), 'network')} takes about {duration(seconds)}"
        say(f"{exported}, besides the time to measure them")


def _cache_use(networks_mb: Sequence[float], cache_mb: float) -> float | None:
    """The share of the cache that networks of so many megabytes fill; as `row_stat`, their lower quartile."""
    if not cache_mb:
        return None
    return round(float(np.percentile(np.minimum(np.array(networks_mb) / cache_mb, 1.0), 25)), 4)


def _provenance(profile: HwProfile) -> dict[str, str]:
    """What is recorded of the runtime and the machine. Raises DeviceError where the device is not here."""
    recorded = {"recorded": profile.recording} if profile.recording else {}
    return {"runtime": profile.runtime, **runtime_of(profile).fingerprint(), **recorded}


def _session(provenance: Mapping[str, str], readings: Sequence[Mapping[str, float]]) -> Session:
    """Provenance of what was measured now, and the reference microbenchmark's readings."""
    medians, spreads = pool_readings(readings)
    return Session(
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        provenance=dict(provenance),
        probe=medians,
        probe_spread=spreads,
    )


def stage_inputs(run: Run, problem: Problem) -> dict[str, str]:
    """What this stage's manifest records."""
    return problem.table_inputs()


@followed_stage("build-lut")
def run(run: Run, problem: Problem, again: bool = False) -> TableSummary:
    """Add what is missing to `latency_tables/<device>.json`, in each precision; write the error report.

    Several devices are measured one after the other: returns the first one's result, reports the others'.
    """
    stage = run.stage("build-lut")
    measured = MeasuredAgain.of(stage) if again else None
    first, *further = [_of_device(stage, own, measured) for own in problem.devices]
    files = {first.FILE: json_bytes(first.to_json())}
    files |= {f"report-{own.device}.json": json_bytes(own.to_json()) for own in further}
    stage.finish(stage_inputs(run, problem), files, [stage.path(AGAIN)])
    for own in further:
        say(
            f"{own.device}: {counted(own.rows_measured, 'layer')} measured in {own.seconds:.0f} s; this "
            f"network uses {own.rows_used}; error {own.calibration.mean_error or 0:.1%}; file {own.table}"
        )
    return first


def _of_device(stage: Stage, problem: Problem, again: MeasuredAgain | None) -> TableSummary:
    """One device's table, completed in each precision."""
    report, *others = [_built(problem.at(name), again) for name in problem.precisions]
    return TableSummary(
        folder=str(stage.folder),
        table=str(problem.table.path),
        device=problem.profile.name,
        target=target_json(problem.config),
        rows_measured=report.measured,
        rows_used=report.rows,
        rows_failed=len(report.failed),
        networks=report.networks,
        seconds=report.seconds,
        recorded=problem.profile.recording,
        calibration=report.calibration,
        precisions=tuple(
            PrecisionTable(
                precision=name,
                rows_measured=own.measured,
                rows_used=own.rows,
                rows_failed=len(own.failed),
                seconds=own.seconds,
                calibration=own.calibration,
            )
            for name, own in zip(problem.precisions[1:], others, strict=True)
        )
        or None,
    )


def _built(problem: Problem, again: MeasuredAgain | None) -> BuildReport:
    """The table of one precision, with missing rows measured, and what to report about it.

    With `again`, all rows are measured, unless that was done before the command was stopped.

    Raises ModelError for a binary network at a precision that the runtime's 1-bit kernels do not have.
    """
    path = problem.table.path
    reason = not_in_single_bits(problem.graph, problem.profile)
    if reason:
        raise ModelError(reason)
    if note := without_kernels(problem.graph, problem.profile):
        say(note)
    if len(problem.precisions) > 1:
        say(f"latency table at {problem.profile.precision}")
    due = again is not None and again.due(problem)
    with problem.table.being_built() as table:
        if due:
            forget_forms(problem, table)
        seed = problem.config.seed
        report = build_lut(problem.graph, problem.profile, table, seed=seed, path=path, again=due)
    if again is not None and due:
        again.add(problem)
    if report.measured == 0:
        say(f"{path} has all {counted(report.rows, 'layer')} of this network; nothing measured")
    if report.failed:
        failed, first = counted(len(report.failed), "layer"), report.failed[0]
        say(
            f"{problem.profile.runtime} cannot run {failed}; networks with such layers are never chosen: "
            f"{first.layer}: {first.error}"
        )
    calibration = report.calibration
    if problem.table.replayed:
        say(problem.table.replayed)
    say(
        f"predictions are off by {calibration.mean_error:.1%} on average, on {calibration.held_out} whole "
        f"subnets, each left out of the fit; measuring one of them again differs by {calibration.noise:.1%}"
    )
    reason = noisy(calibration.noise or 0.0, problem.profile.table_noise)
    if reason:
        say(f"{reason}: it will be refused; {QUIETER}, then measure it again with --again")
    return report
