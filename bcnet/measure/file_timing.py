"""Time any ONNX file on a device: the whole network, as an application runs it, its layers, against another.

In: one or two files, a hardware profile. Out: a `TimingReport`. Each round loads every file again, because a
network's place in memory, which differs between two calls, changes its latency.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from bcnet.errors import DeviceError, NetworkError
from bcnet.hw_profiles import HwProfile
from bcnet.latency_tables.machine import MEDIAN
from bcnet.measure.layer_names import layer_names
from bcnet.measure.network_file import NetworkFile, NetworkInput, Shapes, check_names, read_network
from bcnet.measure.network_latency import INTERRUPTED, MANY, replayed, runtime_of, uninterrupted_ms
from bcnet.plain import milliseconds
from bcnet.progress import announce, progress_bar, working
from bcnet.runtimes import Runtime
from bcnet.runtimes.onnx_binary import in_one_bit_form
from bcnet.traits import PrecisionName

ROUNDS, FEWEST = 10, 3
APPLICATION = 0.5  # share of a round's duration for which the application is timed
# Half the width of the narrowest interval: the machine itself drifts by this between calls, which rounds of
# one call do not show.
FLOOR = 0.01
# Rounds of one call follow each other at once and resemble each other; calls a minute apart do less. On a
# virtual machine, 19 of 20 calls agreed with intervals of three times the width that independent rounds need
# (benchmarks/timing_drift.py). A quiet machine's rounds differ so little that FLOOR decides.
DRIFT = 3.0
NOISY = 0.05  # a larger relative difference between rounds is reported
CONFIDENCE = 0.95
PROFILED_MS = 1000.0  # duration of the profile of layers
PROFILED_RUNS = (10, 200)


@dataclass(frozen=True)
class TimingSettings:
    """How long is timed, and what inputs get.

    `seconds` are those of each file in all rounds together; None: one round takes the profile's `seconds`.
    """

    rounds: int = ROUNDS
    seconds: float | None = None
    layers: bool = True
    shapes: Shapes = field(default_factory=Shapes)


@dataclass(frozen=True)
class TimedRuns:
    """Latencies of a network in ms, in one mode.

    `typical_ms` is the median of `rounds_ms`; a round's latency is the median of the inferences that other
    work did not interrupt, as everywhere in bcnet. In 95 % of cases, `typical_ms` of another call a minute
    later is from `low_ms` to `high_ms`. The percentiles are those of all single inferences, `interrupted` is
    the share of them that took over 1.25 times the fastest, `noise` the relative difference between the
    slowest round and the fastest.
    """

    typical_ms: float
    low_ms: float
    high_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    runs: int
    interrupted: float
    rounds_ms: tuple[float, ...]
    noise: float

    @classmethod
    def of(cls, rounds: Sequence[np.ndarray]) -> "TimedRuns":
        """The statistics of rounds, each the ms of its inferences in order."""
        values = np.array([uninterrupted_ms(samples) for samples in rounds])
        typical = float(np.median(values))
        half = max(DRIFT * rounds_differ_by(values), FLOOR * typical)
        samples = np.concatenate(rounds)
        p50, p90, p99 = np.percentile(samples, (50, 90, 99))
        return cls(
            typical_ms=round(typical, 5),
            low_ms=round(max(typical - half, 0.0), 5),
            high_ms=round(typical + half, 5),
            p50_ms=round(float(p50), 5),
            p90_ms=round(float(p90), 5),
            p99_ms=round(float(p99), 5),
            runs=len(samples),
            interrupted=round(float(np.mean(samples > INTERRUPTED * samples.min())), 4),
            rounds_ms=tuple(round(float(value), 5) for value in values),
            noise=round(float(values.max() / max(values.min(), 1e-9) - 1), 4),
        )


@dataclass(frozen=True)
class LayerTime:
    """One row of the runtime's profile: ms in the median run, and its share of the sum of all rows.

    `row` is the runtime's own name of it.
    """

    name: str
    kind: str
    ms: float
    share: float
    row: str


@dataclass(frozen=True)
class TimedFile:
    """One file: its own time on the device, that of an application, and its layers, the longest first.

    `layers_ms` is the sum of all layers; None, with the reason in `no_layers`, if they were not timed.
    """

    file: str
    precision: PrecisionName | None
    inputs: tuple[NetworkInput, ...]
    size_bytes: int
    device_time: TimedRuns
    application: TimedRuns
    layers: tuple[LayerTime, ...] = ()
    layers_ms: float | None = None
    no_layers: str | None = None


@dataclass(frozen=True)
class Speedup:
    """How many times as fast the second file is as the first, with the 95 % interval over rounds."""

    ratio: float
    low: float
    high: float

    @property
    def separable(self) -> bool:
        """Whether one of the files is faster in the whole interval."""
        return self.low > 1 or self.high < 1

    @classmethod
    def of(cls, first_ms: Sequence[float], second_ms: Sequence[float]) -> "Speedup":
        """From the rounds of both, which alternated."""
        logs = np.log(np.array(first_ms) / np.array(second_ms))
        error = float(logs.std(ddof=1)) / math.sqrt(len(logs))
        half = max(_quantile(len(logs)) * error, FLOOR)
        mean = float(logs.mean())
        return cls(*(round(math.exp(value), 5) for value in (mean, mean - half, mean + half)))


@dataclass(frozen=True)
class TimingReport:
    """What `bcnet time` found. `runtime` has versions and processor, `notes` what the reader should know.

    `not_quiet` is a warning, if other work disturbed the measurement.
    """

    device: str
    threads: int
    batch: int | None
    runtime: dict[str, str]
    files: tuple[TimedFile, ...]
    speedup: Speedup | None
    not_quiet: str | None
    notes: tuple[str, ...]
    recorded: str | None

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values; docs/reference/json-commands.md describes the keys."""
        found = asdict(self)
        if self.speedup is not None:
            found["speedup"]["separable"] = self.speedup.separable
        return found


def time_file(
    path: Path | str,
    profile: HwProfile,
    *,
    against: Path | str | None = None,
    settings: TimingSettings | None = None,
) -> TimingReport:
    """Time an ONNX file, or an engine of TensorRT, on the profile's device, alternating with another file.

    Inputs are constant noise; integers and booleans are zero. Raises UsageError if a file cannot be read or
    shapes do not fit it, NetworkError if the runtime cannot run it, DeviceError without the device.
    """
    settings = settings or TimingSettings()
    files = [read_network(Path(own), settings.shapes) for own in (path, against) if own is not None]
    check_names(files, settings.shapes)
    profiles = [_profile_of(own, profile) for own in files]
    runtimes = [_runtime_of(own, at) for own, at in zip(files, profiles, strict=True)]
    with working(f"reaching {profile.name}"):
        found = runtimes[0].fingerprint()
    timed = _alternating(files, runtimes, profile, settings)
    results = []
    for number, (own, runtime) in enumerate(zip(files, runtimes, strict=True)):
        device_time, application = TimedRuns.of(timed[number][0]), TimedRuns.of(timed[number][1])
        result = TimedFile(
            file=own.name,
            precision=None if own.graph is None else own.precision,
            inputs=own.inputs,
            size_bytes=len(own.content),
            device_time=device_time,
            application=application,
        )
        results.append(_with_layers(result, own, runtime) if settings.layers and not number else result)
    rounds_ms = [result.device_time.rounds_ms for result in results]
    return TimingReport(
        device=profile.name,
        threads=profile.threads,
        batch=files[0].batch,
        runtime={"runtime": profile.setting[0], **found},
        files=tuple(results),
        speedup=Speedup.of(*rounds_ms) if against is not None else None,
        not_quiet=_not_quiet(results),
        notes=tuple(_notes(files, profile, settings)),
        recorded=replayed(profile),
    )


def rounds_differ_by(rounds_ms: np.ndarray) -> float:
    """How far a further round is from the median in 95 % of cases, in ms, if rounds are independent."""
    count = len(rounds_ms)
    return _quantile(count) * float(rounds_ms.std(ddof=1)) * math.sqrt(1 + MEDIAN**2 / count)


def _quantile(rounds: int) -> float:
    return float(student.ppf((1 + CONFIDENCE) / 2, rounds - 1))


def _profile_of(file: NetworkFile, profile: HwProfile) -> HwProfile:
    """The profile with the file's own precision and batch, on one of its hosts: rounds are compared."""
    update = {"precision": file.precision, "batch": file.batch or profile.batch, "host": profile.host[:1]}
    return profile.model_copy(update=update)


def _runtime_of(file: NetworkFile, profile: HwProfile) -> Runtime:
    if file.graph is None and not profile.traits.engines:
        raise NetworkError(
            f"{file.name} is an engine of TensorRT, which '{profile.name}' does not run: give the ONNX file, "
            "or another --device"
        )
    if file.graph is not None and in_one_bit_form(file.graph) and not profile.traits.one_bit:
        raise NetworkError(
            f"{file.name} is in the form for OpenVINO's 1-bit kernels, which '{profile.name}' does not read: "
            "give the model.onnx beside it, or --device cpu-openvino"
        )
    return runtime_of(profile)


def _alternating(
    files: Sequence[NetworkFile], runtimes: Sequence[Runtime], profile: HwProfile, settings: TimingSettings
) -> list[tuple[list[np.ndarray], list[np.ndarray]]]:
    """Each file's rounds, of the device and of the application; every second round in reverse."""
    rounds = max(settings.rounds, FEWEST)
    seconds = profile.seconds if settings.seconds is None else settings.seconds / rounds
    iterations = max(2, math.ceil(profile.iterations / rounds))
    modes = ((False, seconds), (True, APPLICATION * seconds))
    steps = [(number, mode) for number in range(len(files)) for mode in modes]
    found: list[tuple[list[np.ndarray], list[np.ndarray]]] = [([], []) for _ in files]
    announce("timing", rounds * sum(duration + profile.warmup_ms / 1000 for _, (_, duration) in steps))
    with progress_bar("timing", rounds * len(steps)) as advance:
        for turn in range(rounds):
            for number, (application, duration) in reversed(steps) if turn % 2 else steps:
                samples = runtimes[number].time_network(
                    files[number].content, profile.warmup_ms, duration, iterations, application=application
                )
                found[number][application].append(samples)
                advance("")
    return found


def _with_layers(result: TimedFile, file: NetworkFile, runtime: Runtime) -> TimedFile:
    """The result with the times of its layers, or the reason why the runtime does not report them."""
    runs = int(np.clip(PROFILED_MS / max(result.device_time.typical_ms, 1e-3), *PROFILED_RUNS))
    try:
        with working("timing layers"):
            rows = runtime.profile_nodes(file.content, runs)
    except DeviceError as reason:
        return replace(result, no_layers=str(reason))
    times = [max(float(np.median(durations)), 0.0) for _, durations in rows]
    total = sum(times)
    names = layer_names(file.graph, [row for row, _ in rows])
    layers = [
        LayerTime(own.name, own.kind, round(ms, 5), round(ms / max(total, 1e-9), 4), row)
        for own, ms, (row, _) in zip(names, times, rows, strict=True)
    ]
    layers.sort(key=lambda layer: -layer.ms)
    return replace(result, layers=tuple(layers), layers_ms=round(total, 5))


def _not_quiet(files: Sequence[TimedFile]) -> str | None:
    """A warning if rounds of one file disagree, or many of its inferences were interrupted; else None."""
    worst = max(files, key=lambda own: own.device_time.noise)
    runs = worst.device_time
    interrupted = max(own.device_time.interrupted for own in files)
    if runs.noise <= NOISY and interrupted <= MANY:
        return None
    return (
        f"the machine is not quiet: rounds of {worst.file} disagree by {runs.noise:.0%} "
        f"({milliseconds(min(runs.rounds_ms))} to {milliseconds(max(runs.rounds_ms))} ms), "
        f"{interrupted:.0%} of inferences took over {INTERRUPTED:g} times the fastest; "
        "stop other work on it, or keep bcnet on its own cores (taskset)"
    )


def _notes(files: Sequence[NetworkFile], profile: HwProfile, settings: TimingSettings) -> list[str]:
    notes = []
    for own in files:
        given = bool(own.inputs) and own.inputs[0].name in settings.shapes.by_name
        if own.batch not in (None, settings.shapes.batch) and not given:
            notes.append(f"{own.name} has batch {own.batch}, not {settings.shapes.batch}")
    if len({tuple((entry.dtype, entry.shape) for entry in own.inputs) for own in files if own.inputs}) > 1:
        notes.append("the two files have different inputs")
    if len(profile.host) > 1:
        notes.append(f"of several hosts, only {profile.host[0]} was timed")
    return notes
