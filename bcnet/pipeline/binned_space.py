"""Widths at equal steps of multiply-accumulates or of latency. In: a configuration, a network. Out: a space.

Latencies are predicted by the device's table, between whose rows layers are interpolated. The choices are
saved beside the table (`latency_tables/DEVICE.choices.jsonl`), so that rows measured later do not change
them; otherwise a supernet would be trained again whenever the table grows.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from bcnet.config import SpaceConfig
from bcnet.errors import ArtifactError, ConfigError, TableError
from bcnet.hw_profiles import HwProfile
from bcnet.latency_tables.failed import runs
from bcnet.latency_tables.table import LatencyTable
from bcnet.locks import locked
from bcnet.measure.network_latency import setting_of
from bcnet.onnx_export.int8 import unsigned_activations
from bcnet.onnx_export.onnx_supernet import OnnxSupernet
from bcnet.pipeline.device_table import TABLES
from bcnet.progress import say, working
from bcnet.runs import digest
from bcnet.sealed import SealedLines
from bcnet.space.bins import FINEST, Costs, alone, binned, macs_costs
from bcnet.space.width_space import Widths, WidthSpace

Discover = Callable[[int], WidthSpace]  # the space with this number of bins per group


def space_by_bins(
    config: SpaceConfig,
    discover: Discover,
    profile: HwProfile,
    model: nn.Module,
    example_of: Callable[[int], Any],
) -> WidthSpace:
    """The space of a network with the configured bins; `example_of(n)` gives inputs of `n` items."""
    if config.bins_by == "channels":
        return discover(config.bins)
    finest = discover(FINEST)
    if config.bins_by == "macs":
        return binned(finest, macs_costs(finest), config.bins)
    example = example_of(profile.batch)
    return _kept(finest, config.bins, profile, lambda: _latency_costs(finest, profile, model, example))


def _kept(space: WidthSpace, bins: int, profile: HwProfile, costs: Callable[[], Costs]) -> WidthSpace:
    """The space with the choices saved for it, else with those that follow from its costs (then saved)."""
    path, table = (TABLES / f"{profile.name}.{ending}" for ending in ("choices.jsonl", "json"))
    if not (path.exists() or table.exists()):
        raise ConfigError(f'space.bins_by = "latency" needs {table}: measure it first with {_first(profile)}')
    key = digest([space.to_json(), bins, profile.setting])
    with locked(path, wait=True):
        try:
            lines = SealedLines(path, {"device": profile.name})
        except ValueError as cause:
            raise ArtifactError(
                f"{path} cannot be read ({cause}); run `rm {path}` to choose widths again"
            ) from None
        if lines.dropped:
            say(f"{path}: {lines.dropped}; widths are chosen again")
        known = dict(lines.values)
        if key not in known:
            found = binned(space, costs(), bins)
            lines.append([key, [group.choices for group in found.groups]])
            return found
    return space.with_choices([tuple(own) for own in known[key]])


def _latency_costs(space: WidthSpace, profile: HwProfile, model: nn.Module, example: Any) -> Costs:
    """Latencies in ms with only one group narrowed. Raises ConfigError if the table does not cover them."""
    path, setting = TABLES / f"{profile.name}.json", setting_of(profile)
    rows = LatencyTable.load(path).look_up(setting)
    with working("choosing widths at equal steps of latency"):
        unsigned = unsigned_activations(profile)
        graph = OnnxSupernet(model, space, example, profile.precision, unsigned=unsigned, opset=profile.opset)

        def ms(widths: Widths) -> float:
            found = sum(rows.estimate_ms(slot.at(widths)) for slot in graph.slots)
            if not runs(found):
                raise ConfigError(
                    f'space.bins_by = "latency": the runtime cannot run a layer of {widths}; use "macs"'
                )
            return found

        try:
            return [
                np.array([ms(widths) for widths in alone(space, number)])
                for number in range(len(space.groups))
            ]
        except TableError:
            raise ConfigError(
                f'space.bins_by = "latency": {path} lacks layers of this network at {setting}: measure it '
                f"first with {_first(profile)}"
            ) from None


def _first(profile: HwProfile) -> str:
    return f"`bcnet build-lut --device {profile.name} --set space.bins_by=channels`"
