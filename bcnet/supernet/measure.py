"""Whole networks on the device: the latency that counts.

In: an ONNX file and a hardware profile. Out: its statistics in milliseconds.
"""

import os
import platform
from functools import cache

from bcnet.errors import DeviceError
from bcnet.hw_profiles import HwProfile
from bcnet.latency_tables.rows import LatencyStat, Setting
from bcnet.runtimes import Runtime, Settings, runtime_here, runtime_on_hosts, runtime_recorded

WINDOWS = 3
AGREE = 1.025  # how far the two fastest windows may be apart


def setting_of(profile: HwProfile) -> Setting:
    """The setting that rows measured with this profile are kept under."""
    return Setting(*profile.setting)


def why_not_here(profile: HwProfile) -> str | None:
    """Why this machine cannot be the profile's device; None where nothing speaks against it."""
    if profile.recording:
        return None  # its answers are: see `replayed`
    if profile.host:
        return None
    if profile.machine not in (None, platform.machine()):
        return f"device '{profile.name}' is {profile.machine}, this machine {platform.machine()}"
    try:
        _answers(_runtime_here(profile))
    except DeviceError as reason:
        return f"device '{profile.name}' is not at hand: {reason}"
    return None


def runtime_of(profile: HwProfile) -> Runtime:
    """The runtime that executes networks on the profile's device, over ssh where it has a host.

    Where the profile names a recording, that answers. Raises DeviceError where the device is not here or
    cannot be reached.
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
        over = "" if profile.runtime == "torch" else ", or over ssh (--host user@name)"
        raise DeviceError(
            f"{reason}; measure on the device itself{over}, or calculate a table: "
            f"`bcnet build-lut --device {profile.name} --estimate`"
        )
    return _runtime_here(profile)


def _runtime_here(profile: HwProfile) -> Runtime:
    record_to = _absolute(profile.record_to)
    return runtime_here(profile.runtime, record_to=record_to, **_settings(profile))


@cache
def _answers(runtime: Runtime) -> None:
    """Raises DeviceError where the runtime is not here. Once it was, it is not asked before each network:

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
    """Runtimes are kept for the process, and the working folder may change."""
    return os.path.abspath(path) if path else None


def replayed(profile: HwProfile) -> str | None:
    """Why no latency is measured now, though the device answers: a recording does; None where none does."""
    if not profile.recording:
        return None
    return f"latencies are replayed from the recording {profile.recording}, not measured now"


def builder_of(profile: HwProfile) -> Runtime:
    """The runtime that builds engines for the device: as `runtime_of`, but for TensorRT for RTX also this
    machine, whatever its GPU.
    """
    ahead_of_time = profile.runtime == "tensorrt-rtx" and not profile.host
    return _runtime_here(profile) if ahead_of_time else runtime_of(profile)


def measure_network(model: bytes, profile: HwProfile, share: float = 1.0) -> LatencyStat:
    """Time a network in three windows and keep the fastest one: other work on a machine only adds time.

    Up to as many windows again are added while no second one confirms the fastest. `share` shortens the
    profile's duration, for networks that are measured by the dozen.
    """
    runtime = runtime_of(profile)
    windows: list[LatencyStat] = []
    while len(windows) < 2 * WINDOWS:
        samples = runtime.time_network(
            model,
            profile.warmup_ms * share,
            profile.seconds * share / WINDOWS,
            max(2, round(profile.iterations * share / WINDOWS)),
        )
        windows = sorted([*windows, LatencyStat.of(samples)], key=lambda window: window.median_ms)
        if len(windows) >= WINDOWS and windows[1].median_ms <= AGREE * windows[0].median_ms:
            break
    return windows[0]
