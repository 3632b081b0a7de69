"""The latency model: a latency table bound to a space, evaluated by array indexing.

In: the network's layers as functions of its widths, and a table. Out: the latency in ms of one network, or of
thousands at once.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from bcnet.errors import TableError
from bcnet.latency_tables.failed import runs
from bcnet.latency_tables.rows import Calibration, LayerSpec, Setting
from bcnet.latency_tables.sums import Sums, Values
from bcnet.latency_tables.table import LatencyTable

# A channel count is a sum of terms: (group, entries per channel of its width), or (None, fixed entries).
Terms = tuple[tuple[int | None, int], ...]
ENUMERABLE = 4096  # maximum number of a layer's combinations of widths that are tabulated


@dataclass(frozen=True)
class LayerSlot:
    """A fused layer of a network, with its channel counts as functions of the widths.

    `template` has the full channel counts; `nodes` are the names of its ONNX nodes. `group_size` is set for
    convolutions that are narrowed by whole groups: the input channels per group (1: depthwise).
    """

    name: str
    template: LayerSpec
    in_terms: Terms
    out_terms: Terms
    group_size: int | None
    nodes: tuple[str, ...]

    @property
    def groups(self) -> tuple[int, ...]:
        """The groups that its latency depends on, ascending."""
        return tuple(sorted({g for g, _ in self.in_terms + self.out_terms if g is not None}))

    @property
    def sampled(self) -> bool:
        """Whether only some of its channel counts are measured: those of a concatenation, or its consumer.

        Its input or output channels come from several groups; its row is keyed by their sum.
        """
        return any(
            len({g for g, _ in terms if g is not None}) > 1 for terms in (self.in_terms, self.out_terms)
        )

    def channels(self, widths: Sequence[Any]) -> tuple[Any, Any]:
        """Input and output channels at these widths; widths may be arrays (N,), one entry per network."""
        return _count(self.in_terms, widths), _count(self.out_terms, widths)

    def of(self, in_channels: int, out_channels: int) -> LayerSpec:
        """The layer with these channel counts."""
        return replace(
            self.template,
            in_channels=in_channels,
            out_channels=out_channels,
            groups=in_channels // self.group_size if self.group_size else self.template.groups,
        )

    def at(self, widths: Sequence[int]) -> LayerSpec:
        """The layer at these widths."""
        return self.of(*self.channels(widths))


def _count(terms: Terms, widths: Sequence[Any]) -> Any:
    return sum(size if group is None else size * widths[group] for group, size in terms)


def specs_of(slot: LayerSlot, choices: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], LayerSpec] | None:
    """The layer at every combination of its groups' choices {indices: layer}; None if there are too many."""
    groups = slot.groups
    sizes = [len(choices[group]) for group in groups]
    if int(np.prod(sizes)) > ENUMERABLE:
        return None
    specs = {}
    widths = [own[-1] for own in choices]
    for index in itertools.product(*map(range, sizes)):
        for group, i in zip(groups, index, strict=True):
            widths[group] = choices[group][i]
        specs[index] = slot.at(widths)
    return specs


class LatencyModel:
    """Widths -> milliseconds: calibrated sums of layers, with the calibration's measured error.

    Layers of which only some channel counts were measured (see `LayerSlot.sampled`) are interpolated from
    these; for all others a missing row is an error. Networks with a layer that the runtime could not run
    have no latency: see `failed.py`.
    """

    def __init__(
        self,
        table: LatencyTable,
        setting: Setting,
        slots: Sequence[LayerSlot],
        choices: Sequence[tuple[int, ...]],
        calibration: Calibration | None,
    ) -> None:
        """Raises TableError if the table has no row for a layer of the space."""
        self.table = table
        self.setting = setting
        self.slots = tuple(slots)
        self.choices = tuple(choices)
        self.calibration = calibration
        self._rows = table.look_up(setting)
        self._known: dict[LayerSpec, float] = {}
        self._others: list[LayerSlot] = []  # layers with too many combinations of widths to tabulate
        self._others_known: dict[tuple[int, int, int], Values] = {}
        self._specs: list[tuple[tuple[int, ...], dict[tuple[int, ...], LayerSpec]]] = []
        summed: dict[tuple[int, ...], np.ndarray] = {}
        for slot in self.slots:
            specs = specs_of(slot, self.choices)
            if specs is None:
                self._others.append(slot)
                continue
            self._specs.append((slot.groups, specs))
            array = np.zeros([len(self.choices[group]) for group in slot.groups])
            for index, spec in specs.items():
                array[index] = self._layer_ms(slot, spec)
            summed[slot.groups] = summed[slot.groups] + array if slot.groups in summed else array
        self._arrays = list(summed.items())

    def _layer_ms(self, slot: LayerSlot, spec: LayerSpec) -> float:
        if spec not in self._known:
            look_up = self._rows.estimate_ms if slot.sampled else self._rows.latency_ms
            self._known[spec] = look_up(spec)
        return self._known[spec]

    def each_layer_ms(self, widths: Sequence[int]) -> tuple[float, ...]:
        """The latency in ms of each layer of one network, in the order of `slots`, before calibration."""
        return tuple(self._layer_ms(slot, slot.at(widths)) for slot in self.slots)

    def indices(self, networks: Sequence[Sequence[int]] | np.ndarray) -> np.ndarray:
        """Choice indices (N, groups) of networks whose widths are all among the choices.

        Raises ValueError for a width that is not among them.
        """
        widths = np.array(networks, dtype=np.int64).reshape(len(networks), len(self.choices))
        found = np.empty_like(widths)
        for group, (own, column) in enumerate(zip(self._widths, widths.T, strict=True)):
            found[:, group] = np.searchsorted(own, column).clip(max=len(own) - 1)
            if (own[found[:, group]] != column).any():
                raise ValueError(f"a width of group {group} is not among its choices {own.tolist()}")
        return found

    @cached_property
    def _widths(self) -> list[np.ndarray]:
        return [np.array(own, dtype=np.int64) for own in self.choices]

    @cached_property
    def _sums(self) -> Sums:
        """Sums of the layers' ms and of both values of `LookUp.weights_mb`, without `_others`."""
        terms = []
        for groups, array in self._arrays:
            three = np.zeros((*array.shape, 3))
            three[..., 0] = array
            terms.append((groups, three))
        by_groups = dict(terms)
        for groups, specs in self._specs:
            for index, spec in specs.items():
                by_groups[groups][index][1:] += self._rows.weights_mb(spec)
        return Sums(terms, self.choices)

    def _totals(self, indices: np.ndarray, values: int) -> np.ndarray:
        """The first `values` of three sums (values, N): layers' ms, both values of `LookUp.weights_mb`."""
        totals = self._sums.many(indices, values)
        if not self._others:
            return totals
        widths = [own[column] for own, column in zip(self._widths, indices.T, strict=True)]
        for number, slot in enumerate(self._others):
            # Few channel counts are distinct: each is looked up once.
            channels = np.stack(np.broadcast_arrays(*slot.channels(widths)))
            distinct, where = np.unique(channels, axis=1, return_inverse=True)
            found = [self._other(number, slot, *pair) for pair in distinct.T.tolist()]
            totals += np.array(found)[where, :values].T
        return totals

    def _other(self, number: int, slot: LayerSlot, in_channels: int, out_channels: int) -> Values:
        key = number, in_channels, out_channels
        if key not in self._others_known:
            spec = slot.of(in_channels, out_channels)
            self._others_known[key] = (self._layer_ms(slot, spec), *self._rows.weights_mb(spec))
        return self._others_known[key]

    def layers_ms(self, indices: np.ndarray) -> np.ndarray:
        """Uncalibrated sums of layers in ms (N,), for choice indices (N, groups)."""
        return np.asarray(self._totals(indices, 1)[0])

    @cached_property
    def cache_mb(self) -> float:
        """The last-level cache of the machine that measured the rows, in megabytes; 0: not known."""
        return self._rows.cache_mb

    def evicted_mb(self, indices: np.ndarray) -> np.ndarray:
        """Megabytes of weights (N,) that come from memory, minus those that did when the rows were measured.

        If a network's weights fill a fraction of the last-level cache, this fraction of them is assumed to
        come from memory; a network as large as the cache, or larger, loads all of its weights from memory.
        """
        return np.asarray(self._evicted(*self._totals(indices, 3)[1:]))

    def _evicted(self, weights: Any, measured: Any) -> Any:
        """`evicted_mb` from megabytes of all weights, and of those from memory when rows were measured."""
        if not self.cache_mb:
            return 0.0 * weights
        return weights * np.minimum(weights / self.cache_mb, 1.0) - measured

    def price_many(self, indices: np.ndarray) -> np.ndarray:
        """Latencies in ms (N,) for choice indices (N, groups), millions of networks per second.

        Raises IndexError for an index that is out of range.
        """
        with_memory = self.calibration is not None and self.calibration.memory_ms_per_mb
        layers, *weights = self._totals(indices, 3 if with_memory else 1)
        return self._calibrated(layers, self._evicted(*weights) if with_memory else 0.0)

    def __call__(self, widths: Sequence[int]) -> float:
        """The latency in ms of one network, within microseconds; widths between choices are interpolated."""
        if len(widths) != len(self.choices):
            raise ValueError(f"{len(widths)} widths given, the network has {len(self.choices)} groups")
        sums = self._sums.one(widths)
        if sums is not None:
            layers, weights, measured = sums
            for number, slot in enumerate(self._others):
                more = self._other(number, slot, *slot.channels(widths))
                layers, weights, measured = layers + more[0], weights + more[1], measured + more[2]
        else:
            specs = [(slot, slot.at(widths)) for slot in self.slots]
            layers = sum(self._layer_ms(slot, spec) for slot, spec in specs)
            weights, measured = np.sum([self._rows.weights_mb(spec) for _, spec in specs], axis=0)
        return float(self._calibrated(layers, self._evicted(weights, measured)))

    def _calibrated(self, layers_ms: Any, evicted_mb: Any) -> np.ndarray:
        if self.calibration is None:
            raise TableError("this latency model is not calibrated; run `bcnet build-lut`")
        return self.calibration.whole_ms(layers_ms, evicted_mb)

    def pairwise(self) -> tuple[float, list[tuple[tuple[int, ...], np.ndarray]]]:
        """Latencies as a sum of an offset and arrays: (ms, [(groups, ms by their choice indices)]).

        The memory term is omitted: it depends on the weights of the whole network. Layers that the runtime
        could not run cost a thousand times the slowest one.
        """
        fit = self.calibration
        offset, scale = (fit.offset_ms, fit.scale) if fit else (0.0, 1.0)
        slowest = max((array[runs(array)].max(initial=0.0) for _, array in self._arrays), default=0.0)
        return offset, [
            (groups, np.where(runs(array), array, 1000 * slowest) * scale) for groups, array in self._arrays
        ]

    @property
    def noise(self) -> float:
        """The relative difference between measurements of one network in the calibration; 0 if not known."""
        return (self.calibration.noise if self.calibration else None) or 0.0

    @property
    def estimate(self) -> bool:
        """Whether rows that it uses were calculated for a device that was not available."""
        return self.table.is_estimate(self.used, self.setting)

    @property
    def current(self) -> bool:
        """Whether it is calibrated, and the calibration matches the rows that it uses now."""
        fit = self.calibration
        if fit is None or fit.rows != self.rows_digest:
            return False
        return not fit.memory_ms_per_mb or fit.cache_mb == self.cache_mb

    @cached_property
    def rows_digest(self) -> str:
        """The hash of the rows that it uses."""
        return self.table.digest_of(self.used, self.setting)

    @cached_property
    def used(self) -> set[LayerSpec]:
        """The layers of all rows that the model may look up."""
        found = set()
        for slot in self.slots:
            if slot.sampled:
                found |= self._rows.family(slot.template)
            else:
                found |= set((specs_of(slot, self.choices) or {}).values())
        return found
