"""Measure whole networks on the device.

In: an ONNX file and a hardware profile. Out: statistics of its latency in milliseconds.
"""

import os
import platform
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from bcnet.errors import DeviceError
from bcnet.hw_profiles import HwProfile
from bcnet.latency_tables.noise import QUIETER
from bcnet.latency_tables.rows import LatencyStat, Setting
from bcnet.progress import say
from bcnet.runtimes import Runtime, Settings, runtime_here, runtime_on_hosts, runtime_recorded

WINDOWS = 3
AGREE = 0.025  # the two fastest windows may differ by so much
INTERRUPTED = 1.25  # times the fastest inference: one that takes longer waited for other work
MANY = 1 / 3  # of all inferences: more interrupted ones are reported


def setting_of(profile: HwProfile) -> Setting:
    """The setting of rows that are measured with this profile."""
    return Setting(*profile.setting)


def why_not_here(profile: HwProfile) -> str | None:
    """Why this machine cannot be the profile's device; None if it may be."""
    if profile.recording:
        return None  # its answers are available: see `replayed`
    if profile.host:
        return None
    if profile.machine not in (None, platform.machine()):
        return f"device '{profile.name}' is {profile.machine}, this machine {platform.machine()}"
    try:
        _answers(_runtime_here(profile))
    except DeviceError as reason:
        return f"device '{profile.name}' is not available: {reason}"
    return None


def runtime_of(profile: HwProfile) -> Runtime:
    """The runtime on the profile's device, over ssh if it has a host.

    If the profile names a recording, it is replayed instead. Raises DeviceError if the device is not
    available or cannot be reached.
    """
    if profile.recording:
        recording = os.path.abspath(profile.recording)
        return runtime_recorded(recording, profile.runtime, **_settings(profile))
    if profile.host:
        return runtime_on_hosts(
            profile.host,
            profile.runtime,
            python=profile.host_python,
            folder=profile.host_folder,
            machine=profile.machine,
            record_to=_absolute(profile.record_to),
            **_settings(profile),
        )
    reason = why_not_here(profile)
    if reason is not None:
        over = ", or over ssh (--host user@name)" if profile.traits.over_ssh else ""
        estimate = f"`bcnet build-lut --device {profile.name} --estimate`"
        table = f", or calculate a table: {estimate}" if profile.roofline else ""
        raise DeviceError(f"{reason}; measure on the device itself{over}{table}")
    return _runtime_here(profile)


def _runtime_here(profile: HwProfile) -> Runtime:
    record_to = _absolute(profile.record_to)
    return runtime_here(profile.runtime, record_to=record_to, **_settings(profile))


@cache
def _answers(runtime: Runtime) -> None:
    """Raises DeviceError if the runtime is not available. Checked once, not before each network:

    TensorRT's fingerprint starts programs of the system.
    """
    runtime.fingerprint()


def _settings(profile: HwProfile) -> Settings:
    return Settings(
        provider=profile.provider,
        threads=profile.threads,
        precision=profile.precision,
        compute_capability=profile.compute_capability,
        power_mode=profile.power_mode,
        batch=profile.batch,
    )


def _absolute(path: str | None) -> str | None:
    """The absolute path: runtimes are cached for the process, and the working folder may change."""
    return os.path.abspath(path) if path else None


def replayed(profile: HwProfile) -> str | None:
    """The message that latencies are replayed from a recording, not measured; None without a recording."""
    if not profile.recording:
        return None
    return f"latencies are replayed from the recording {profile.recording}, not measured now"


def builder_of(profile: HwProfile) -> Runtime:
    """The runtime that builds engines: that of `runtime_of`; for TensorRT for RTX, this machine."""
    here = profile.traits.ahead_of_time and not profile.host
    return _runtime_here(profile) if here else runtime_of(profile)


def measure_network(
    model: bytes, profile: HwProfile, share: float = 1.0, *, quiet: bool = False
) -> LatencyStat:
    """Time a network in three windows and return the fastest: other work on the machine only adds time.

    `median_ms` is that of the inferences which were not interrupted (see `INTERRUPTED`), all else of the
    whole window. Up to three more windows are added until a second one confirms the fastest. `share` is the
    fraction of the profile's duration to use, to measure many networks. A busy machine is reported, unless
    `quiet`: for callers that compare several measurements of a network.
    """
    runtime = runtime_of(profile)
    windows: list[np.ndarray] = []
    while len(windows) < WINDOWS or (len(windows) < 2 * WINDOWS and _apart(windows) > AGREE):
        samples = runtime.time_network(
            model,
            profile.warmup_ms * share,
            profile.seconds * share / WINDOWS,
            max(2, round(profile.iterations * share / WINDOWS)),
        )
        windows = sorted([*windows, samples], key=uninterrupted_ms)
    reason = _busy(windows)
    if reason and not quiet:
        say(reason)
    return replace(LatencyStat.of(windows[0]), median_ms=round(uninterrupted_ms(windows[0]), 5))


def uninterrupted_ms(samples: np.ndarray) -> float:
    """The median of the samples, in ms, without those of interrupted inferences."""
    return float(np.median(samples[samples <= INTERRUPTED * samples.min()]))


def _busy(windows: Sequence[np.ndarray]) -> str | None:
    """A line where the fastest windows disagree, or many inferences were interrupted; else None."""
    samples = np.concatenate(windows)
    interrupted = float(np.mean(samples > INTERRUPTED * samples.min()))
    apart = _apart(windows)
    if interrupted <= MANY and apart <= AGREE:
        return None
    return (
        f"the machine is busy: {interrupted:.0%} of a network's inferences took over {INTERRUPTED:g} times "
        f"the fastest, and the two fastest of {len(windows)} windows differ by {apart:.1%}; {QUIETER}"
    )


def _apart(windows: Sequence[np.ndarray]) -> float:
    """The relative difference between the first two windows, which are the fastest."""
    return uninterrupted_ms(windows[1]) / max(uninterrupted_ms(windows[0]), 1e-9) - 1
