"""Regression check: measure rows of a latency table again. In: a table, its network, a device. Out: a report.

A sample of rows is measured in place, in whole networks, as `build_lut` does; the reference microbenchmark is
read before, between and after.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bcnet.errors import CheckFailed, NetworkError, TableError
from bcnet.hw_profiles import HwProfile
from bcnet.latency_tables.against import (
    edited_by_hand,
    other_machine,
    probed_then,
    processors,
    refuse_estimates,
)
from bcnet.latency_tables.check_report import CheckReport
from bcnet.latency_tables.machine import Probed
from bcnet.latency_tables.observations import TICK_MS, Observation
from bcnet.latency_tables.probe import pool_readings
from bcnet.latency_tables.regression_check import verdict_on
from bcnet.latency_tables.rows import LayerSpec
from bcnet.latency_tables.table import LatencyTable
from bcnet.measure.layer_attribution import layers_ms, undisturbed_ms
from bcnet.measure.network_design import covering_design
from bcnet.measure.network_latency import runtime_of, setting_of
from bcnet.onnx_export.onnx_supernet import OnnxSupernet
from bcnet.pipeline.problem import Problem
from bcnet.progress import progress_bar
from bcnet.space.width_space import Widths

MOST_NETWORKS = 6
LEAST_ROUNDS = 3
VISIT_MS = 50.0  # of inferences, each time that a network is visited


@dataclass(frozen=True)
class CheckSettings:
    """How many rows are drawn, for about how many seconds they are measured, and the allowed slowdown."""

    rows: int = 40
    seconds: float = 30.0
    max_slowdown: float = 0.05


def check_lut(
    graph: OnnxSupernet,
    profile: HwProfile,
    table: LatencyTable,
    settings: CheckSettings,
    *,
    seed: int = 0,
    name: str = "the table",
) -> CheckReport:
    """Measure a sample of the table's rows of this network again, and report a verdict.

    Rows are drawn evenly over kinds of layers; at most six networks that show most of them are profiled round
    by round, in another order each time, three rounds at least. All known rows that these networks show are
    compared. Raises TableError where the table has no measured row of the network at this setting.
    """
    start = time.perf_counter()
    setting = setting_of(profile)
    known = {
        # Below the tick of the runtime's clock there is no ratio.
        layer: row
        for (layer, at), row in table.rows.items()
        if at == setting and row.stat.median_ms >= TICK_MS
    }
    failed = {layer for layer, at in table.failures if at == setting}
    networks = _choose(graph, set(known), failed, settings.rows, np.random.default_rng(seed))
    if not networks:
        raise TableError(
            f"{name} has no row of this network at {setting}; it holds: {table.settings()}. "
            f"Run `bcnet build-lut --device {profile.name}`"
        )
    shown = {slot.at(widths) for widths in networks for slot in graph.slots} & known.keys()
    refuse_estimates(table, [known[layer] for layer in shown], name)
    end = start + settings.seconds
    seen, readings, rounds, errors = _measure(graph, profile, networks, shown, end, seed)
    compared = [known[layer] for layer in sorted(seen)]
    medians, spread = pool_readings(readings)
    fingerprint = runtime_of(profile).fingerprint()
    here = {fingerprint["processor"]} if fingerprint.get("processor") else set()
    verdict = verdict_on(
        [
            Observation(
                layer=row.layer,
                then_ms=row.stat.median_ms,
                then_spread=row.stat.spread,
                now_ms=tuple(tuple(values) for values in seen[row.layer].values()),
            )
            for row in compared
        ],
        probed_then(table, compared),
        Probed(medians, spread, len(readings)),
        max_slowdown=settings.max_slowdown,
        seconds=settings.seconds,
        other_machine=other_machine(processors(table, compared), here),
    )
    return CheckReport(
        table=name,
        against="this machine now" if not profile.recording else f"the recording {profile.recording}",
        device=table.device,
        verdict=verdict,
        rows=len(compared),
        unchecked=len(table.rows) - len(compared),
        findings=tuple(
            f"the runtime fails on a network that it ran when the table was measured: {error}"
            for error in sorted(set(errors))
        ),
        notes=(
            *edited_by_hand(table, compared, name),
            *(
                f"{key}: {value} then, {fingerprint[key]} now"
                for number in sorted({row.session for row in compared})
                for key, value in table.sessions[number].provenance.items()
                if key in fingerprint and fingerprint[key] != value
            ),
        ),
        networks=len(networks) - len(errors),
        rounds=rounds,
        seconds=round(time.perf_counter() - start, 1),
        recorded=profile.recording,
    )


def _choose(
    graph: OnnxSupernet, known: set[LayerSpec], failed: set[LayerSpec], rows: int, rng: np.random.Generator
) -> list[Widths]:
    """A few networks that show a sample of the known rows, drawn in turn from each kind of layer.

    None of them holds a layer that is known to fail.
    """
    shows = {}
    for widths in (graph.space.largest(), *covering_design(graph.space)):
        layers = {slot.at(widths) for slot in graph.slots}
        if not layers & failed:
            shows[widths] = layers & known
    kinds: dict[str, list[LayerSpec]] = {}
    for layer in sorted(set[LayerSpec]().union(*shows.values())):
        kinds.setdefault(layer.kind, []).append(layer)
    drawn = [[own[i] for i in rng.permutation(len(own))] for own in kinds.values()]
    turns = [
        layer
        for turn in range(max(map(len, drawn), default=0))
        for own in drawn
        for layer in own[turn : turn + 1]
    ]
    wanted = set(turns[:rows])
    chosen: list[Widths] = []
    while wanted and len(chosen) < MOST_NETWORKS:
        best = max(shows, key=lambda widths: len(shows[widths] & wanted))
        wanted -= shows[best]
        chosen.append(best)
    return chosen


def _measure(
    graph: OnnxSupernet,
    profile: HwProfile,
    networks: list[Widths],
    shown: set[LayerSpec],
    end: float,
    seed: int,
) -> tuple[dict[LayerSpec, dict[Widths, list[float]]], list[dict[str, float]], int, list[str]]:
    """Layers' milliseconds {layer: {network: one a round}}, microbenchmark readings, the number of rounds.

    The last are the errors of networks that the runtime does not run any more. Raises CheckFailed where it
    runs none of them.
    """
    rng = np.random.default_rng(seed)
    runtime = runtime_of(profile)
    models = {widths: graph.variant(widths) for widths in networks}
    slots_of = {
        widths: [
            (index, layer) for index, slot in enumerate(graph.slots) if (layer := slot.at(widths)) in shown
        ]
        for widths in networks
    }
    seen: dict[LayerSpec, dict[Widths, list[float]]] = {layer: {} for layer in shown}

    def profiled(widths: Widths, runs: int) -> np.ndarray:
        return layers_ms(graph, widths, models[widths], profile, runs)

    # The first visits load the runtime and settle the clock; nothing of them is kept.
    first, errors = {}, []
    for widths in networks:
        try:
            first[widths] = profiled(widths, 5)
        except NetworkError as cause:
            errors.append(str(cause))
    networks = list(first)
    if not first:
        raise CheckFailed(
            f"the runtime runs none of {len(errors)} networks of the table any more: {errors[0]}"
        )
    runtime.probe()
    runs = int(
        np.clip(round(VISIT_MS / max(float(np.median(times.sum(0))) for times in first.values())), 12, 40)
    )
    readings: list[dict[str, float]] = []
    rounds, longest = 0, 0.0
    with progress_bar("measuring rows again, rounds", LEAST_ROUNDS) as advance:
        while rounds < LEAST_ROUNDS or time.perf_counter() + longest < end:
            begun = time.perf_counter()
            for index in rng.permutation(len(networks)):
                widths = networks[index]
                readings.append(runtime.probe())
                times = profiled(widths, runs)
                fastest = undisturbed_ms(times)
                of_layer: dict[LayerSpec, list[float]] = {}
                for slot, layer in slots_of[widths]:
                    of_layer.setdefault(layer, []).append(float(fastest[slot]))
                for layer, values in of_layer.items():
                    seen[layer].setdefault(widths, []).append(max(float(np.median(values)), TICK_MS / 2))
            rounds += 1
            longest = max(longest, time.perf_counter() - begun)
            advance("")
    readings.append(runtime.probe())
    return {layer: by_network for layer, by_network in seen.items() if by_network}, readings, rounds, errors


def run(problem: Problem, table: Path | None, settings: CheckSettings) -> CheckReport:
    """Check the configured device's table, or another file of it. Nothing is written."""
    path = table or problem.table.path
    loaded = LatencyTable.load(path)
    if loaded.device != problem.profile.name:
        raise TableError(
            f"{path} was measured on '{loaded.device}', not on '{problem.profile.name}'; "
            f"give its device: --device {loaded.device}"
        )
    seed = problem.config.seed
    return check_lut(problem.graph, problem.profile, loaded, settings, seed=seed, name=str(path))
