"""What each layer takes where it stands. In: the runtime's profile of a whole network. Out: milliseconds."""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bcnet.errors import DeviceError
from bcnet.hw_profiles import HwProfile
from bcnet.latency_tables.model import LayerSlot
from bcnet.latency_tables.roofline import operations
from bcnet.latency_tables.rows import LatencyStat
from bcnet.plain import shown
from bcnet.supernet.fused_rows import RowReader, Shares
from bcnet.supernet.measure import runtime_of
from bcnet.supernet.onnx_graph import OnnxSupernet
from bcnet.supernet.space import Widths

LEAST_NAMED = 0.5  # of a profile's time: with less, its rows are not this network's layers


def layers_ms(graph: OnnxSupernet, widths: Widths, model: bytes, profile: HwProfile, runs: int) -> np.ndarray:
    """Milliseconds (layers, runs) of `model`, the variant of `graph` with these widths.

    An array of one run where the runtime gives medians of all. See `charge` and `charge_fused`. Raises
    DeviceError.
    """
    rows = runtime_of(profile).profile_nodes(model, runs)
    times = np.array([durations for _, durations in rows])
    if not np.isfinite(times).all() or not times.sum() > 0:
        raise DeviceError(
            f"{profile.runtime}'s profile of a network holds no times, or what is none, so no table can be "
            "measured from it"
        )
    if not profile.runtime.startswith("tensorrt"):
        return charge(graph.slots, rows)
    work = [float(operations(slot.at(widths), profile.batch)) for slot in graph.slots]
    shares = RowReader(graph.slots, graph.readers, work).shares([name for name, _ in rows])
    return charge_fused(len(graph.slots), rows, shares)


def charge(slots: Sequence[LayerSlot], profile: list[tuple[str, np.ndarray]]) -> np.ndarray:
    """Milliseconds of each layer in each run (layers, runs), from a runtime's per-node profile.

    Runs are sorted by what all layers together took, the fastest first.
    Names of fused nodes begin with the name of one of their parts. What has no layer (a change of memory
    layout or of precision) is charged to the layer that runs next, which needs it. Raises DeviceError where
    no name is that of a node of these layers.
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
            f"the runtime's profile names none of this network's nodes, but {len(profile)} others, such as "
            f"{shown(profile[0][0])}, so no table can be measured from it"
        )
    total[last] += pending
    return _fastest_first(total)


def charge_fused(layers: int, profile: list[tuple[str, np.ndarray]], shares: Sequence[Shares]) -> np.ndarray:
    """The same from TensorRT's rows, of which `shares` tells whose they are.

    A row that is no layer's is left out: calibration finds it in whole networks, as their constant part.
    Raises DeviceError where that is most of the time.
    """
    total = np.zeros((layers, len(profile[0][1])))
    for (_, durations), parts in zip(profile, shares, strict=True):
        for layer, part in parts.items():
            total[layer] += part * durations
    everything = float(np.sum([durations for _, durations in profile]))
    if total.sum() < LEAST_NAMED * everything:
        others = [(ms.sum(), name) for (name, ms), parts in zip(profile, shares, strict=True) if not parts]
        raise DeviceError(
            f"only {total.sum() / everything:.0%} of the time in TensorRT's profile is in rows named after "
            f"this network's nodes, so no table can be measured from it; the longest other row is "
            f"'{max(others)[1][:80]}'"
        )
    return _fastest_first(total)


def _fastest_first(total: np.ndarray) -> np.ndarray:
    return total[:, np.argsort(total.sum(0), kind="stable")]


def undisturbed_ms(durations: np.ndarray) -> np.ndarray:
    """Means over the fastest quarter of a network's runs, of durations (..., runs) as `charge` sorts them.

    Other work on the machine only adds time. A mean, not a minimum: profiles count whole microseconds.
    """
    return np.asarray(durations[..., : max(1, durations.shape[-1] // 4)].mean(-1))


def row_stat(observed: list[np.ndarray]) -> LatencyStat:
    """Pool a layer's runs, an array a profile. Its latency is the lower quartile of the profiles' means.

    A quartile, not the minimum, which would be the lower the more networks show a layer. Spread and 90th
    percentile are those of all runs. Less than nothing, after the profiler's own time is taken off, is none.
    """
    pooled = LatencyStat.of(np.maximum(np.concatenate(observed), 0.0))
    means = [max(float(undisturbed_ms(durations)), 0.0) for durations in observed]
    return replace(pooled, median_ms=round(float(np.percentile(means, 25)), 5))
