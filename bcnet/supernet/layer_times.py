"""What each layer takes where it stands. In: the runtime's profile of a whole network. Out: milliseconds."""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bcnet.hw_profiles import HwProfile
from bcnet.latency_tables.model import LayerSlot
from bcnet.latency_tables.rows import LatencyStat
from bcnet.supernet.measure import runtime_of
from bcnet.supernet.onnx_graph import OnnxSupernet


def layers_ms(graph: OnnxSupernet, model: bytes, profile: HwProfile, runs: int) -> np.ndarray:
    """Milliseconds (layers, runs) of `model`, a variant of `graph`: see `charge`. Raises DeviceError."""
    nodes = runtime_of(profile).profile_nodes(model, runs)
    return charge(graph.slots, nodes)


def charge(slots: Sequence[LayerSlot], profile: list[tuple[str, np.ndarray]]) -> np.ndarray:
    """Milliseconds of each layer in each run (layers, runs), from a runtime's per-node profile.

    Runs are sorted by what all layers together took, the fastest first.
    Names of fused nodes begin with the name of one of their parts. What has no layer (a change of memory
    layout or of precision) is charged to the layer that runs next, which asked for it.
    """
    owner = {node: index for index, slot in enumerate(slots) for node in slot.nodes}
    runs = len(profile[0][1])
    total = np.zeros((len(slots), runs))
    pending = np.zeros(runs)
    last = 0
    for name, durations in profile:
        index = owner.get(re.sub(r"(_nchwc|_token_\d+|/.*)$", "", name))
        pending = pending + durations
        if index is not None:
            total[index] += pending
            pending = np.zeros(runs)
            last = index
    total[last] += pending
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
