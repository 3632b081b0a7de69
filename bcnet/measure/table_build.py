"""The measurements of a table build. In: a network's graph, a device, what is missing. Out: times of layers.

Layers are timed inside whole networks, with the runtime's own profile, in passes that each have another
order; whole subnets are timed in between, so that a machine that becomes slower does so for both alike.
"""

import os
import threading
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial

import numpy as np

from bcnet.errors import NetworkError
from bcnet.hw_profiles import HwProfile
from bcnet.latency_tables.journal import Entry, Journal
from bcnet.latency_tables.noise import crowded, noise_of_networks, noisy
from bcnet.latency_tables.rows import LayerSpec
from bcnet.measure.layer_attribution import layers_ms, row_stat
from bcnet.measure.network_design import networks_with
from bcnet.measure.network_latency import measure_network, runtime_of
from bcnet.measure.pool import at_once
from bcnet.onnx_export.onnx_supernet import OnnxSupernet
from bcnet.plain import counted
from bcnet.progress import announce, part_of, progress_bar, say
from bcnet.space.width_space import Widths

NOISY = 0.025  # a row with a larger spread is measured again
PASSES = 2
EXTRA_PASSES = 2
TIMED = 4  # visits after which the duration of a build is announced: the first network also loads the runtime
ATTEMPTS = 2  # to measure everything: once more where whole networks differed by too much


@dataclass(frozen=True)
class Plan:
    """The layers that a table lacks, the networks that show them, and whole subnets for the calibration."""

    missing: Set[LayerSpec]
    networks: Sequence[Widths]
    subnets: Sequence[Widths]


def runs_of_a_profile(full_ms: float) -> int:
    """How often a network is run to profile its layers, by the latency of the full one."""
    return int(np.clip(round(100 / full_ms), 12, 60))


class TableBuild:
    """One build: what it has measured so far, from its journal or now.

    `layers` are the milliseconds (runs,) of each missing layer, one array for each profile that showed it;
    `beside_mb` the megabytes of weights of those networks; `failed` are layers that no network could be run
    with, and why; `whole` the milliseconds of each subnet, which took `whole_seconds` to measure; `readings`
    the reference microbenchmark's readings before every visit and at the end.
    """

    def __init__(
        self, graph: OnnxSupernet, profile: HwProfile, plan: Plan, journal: Journal, seed: int
    ) -> None:
        self.graph, self.profile, self.plan, self.journal, self.seed = graph, profile, plan, journal, seed
        self.layers: dict[LayerSpec, list[np.ndarray]] = {spec: [] for spec in plan.missing}
        self.beside_mb: dict[LayerSpec, list[float]] = {spec: [] for spec in plan.missing}
        self.failed: dict[LayerSpec, str] = {}
        self.whole: dict[Widths, list[float]] = {widths: [] for widths in plan.subnets}
        self.whole_seconds = 0.0
        self.readings: list[Mapping[str, float]] = []
        self._runtime = runtime_of(profile)
        self._networks = list(plan.networks)  # and those that show what a network that failed has hidden
        self._errors: dict[Widths, str] = {}
        self._full_ms, self._runs, self._announced = 0.0, 0, False
        self._keeping = threading.Lock()  # visits are made on several devices at once
        # What failed before the build was stopped is tried again: it may have been the memory.
        self._kept = {
            (entry.number, entry.widths, entry.whole_ms is not None): entry
            for entry in journal.entries
            if not entry.error
        }

    def measure(self) -> None:
        """Measure everything, and once more where whole subnets differ by more than the profile accepts.

        Raises NetworkError where the runtime can run none of the networks.
        """
        if not (self.profile.host or self.profile.recording):
            reason = crowded(os.getloadavg()[0], os.cpu_count() or 1)
            if reason:
                say(reason)
        self._prepare()
        for attempt in range(ATTEMPTS):
            if attempt:
                reason = noisy(noise_of_networks(self.whole.values()), self.profile.table_noise)
                if reason is None:
                    break
                say(f"{reason}: everything is measured once more")
            self._attempt(attempt * (PASSES + EXTRA_PASSES))
        self.readings = [entry.probe_ms for entry in self.journal.entries if entry.probe_ms]
        self.readings.append(self._runtime.probe())

    def _prepare(self) -> None:
        """Load the runtime, and choose the runs of a profile."""
        done = len(self.journal.entries)
        if self.plan.networks:
            self._full_ms = self._first_that_runs([self.graph.space.largest(), *self.plan.networks])
            self._runs = runs_of_a_profile(self._full_ms)
        if done:
            say(f"continuing a build that was stopped: {counted(done, 'measurement')} of networks kept")

    def _first_that_runs(self, networks: Sequence[Widths]) -> float:
        """The latency in ms of the first network that the runtime can run; the largest one, as a rule.

        It is thrown away otherwise: the very first network also loads the runtime. Raises NetworkError.
        """
        errors: list[NetworkError] = []
        for widths in networks:
            try:
                times = layers_ms(self.graph, widths, self.graph.variant(widths), self.profile, 5)
                return float(np.median(times.sum(0)))
            except NetworkError as cause:
                errors.append(cause)
        raise errors[0]

    def _attempt(self, first: int) -> None:
        """Passes from number `first` on; in the last ones only networks with noisy layers are visited."""
        again = [widths for widths in self._networks if widths not in self._errors]
        for number in range(first, first + PASSES + EXTRA_PASSES):
            rng = np.random.default_rng((self.seed, number))  # its own: a build that continues does the same
            subnets = self.plan.subnets if number < first + PASSES else ()
            with part_of(number - first, PASSES):
                self._pass(number, again, subnets, rng)
            if number == 0 and self._errors:
                again += self._tried_alone()
            again = [widths for widths in again if widths not in self._errors]
            if number + 1 >= first + PASSES:
                again = self._noisy_networks(again, rng)
                if not again:
                    break

    def _pass(
        self, number: int, networks: Sequence[Widths], subnets: Sequence[Widths], rng: np.random.Generator
    ) -> None:
        """Visit all of these once, in random order."""
        order = [(widths, False) for widths in networks] + [(widths, True) for widths in subnets]
        start, kept = time.perf_counter(), len(self.journal.entries)
        with progress_bar(f"measuring, pass {number + 1}", len(order)) as advance:
            visits = [partial(self._visit, number, *order[index]) for index in rng.permutation(len(order))]
            for _ in at_once(self._runtime.workers, visits):
                advance("")
                entries = len(self.journal.entries)
                if not self._announced and entries - kept >= TIMED:
                    self._announced = True
                    each = (time.perf_counter() - start) / (entries - kept)
                    announce(f"measuring {len(order)} networks", each * (PASSES * len(order) - entries))

    def _visit(self, number: int, widths: Widths, whole: bool = False) -> None:
        """One network in one pass, measured now or kept in the journal."""
        kept = self._kept.get((number, tuple(widths), whole))
        if kept is None and widths in self._errors:
            return
        entry = kept or self._measured(number, widths, whole)
        with self._keeping:
            if kept is None:
                self.journal.add(entry)
            self._add(widths, entry)

    def _measured(self, number: int, widths: Widths, whole: bool) -> Entry:
        """The times of a network's layers, or of the whole; or why the runtime could not run it."""
        reading = self._runtime.probe()
        try:
            model = self.graph.variant(widths)
            if whole:
                begun = time.perf_counter()
                ms = measure_network(model, self.profile, share=0.1, quiet=True).median_ms
                with self._keeping:
                    self.whole_seconds += time.perf_counter() - begun
                return Entry(number, tuple(widths), whole_ms=ms, probe_ms=reading)
            times = layers_ms(self.graph, widths, model, self.profile, self._runs)
        except NetworkError as cause:
            return Entry(number, tuple(widths), probe_ms=reading, error=str(cause))
        rounded = tuple(tuple(round(float(ms), 5) for ms in layer) for layer in times)
        return Entry(number, tuple(widths), rounded, probe_ms=reading)

    def _add(self, widths: Widths, entry: Entry) -> None:
        if entry.error:
            self._errors[widths] = entry.error
        if entry.whole_ms is not None:
            self.whole[widths].append(entry.whole_ms)
        specs = [slot.at(widths) for slot in self.graph.slots]
        weights_mb = sum(spec.weights_mb(self.profile.precision) for spec in specs)
        for spec, durations in zip(specs, entry.layers_ms, strict=False):
            if spec in self.layers:
                self.layers[spec].append(np.array(durations))
                self.beside_mb[spec].append(weights_mb)

    def _tried_alone(self) -> list[Widths]:
        """Networks that show what those that failed have hidden: each unseen layer is tried by itself.

        Layers whose own networks fail, too, are moved to `failed`.
        """
        more = []
        for spec in sorted(spec for spec, observed in self.layers.items() if not observed):
            for widths in networks_with(self.graph, spec):
                self._visit(0, widths)
                if self.layers[spec]:
                    more.append(widths)
                    break
            else:
                shown = (e for w, e in self._errors.items() if any(s.at(w) == spec for s in self.graph.slots))
                self.failed[spec] = next(shown, "no network that shows it could be run")
                del self.layers[spec]
        self._networks += more
        return more

    def _noisy_networks(self, networks: Sequence[Widths], rng: np.random.Generator) -> list[Widths]:
        """Those with layers whose times disagree, among those that are large enough to matter.

        A machine that stays noisy is not measured without end: at most half as many again.
        """
        stats = {spec: row_stat(observed) for spec, observed in self.layers.items()}
        least_ms = 0.01 * self._full_ms
        wanted = {spec for spec, own in stats.items() if own.spread > NOISY and own.median_ms > least_ms}
        again = [widths for widths in networks if any(slot.at(widths) in wanted for slot in self.graph.slots)]
        return [again[index] for index in rng.permutation(len(again))[: len(self.plan.networks) // 2]]
