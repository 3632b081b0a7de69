"""Stage 2, the latency table. In: a network's space and a device. Out: measured layers, calibrated.

Layers are timed inside whole networks, with the runtime's own profile, so that each row holds what the layer
costs where it stands: fused with its neighbours, in their memory layout. The sums are then calibrated on
whole subnets, and the error on subnets that were left out of the fit is kept.
"""

import contextlib
import datetime
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from bcnet.config import Config
from bcnet.errors import NetworkError
from bcnet.hw_profiles import HwProfile
from bcnet.hw_profiles.target import target_of
from bcnet.latency_tables.calibration import calibrated
from bcnet.latency_tables.journal import Entry, Journal, journal_of
from bcnet.latency_tables.model import LatencyModel
from bcnet.latency_tables.noise import QUIETER, noise_of_networks, noisy
from bcnet.latency_tables.probe import pool_readings
from bcnet.latency_tables.rows import Calibration, Failure, LayerSpec, Row, Session
from bcnet.latency_tables.table import LatencyTable
from bcnet.measure.layer_attribution import layers_ms, row_stat
from bcnet.measure.network_design import calibration_subnets, needed_layers, networks_with, plan
from bcnet.measure.network_latency import measure_network, runtime_of, setting_of, why_not_here
from bcnet.onnx_export.onnx_supernet import OnnxSupernet
from bcnet.pipeline.problem import load_project, model_key
from bcnet.pipeline.results import TableSummary
from bcnet.plain import plain
from bcnet.progress import announce, progress_bar, say
from bcnet.runs import Run, json_bytes
from bcnet.space.width_space import Widths

NOISY = 0.025  # a row with a larger spread is measured again
PASSES = 2
EXTRA_PASSES = 2
ATTEMPTS = 2  # to measure everything: once more where whole networks differed by too much


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

    With `again`, all layers of the space are measured anew. Layers that failed with another version of the
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
        measured = _measure(graph, profile, networks, missing, subnets, journal, seed)
        calibration_seconds = measured.whole_seconds
        if missing:
            number, session = len(table.sessions), _session(provenance, measured.readings)
            table.sessions.append(session)
            for spec, observed in measured.layers.items():
                use = _cache_use(measured.beside_mb[spec], session.cache_mb)
                table.rows[spec, setting] = Row(spec, setting, row_stat(observed), number, use)
            for spec, error in measured.failed.items():
                table.failures[spec, setting] = Failure(spec, setting, plain(error), number)
        model = model or model_now()
        table.calibrations[key, setting] = calibrated(model, key, list(measured.whole.items()))
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
        time_taken = f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
        say(f"exporting {len(networks)} networks takes about {time_taken}, besides the time to measure them")


@dataclass
class _Measured:
    """What the passes of a build have seen: layers, layers that failed, whole subnets, the probe.

    `beside_mb` are the weights of the networks that showed a layer, in megabytes, one for each profile.
    """

    layers: dict[LayerSpec, list[np.ndarray]]
    beside_mb: dict[LayerSpec, list[float]]
    failed: dict[LayerSpec, str]
    whole: dict[Widths, list[float]]
    readings: list[Mapping[str, float]]
    whole_seconds: float = 0.0


def _measure(
    graph: OnnxSupernet,
    profile: HwProfile,
    networks: list[Widths],
    missing: set[LayerSpec],
    subnets: list[Widths],
    journal: Journal,
    seed: int,
) -> _Measured:
    """Profile networks and time whole subnets in passes, each in another order; noisy layers once more.

    Both kinds alternate, so that a machine that becomes slower meanwhile does so for both alike. Everything
    is measured once more where whole subnets differ by more than the profile accepts.
    """
    # What failed before the build was stopped is tried again: it may have been the memory.
    kept = {
        (entry.number, entry.widths, entry.whole_ms is not None): entry
        for entry in journal.entries
        if not entry.error
    }
    errors: dict[Widths, str] = {}
    runtime, keeping = runtime_of(profile), threading.Lock()
    found = _Measured(
        {spec: [] for spec in missing},
        {spec: [] for spec in missing},
        {},
        {widths: [] for widths in subnets},
        [],
    )
    first, full_ms, runs = time.perf_counter(), 0.0, 0
    if networks:
        ordered = [graph.space.largest(), *networks]
        full_ms = _first_that_runs(
            ordered, lambda widths: layers_ms(graph, widths, graph.variant(widths), profile, 5)
        )
        runs = int(np.clip(round(100 / full_ms), 12, 60))
    each = time.perf_counter() - first + full_ms * (runs - 5) / 1000
    done = len(journal.entries)
    if done:
        say(f"continuing a build that was stopped: {done} measurements of networks are kept")
    announce(f"measuring {len(networks)} networks", each * max(len(networks) * PASSES - done, 0))

    def measured_now(number: int, widths: Widths, whole: bool) -> Entry:
        reading = runtime.probe()
        try:
            model = graph.variant(widths)
            if whole:
                begun = time.perf_counter()
                ms = measure_network(model, profile, share=0.1).median_ms
                with keeping:
                    found.whole_seconds += time.perf_counter() - begun
                return Entry(number, tuple(widths), whole_ms=ms, probe_ms=reading)
            times = layers_ms(graph, widths, model, profile, runs)
        except NetworkError as cause:
            return Entry(number, tuple(widths), probe_ms=reading, error=str(cause))
        rounded = tuple(tuple(round(float(ms), 5) for ms in layer) for layer in times)
        return Entry(number, tuple(widths), rounded, probe_ms=reading)

    def visit(number: int, widths: Widths, whole: bool = False) -> None:
        """One network in one pass, measured or from the journal."""
        before = kept.get((number, tuple(widths), whole))
        if before is None and widths in errors:
            return
        entry = before or measured_now(number, widths, whole)
        with keeping:  # on several devices at once
            if before is None:
                journal.add(entry)
            if entry.error:
                errors[widths] = entry.error
            if entry.whole_ms is not None:
                found.whole[widths].append(entry.whole_ms)
            specs = [slot.at(widths) for slot in graph.slots]
            weights_mb = sum(spec.weights_mb(profile.precision) for spec in specs)
            for spec, durations in zip(specs, entry.layers_ms, strict=False):
                if spec in found.layers:
                    found.layers[spec].append(np.array(durations))
                    found.beside_mb[spec].append(weights_mb)

    everything = list(networks)
    for first_number in range(0, ATTEMPTS * (PASSES + EXTRA_PASSES), PASSES + EXTRA_PASSES):
        if first_number:
            reason = noisy(noise_of_networks(found.whole.values()), profile.table_noise)
            if reason is None:
                break
            say(f"{reason}: everything is measured once more")
        again = [widths for widths in everything if widths not in errors]
        for number in range(first_number, first_number + PASSES + EXTRA_PASSES):
            rng = np.random.default_rng((seed, number))  # its own: a build that continues does the same
            order = [(widths, False) for widths in again]
            order += [(widths, True) for widths in subnets] if number < first_number + PASSES else []
            with progress_bar(f"measuring, pass {number + 1}", len(order)) as advance:
                visits = [partial(visit, number, *order[index]) for index in rng.permutation(len(order))]
                for _ in at_once(runtime.workers, visits):
                    advance("")
            if number == 0 and errors:
                more = _tried_alone(graph, found, errors, lambda widths: visit(0, widths))
                again, everything = again + more, everything + more
            again = [widths for widths in again if widths not in errors]
            if number + 1 >= first_number + PASSES:
                wanted = _noisy(found.layers, 0.01 * full_ms)
                again = [widths for widths in again if any(slot.at(widths) in wanted for slot in graph.slots)]
                # A machine that stays noisy is not measured without end: at most half as many again.
                again = [again[index] for index in rng.permutation(len(again))[: len(networks) // 2]]
                if not again:
                    break
    found.readings = [entry.probe_ms for entry in journal.entries if entry.probe_ms] + [runtime.probe()]
    return found


def at_once(workers: int, visits: Sequence[Callable[[], None]]) -> Iterator[None]:
    """Make all visits, so many at a time; yields after each of them."""
    if workers == 1:
        for visit in visits:
            yield visit()
        return
    waiting, done = queue.SimpleQueue[Callable[[], None]](), queue.SimpleQueue[BaseException | None]()
    for visit in visits:
        waiting.put(visit)

    def work() -> None:
        while not waiting.empty():
            with contextlib.suppress(queue.Empty):
                visit = waiting.get_nowait()
                try:
                    done.put(visit())
                except BaseException as error:
                    done.put(error)

    # Daemons: after an error or Ctrl-C, nobody waits for what still runs on a device.
    for _ in range(workers):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in visits:
            if (error := done.get()) is not None:
                raise error
            yield
    finally:
        with contextlib.suppress(queue.Empty):
            while True:
                waiting.get_nowait()


def _tried_alone(
    graph: OnnxSupernet, found: _Measured, errors: Mapping[Widths, str], visit: Callable[[Widths], None]
) -> list[Widths]:
    """Networks that show what those that failed have hidden: each unseen layer is tried by itself.

    Layers whose own networks fail, too, are moved to `found.failed`.
    """
    more = []
    for spec in sorted(spec for spec, observed in found.layers.items() if not observed):
        for widths in networks_with(graph, spec):
            visit(widths)
            if found.layers[spec]:
                more.append(widths)
                break
        else:
            shown = (error for w, error in errors.items() if any(slot.at(w) == spec for slot in graph.slots))
            found.failed[spec] = next(shown, "no network that shows it could be run")
            del found.layers[spec]
    return more


def _cache_use(networks_mb: Sequence[float], cache_mb: float) -> float | None:
    """The share of the cache that networks of so many megabytes fill; as `row_stat`, their lower quartile."""
    if not cache_mb:
        return None
    return round(float(np.percentile(np.minimum(np.array(networks_mb) / cache_mb, 1.0), 25)), 4)


def _noisy(layers: Mapping[LayerSpec, list[np.ndarray]], at_least_ms: float) -> set[LayerSpec]:
    """Layers that disagree between networks or runs, among those large enough to matter."""
    stats = {spec: row_stat(observed) for spec, observed in layers.items()}
    return {spec for spec, stat in stats.items() if stat.spread > NOISY and stat.median_ms > at_least_ms}


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


def _provenance(profile: HwProfile) -> dict[str, str]:
    """What is recorded of the runtime and the machine. Raises DeviceError where the device is not here."""
    recorded = {"recorded": profile.recording} if profile.recording else {}
    return {"runtime": profile.runtime, **runtime_of(profile).fingerprint(), **recorded}


def _session(provenance: Mapping[str, str], readings: Sequence[Mapping[str, float]]) -> Session:
    """Provenance of what was measured now, and what the probe said meanwhile."""
    medians, spreads = pool_readings(readings)
    return Session(
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        provenance=dict(provenance),
        probe=medians,
        probe_spread=spreads,
    )


def stage_inputs(run: Run, config: Config) -> dict[str, str]:
    """What this stage's manifest records."""
    return load_project(config).table_inputs()


def run(run: Run, config: Config, again: bool = False) -> TableSummary:
    """Add what is missing to `latency_tables/<device>.json`; write the error report."""
    project = load_project(config)
    stage, path = run.stage("build-lut"), project.table_path
    with project.own_table() as table:
        report = build_lut(project.graph, project.profile, table, seed=config.seed, path=path, again=again)
    if report.measured == 0:
        say(f"{path} has all {report.rows} layers of this network; nothing measured")
    if report.failed:
        say(
            f"{len(report.failed)} layers cannot be run by {project.profile.runtime}; networks with them are "
            f"never chosen: {report.failed[0].layer}: {report.failed[0].error}"
        )
    calibration = report.calibration
    if project.replayed:
        say(project.replayed)
    say(
        f"predictions are off by {calibration.mean_error:.1%} on average, on {calibration.held_out} whole "
        f"subnets, each left out of the fit; measuring one of them again differs by {calibration.noise:.1%}"
    )
    reason = noisy(calibration.noise or 0.0, project.profile.table_noise)
    if reason:
        say(f"{reason}: it will be refused; {QUIETER}, then measure it again with --again")
    summary = TableSummary(
        folder=str(stage.folder),
        table=str(path),
        device=project.profile.name,
        target=target_of(config).to_json(config.host),
        rows_measured=report.measured,
        rows_used=report.rows,
        rows_failed=len(report.failed),
        networks=report.networks,
        seconds=report.seconds,
        recorded=project.profile.recording,
        calibration=calibration,
    )
    stage.finish(stage_inputs(run, config), {summary.FILE: json_bytes(summary.to_json())})
    return summary
