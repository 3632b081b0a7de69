"""Whole networks on the device: the latency that counts.

In: an ONNX file and a hardware profile. Out: its statistics in milliseconds.
"""

from bcnet.hw_profiles import HwProfile
from bcnet.latency_tables.table import LatencyStat, Setting
from bcnet.runtimes import runtime_named

WINDOWS = 3
AGREE = 1.025  # how far the two fastest windows may be apart


def setting_of(profile: HwProfile) -> Setting:
    """The setting that rows measured with this profile are kept under."""
    return Setting(*profile.setting)


def measure_network(model: bytes, profile: HwProfile, share: float = 1.0) -> LatencyStat:
    """Time a network in three windows and keep the fastest one: other work on a machine only adds time.

    Up to as many windows again are added while no second one confirms the fastest. `share` shortens the
    profile's duration, for networks that are measured by the dozen.
    """
    runtime = runtime_named(profile.runtime)
    windows: list[LatencyStat] = []
    while len(windows) < 2 * WINDOWS:
        samples = runtime.time_network(
            model,
            profile.threads,
            profile.warmup_ms * share,
            profile.seconds * share / WINDOWS,
            max(2, round(profile.iterations * share / WINDOWS)),
            profile.provider,
        )
        windows = sorted([*windows, LatencyStat.of(samples)], key=lambda window: window.median_ms)
        if len(windows) >= WINDOWS and windows[1].median_ms <= AGREE * windows[0].median_ms:
            break
    return windows[0]
