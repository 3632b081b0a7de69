"""Whole networks on the device: the latency that counts.

In: an ONNX file and a hardware profile. Out: its statistics in milliseconds.
"""

from bcnet.hw_profiles import HwProfile
from bcnet.latency_tables.table import LatencyStat, Setting
from bcnet.runtimes import runtime_named

WINDOWS = 3


def setting_of(profile: HwProfile) -> Setting:
    """The setting that rows measured with this profile are kept under."""
    return Setting(*profile.setting)


def measure_network(model: bytes, profile: HwProfile, share: float = 1.0) -> LatencyStat:
    """Time a network in three windows and keep the fastest one: other work on a machine only adds time.

    `share` shortens the profile's duration, for networks that are measured by the dozen.
    """
    runtime = runtime_named(profile.runtime)
    windows = [
        LatencyStat.of(
            runtime.time_network(
                model,
                profile.threads,
                profile.warmup_ms * share,
                profile.seconds * share / WINDOWS,
                max(2, round(profile.iterations * share / WINDOWS)),
            )
        )
        for _ in range(WINDOWS)
    ]
    return min(windows, key=lambda window: window.median_ms)
