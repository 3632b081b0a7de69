"""What latencies a network can have on a device. In: its space, the device's table. Out: `ExpectedLatency`.

Where the device has no table for the network, the table is calculated from its roofline, and that is stated.
"""

from collections.abc import Mapping
from math import inf

from bcnet.allocation.limits import Limits
from bcnet.errors import BcnetError, TableError
from bcnet.latency_tables.failed import runs
from bcnet.latency_tables.model import LatencyModel
from bcnet.latency_tables.table import LatencyTable
from bcnet.measure.network_latency import setting_of
from bcnet.pipeline.device_table import DeviceTable, model_key
from bcnet.pipeline.estimate_lut import estimate_lut, fitted_roofline
from bcnet.pipeline.results import Values
from bcnet.space.width_space import Widths


class ExpectedLatency(Values):
    """Predicted latencies of a network on a device, in ms; None where nothing can be predicted.

    `saved_ms` has for each group what its narrowest choice saves while all others are as in the original;
    None for one that the runtime cannot run. `source` says where the predictions come from, or why there are
    none; `estimate` whether nothing was measured. Budgets from `fastest_ms` to `full_ms` can be met.
    """

    device: str
    source: str
    estimate: bool
    full_ms: float | None = None
    fastest_ms: float | None = None
    saved_ms: Mapping[str, float | None] = {}


def expected_latency(table: DeviceTable) -> ExpectedLatency:
    """The latencies by the device's table, or by an estimated one where it has none for this network."""
    device = table.profile.name
    try:
        latency = table.latency_model()
        source = str(table.path)
    except TableError as reason:
        build = f"run `bcnet build-lut --device {device}`"
        missing = str(reason) if table.path.exists() else f"there is no {table.path}; {build}"
        try:
            latency = _estimated(table)
        except BcnetError as cause:
            return ExpectedLatency(device=device, source=f"{missing}; no estimate: {cause}", estimate=False)
        source = f"from the roofline of '{device}', since {missing}"
    space = table.graph().space
    original = space.original()
    full_ms = float(latency(original))

    def saved(number: int) -> float | None:
        narrowest = Widths((*original[:number], space.groups[number].choices[0], *original[number + 1 :]))
        own = float(latency(narrowest))
        return full_ms - own if runs(own) and runs(full_ms) else None

    fastest_ms = float(latency(Limits(space, latency, inf).fastest()))
    return ExpectedLatency(
        device=device,
        source=source,
        estimate=latency.estimate,
        full_ms=full_ms if runs(full_ms) else None,
        fastest_ms=fastest_ms if runs(fastest_ms) else None,
        saved_ms={group.name: saved(number) for number, group in enumerate(space.groups)},
    )


def _estimated(table: DeviceTable) -> LatencyModel:
    """The model of a table that is calculated now, and not written."""
    graph, own = table.graph(), LatencyTable(table.profile.name)
    estimate_lut(graph, table.profile, own, fitted_roofline())
    setting, choices = setting_of(table.profile), tuple(group.choices for group in graph.space.groups)
    calibration = own.calibrations[model_key(graph.slots, choices), setting]
    return LatencyModel(own, setting, graph.slots, choices, calibration)
