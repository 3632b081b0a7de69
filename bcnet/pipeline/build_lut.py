"""Stage 2, the latency table. In: a network's space and a device. Out: measured layers, calibrated.

Layers are timed inside whole networks, with the runtime's own profile, so that each row holds what the layer
costs where it stands: fused with its neighbours, in their memory layout. The sums are then calibrated on
whole subnets, and the error on other subnets is measured and kept.
"""

import datetime
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from bcnet.artifacts import Run, digest, json_bytes
from bcnet.config import Config
from bcnet.errors import DeviceError, NetworkError, TableError
from bcnet.hw_profiles import HwProfile
from bcnet.latency_tables.journal import Entry, Journal, alone
from bcnet.latency_tables.model import LatencyModel
from bcnet.latency_tables.probe import pool_readings, probe
from bcnet.latency_tables.rows import Calibration, Failure, LayerSpec, Row, Session
from bcnet.latency_tables.table import LatencyTable
from bcnet.progress import announce, progress_bar, say
from bcnet.runtimes import runtime_named
from bcnet.supernet.design import plan, showing, spread_widths
from bcnet.supernet.layer_times import layers_ms, row_stat
from bcnet.supernet.measure import measure_network, runtime_of, setting_of
from bcnet.supernet.onnx_graph import OnnxSupernet
from bcnet.supernet.project import load_project, model_key
from bcnet.supernet.space import Widths, WidthSpace

NOISY = 0.025  # a row with a larger spread is measured again
PASSES = 2
EXTRA_PASSES = 2
SUBNETS = 12  # whole subnets fitted, and as many held out


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
) -> BuildReport:
    """Add to `table` what it lacks for every width of `graph`'s space, measured on this machine.

    The table is saved to `path`, if there is one, when its rows and when its calibration are complete; until
    then a journal beside it holds what was measured, so that a killed build continues. Nothing is measured
    when no row and no calibration is missing. Layers that the runtime cannot run become the table's
    failures; DeviceError is raised only where it can run none of the networks.
    """
    start = time.perf_counter()
    space, setting = graph.space, setting_of(profile)
    choices = tuple(group.choices for group in space.groups)
    table.drop_estimates(setting)  # what is measured takes their place
    networks, missing = plan(graph, table, setting)
    key = model_key(graph.slots, choices)
    if missing:
        fingerprint = runtime_of(profile).fingerprint()
        journal = Journal(
            path,
            {
                "model": key,
                "setting": asdict(setting),
                "missing": sorted(map(repr, missing)),
                "provenance": fingerprint,
                "seed": seed,
            },
        )
        _measure_rows(graph, profile, table, networks, missing, journal, seed)
        if path is not None:
            table.save(path)
        journal.close()
    rows_done = time.perf_counter()
    model = LatencyModel(table, setting, graph.slots, choices, None)
    rows = table.digest_of(model.used(), setting)
    calibration = table.calibrations.get((key, setting))
    if calibration is None or calibration.rows != rows:
        calibration = _calibrate(graph, profile, model, key, rows, seed)
        table.calibrations[key, setting] = calibration
        if path is not None:
            table.save(path)
    used = model.used()
    return BuildReport(
        measured=len(missing),
        rows=len(used),
        networks=len(networks),
        seconds=round(time.perf_counter() - start, 1),
        calibration_seconds=round(time.perf_counter() - rows_done, 1),
        calibration=calibration,
        failed=tuple(
            failure for (layer, at), failure in table.failures.items() if at == setting and layer in used
        ),
    )


def _measure_rows(
    graph: OnnxSupernet,
    profile: HwProfile,
    table: LatencyTable,
    networks: list[Widths],
    missing: set[LayerSpec],
    journal: Journal,
    seed: int,
) -> None:
    """Profile the networks in passes, each in another order, and noisy ones again; fill in the rows."""
    setting = setting_of(profile)
    largest = graph.space.largest()

    def profiled(widths: Widths, runs: int) -> np.ndarray:
        """Milliseconds (layers, runs) of one network."""
        return layers_ms(graph, graph.variant(widths), profile, runs)

    first = time.perf_counter()
    full_ms = _first_that_runs([largest, *networks], lambda widths: profiled(widths, 5))
    runs = int(np.clip(round(100 / full_ms), 12, 60))
    each = time.perf_counter() - first + full_ms * (runs - 5) / 1000
    done = len(journal.entries)
    if done:
        say(f"continuing a build that was stopped: {done} measurements of networks are kept")
    announce(f"measuring {len(networks)} networks", each * max(len(networks) * PASSES - done, 0))
    kept = {(entry.number, entry.widths): entry for entry in journal.entries}
    seen: dict[LayerSpec, list[np.ndarray]] = {spec: [] for spec in missing}
    errors: dict[Widths, str] = {}

    def measure(number: int, widths: Widths) -> None:
        """One network in one pass, measured or from the journal."""
        entry = kept.get((number, tuple(widths)))
        if entry is None:
            reading = probe()
            try:
                times = profiled(widths, runs)
                rounded = tuple(tuple(round(float(ms), 4) for ms in layer) for layer in times)
                entry = Entry(number, tuple(widths), rounded, reading)
            except NetworkError as cause:
                entry = Entry(number, tuple(widths), probe_ms=reading, error=str(cause))
            journal.add(entry)
        if entry.error:
            errors[widths] = entry.error
        for slot, durations in zip(graph.slots, entry.layers_ms, strict=False):
            spec = slot.at(widths)
            if spec in seen:
                seen[spec].append(np.array(durations))

    def noisy() -> set[LayerSpec]:
        """Rows that disagree between networks or runs, among those large enough to matter."""
        return {
            spec
            for spec, observed in seen.items()
            if (stat := row_stat(observed)).spread > NOISY and stat.median_ms > 0.01 * full_ms
        }

    again = list(networks)
    failed: dict[LayerSpec, str] = {}
    for number in range(PASSES + EXTRA_PASSES):
        rng = np.random.default_rng((seed, number))  # its own: a build that continues does the same
        with progress_bar(f"measuring layers, pass {number + 1}", len(again)) as advance:
            for index in rng.permutation(len(again)):
                measure(number, again[index])
                advance("")
        if number == 0 and errors:
            # A network that does not run hides layers that do: each is tried in networks of its own.
            for spec in sorted(spec for spec, observed in seen.items() if not observed):
                for widths in showing(graph, spec):
                    measure(number, widths)
                    if seen[spec]:
                        again.append(widths)
                        break
                else:
                    failed[spec] = errors[widths]
                    del seen[spec]
            again = [widths for widths in again if widths not in errors]
        if number + 1 >= PASSES:
            wanted = noisy()
            again = [w for w in networks if any(slot.at(w) in wanted for slot in graph.slots)]
            # A machine that stays noisy is not measured without end: at most half as many again.
            again = [w for w in again if w not in errors]
            again = [again[index] for index in rng.permutation(len(again))[: len(networks) // 2]]
            if not again:
                break
    readings = [entry.probe_ms for entry in journal.entries if entry.probe_ms] + [probe()]
    session = len(table.sessions)
    table.sessions.append(_session(profile, readings))
    for spec, observed in seen.items():
        table.rows[spec, setting] = Row(spec, setting, row_stat(observed), session)
    for spec, error in failed.items():
        table.failures[spec, setting] = Failure(spec, setting, error, session)


def _first_that_runs(networks: Sequence[Widths], profiled: Callable[[Widths], np.ndarray]) -> float:
    """The latency in ms of the first network that the runtime can run; the largest one, as a rule.

    It is thrown away otherwise: the very first network also loads the runtime. Raises NetworkError.
    """
    errors: list[NetworkError] = []
    for widths in networks:
        try:
            return float(np.median(profiled(widths).sum(0)))
        except NetworkError as cause:
            errors.append(cause)
    raise errors[0]


def _session(profile: HwProfile, readings: Sequence[Mapping[str, float]]) -> Session:
    """Provenance of what was measured now, and what the probe said meanwhile."""
    medians, spreads = pool_readings(readings)
    return Session(
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        provenance={"runtime": profile.runtime, **runtime_named(profile.runtime).fingerprint()},
        probe=medians,
        probe_spread=spreads,
    )


def calibration_subnets(space: WidthSpace, seed: int) -> list[Widths]:
    """The whole subnets that are measured: every other one is fitted, the rest tell the error."""
    return spread_widths(space, np.random.default_rng(seed + 1), 2 * SUBNETS)


def _calibrate(
    graph: OnnxSupernet, profile: HwProfile, model: LatencyModel, key: str, rows: str, seed: int
) -> Calibration:
    """Fit `offset + scale * sum` on some whole subnets, and measure the error on others.

    The fit minimises relative errors, so that small networks count as much as large ones. Every subnet is
    measured twice, far apart in time; the difference is the noise.
    """
    rng = np.random.default_rng(seed + 1)
    subnets = calibration_subnets(graph.space, seed)
    sums = model.layers_ms(model.indices(subnets))
    runnable = np.isfinite(sums)
    subnets, sums = [w for w, runs in zip(subnets, runnable, strict=True) if runs], sums[runnable]
    if len(subnets) < 4:
        raise DeviceError(
            f"{profile.runtime} can run almost no subnet of this network; failed layers are in the table"
        )
    rounds: list[np.ndarray] = []
    with progress_bar("calibrating on whole networks", 2 * len(subnets)) as advance:
        for _ in range(2):
            measured = np.zeros(len(subnets))
            for index in rng.permutation(len(subnets)):
                stat = measure_network(graph.variant(subnets[index]), profile, share=0.1)
                measured[index] = stat.median_ms
                advance("")
            rounds.append(measured)
    latencies = np.minimum(*rounds)
    noise = float(np.mean(np.abs(rounds[0] - rounds[1]) / latencies))
    fitted, held_out = np.arange(0, len(subnets), 2), np.arange(1, len(subnets), 2)
    offset, scale = fit_calibration(sums[fitted], latencies[fitted])
    predicted = offset + scale * sums[held_out]
    errors = np.abs(predicted - latencies[held_out]) / latencies[held_out]
    return Calibration(
        model=key,
        setting=model.setting,
        rows=rows,
        offset_ms=round(offset, 6),
        scale=round(scale, 6),
        fitted=len(fitted),
        held_out=len(held_out),
        mean_error=round(float(errors.mean()), 5),
        within_5=round(float((errors <= 0.05).mean()), 4),
        within_10=round(float((errors <= 0.10).mean()), 4),
        spearman=round(float(spearmanr(predicted, latencies[held_out]).statistic), 4),
        noise=round(noise, 5),
    )


def fit_calibration(sums: np.ndarray, measured: np.ndarray) -> tuple[float, float]:
    """Offset (ms) and scale with the least squared relative errors of `offset + scale * sums`."""
    matrix = np.stack([1 / measured, sums / measured], axis=1)
    offset, scale = np.linalg.lstsq(matrix, np.ones(len(sums)), rcond=None)[0]
    if scale <= 0:  # all subnets cost the same: only the ratio can be told
        return 0.0, float(np.median(measured / sums))
    return float(offset), float(scale)


def stage_inputs(run: Run, config: Config) -> dict[str, str]:
    """What this stage's manifest records."""
    project = load_project(config)
    inputs = {"model": project.model_key, "device": project.device_key}
    try:
        model = project.latency_model()
    except TableError:
        return {**inputs, "table": "none"}
    return {**inputs, "table": digest(asdict(model.calibration) if model.calibration else None)}


def run(run: Run, config: Config) -> dict[str, Any]:
    """Add what is missing to `latency_tables/<device>.json`; write the error report. Returns a summary."""
    project = load_project(config)
    stage, path = run.stage("build-lut"), project.table_path
    with alone(path):
        table = LatencyTable.load(path) if path.exists() else LatencyTable(project.profile.name)
        if table.device != project.profile.name:
            raise TableError(f"{path} was measured on '{table.device}'; keep that file under another name")
        report = build_lut(project.graph, project.profile, table, seed=config.seed, path=path)
    if report.measured == 0:
        say(f"{path} has all {report.rows} layers of this network; nothing measured")
    if report.failed:
        say(
            f"{len(report.failed)} layers cannot be run by {project.profile.runtime}; networks with them are "
            f"never chosen: {report.failed[0].layer}: {report.failed[0].error}"
        )
    calibration = report.calibration
    say(
        f"predictions are off by {calibration.mean_error:.1%} on average, on {calibration.held_out} subnets "
        f"that were not fitted; measuring the same subnet twice differs by {calibration.noise:.1%}"
    )
    summary = {
        "stage": "build-lut",
        "table": str(path),
        "device": project.profile.name,
        "rows_measured": report.measured,
        "rows_used": report.rows,
        "rows_failed": len(report.failed),
        "networks": report.networks,
        "seconds": report.seconds,
        "calibration": asdict(calibration),
    }
    stage.finish(stage_inputs(run, config), {"report.json": json_bytes(summary)})
    return summary
