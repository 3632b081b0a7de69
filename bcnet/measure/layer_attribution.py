"""Latencies of layers within a network. In: the runtime's profile of the network. Out: ms of each layer."""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bcnet.errors import DeviceError
from bcnet.hw_profiles import HwProfile
from bcnet.latency_tables.model import LayerSlot
from bcnet.latency_tables.roofline import operations
from bcnet.latency_tables.rows import LatencyStat
from bcnet.measure.network_latency import runtime_of
from bcnet.measure.tensorrt_rows import RowReader, Shares
from bcnet.onnx_export.onnx_supernet import OnnxSupernet
from bcnet.plain import shown
from bcnet.space.width_space import Widths

TINY = 1e-9  # ms
LEAST_NAMED = 0.5  # minimum fraction of a profile's time in rows that can be attributed to layers


def layers_ms(graph: OnnxSupernet, widths: Widths, model: bytes, profile: HwProfile, runs: int) -> np.ndarray:
    """Milliseconds (layers, runs) of `model`, the variant of `graph` with these widths.

    A single run if the runtime reports only medians. See `attribute` and `attribute_fused`. Raises
    DeviceError.
    """
    rows = runtime_of(profile).profile_nodes(model, runs)
    times = np.array([durations for _, durations in rows])
    if not np.isfinite(times).all() or not times.sum() > 0:
        raise DeviceError(
            f"{profile.runtime}'s profile of a network has no times, or invalid ones, so no table can be "
            "measured from it"
        )
    if not profile.traits.fused_profile:
        return attribute(graph.slots, rows)
    work = [float(operations(slot.at(widths), profile.batch)) for slot in graph.slots]
    shares = RowReader(graph.slots, graph.readers, work).shares([name for name, _ in rows])
    return attribute_fused(len(graph.slots), rows, shares)


def attribute(slots: Sequence[LayerSlot], profile: list[tuple[str, np.ndarray]]) -> np.ndarray:
    """Milliseconds of each layer in each run (layers, runs), from a runtime's per-node profile.

    Runs are sorted by the total time of all layers, the fastest first. Names of fused nodes begin with the
    name of one of their parts. Nodes of no layer (a change of memory layout or precision) are attributed to
    the next layer, which needs them. Raises DeviceError if no name is that of a node of these layers.
    """
    owner = {node: index for index, slot in enumerate(slots) for node in slot.nodes}
    runs = len(profile[0][1])
    total = np.zeros((len(slots), runs))
    pending = np.zeros(runs)
    last = -1
    for name, durations in profile:
        index = owner.get(re.sub(r"(_nchwc|_token_\d+|/.*)$", "", name))
        pending = pending + durations
        if index is not None:
            total[index] += pending
            pending = np.zeros(runs)
            last = index
    if last < 0:
        raise DeviceError(
            f"the runtime's profile contains no node of this network, but {len(profile)} others, e.g. "
            f"{shown(profile[0][0])}, so no table can be measured from it"
        )
    total[last] += pending
    return _fastest_first(total)


def attribute_fused(
    layers: int, profile: list[tuple[str, np.ndarray]], shares: Sequence[Shares]
) -> np.ndarray:
    """The same for rows that are fused layers: `shares` says which layers a row has, and in what parts.

    Rows without a layer are ignored: they are in the calibration's constant offset. Raises DeviceError if
    they take most of the time.
    """
    total = np.zeros((layers, len(profile[0][1])))
    for (_, durations), parts in zip(profile, shares, strict=True):
        for layer, share in parts.items():
            total[layer] += share * durations
    # By the fastest runs: other work on the machine may interrupt a row of a microsecond for many.
    fastest = [float(durations.min()) for _, durations in profile]
    others = [(ms, name) for ms, (name, _), parts in zip(fastest, profile, shares, strict=True) if not parts]
    named = 1 - sum(ms for ms, _ in others) / max(sum(fastest), TINY)
    if named < LEAST_NAMED:
        raise DeviceError(
            f"only {named:.0%} of the time in the runtime's profile is in rows named "
            f"after this network's nodes, so no table can be measured from it; the longest other row is "
            f"'{max(others)[1][:80]}'"
        )
    return _fastest_first(total)


def _fastest_first(total: np.ndarray) -> np.ndarray:
    return total[:, np.argsort(total.sum(0), kind="stable")]


def undisturbed_ms(durations: np.ndarray) -> np.ndarray:
    """Means over the fastest quarter of a network's runs, of durations (..., runs) as sorted by `attribute`.

    Other work on the machine only adds time. A mean, not a minimum, because profiles are in whole
    microseconds.
    """
    return np.asarray(durations[..., : max(1, durations.shape[-1] // 4)].mean(-1))


def row_stat(observed: list[np.ndarray]) -> LatencyStat:
    """Pool a layer's runs, one array per profile. Its latency is the lower quartile of the profiles' means.

    A quartile, not the minimum, which would fall with the number of networks that contain a layer. Spread and
    90th percentile are those of all runs. Times below zero, after the profiler's overhead is subtracted,
    count as zero.
    """
    pooled = LatencyStat.of(np.maximum(np.concatenate(observed), 0.0))
    means = [max(float(undisturbed_ms(durations)), 0.0) for durations in observed]
    return replace(pooled, median_ms=round(float(np.percentile(means, 25)), 5))
