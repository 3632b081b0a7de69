"""A latency table bound to a space: widths in, milliseconds out, by array indexing.

In: the network's layers as functions of its widths, and a table. Out: prices of single widths and of
thousands at once.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from bcnet.errors import TableError
from bcnet.latency_tables.rows import FAILED_MS, Calibration, LayerSpec, Setting
from bcnet.latency_tables.table import LatencyTable

# (group or None, entries a channel or fixed entries): a sum of such terms is a channel count.
Terms = tuple[tuple[int | None, int], ...]
ENUMERABLE = 4096


@dataclass(frozen=True)
class LayerSlot:
    """A fused layer of a network, its channels as functions of the widths.

    `template` has the full channel counts; `nodes` are the names of its ONNX nodes. `group_size` is set for
    convolutions that are narrowed by whole groups: the input channels of one (1: depthwise).
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
        """Whether only some of its widths are measured: it is a concatenation, or stands behind one.

        Several groups make up its channels on one side; its row is keyed by their sum.
        """
        return any(
            len({g for g, _ in terms if g is not None}) > 1 for terms in (self.in_terms, self.out_terms)
        )

    def at(self, widths: Sequence[int]) -> LayerSpec:
        """The layer at these widths."""
        in_channels = _count(self.in_terms, widths)
        return replace(
            self.template,
            in_channels=in_channels,
            out_channels=_count(self.out_terms, widths),
            groups=in_channels // self.group_size if self.group_size else self.template.groups,
        )


def _count(terms: Terms, widths: Sequence[int]) -> int:
    return sum(size if group is None else size * widths[group] for group, size in terms)


def specs_of(slot: LayerSlot, choices: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], LayerSpec] | None:
    """The layer at every combination of its groups' choices {indices: layer}; None where that is too many."""
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

    Layers that were not measured at all their widths (see `LayerSlot.sampled`) are estimated from those that
    were; for all others a missing row is an error. Networks with a layer that the runtime could not run cost
    `FAILED_MS` or more.
    """

    def __init__(
        self,
        table: LatencyTable,
        setting: Setting,
        slots: Sequence[LayerSlot],
        choices: Sequence[tuple[int, ...]],
        calibration: Calibration | None,
    ) -> None:
        """Raises TableError where the table lacks a layer of the space."""
        self.table = table
        self.setting = setting
        self.slots = tuple(slots)
        self.choices = tuple(choices)
        self.calibration = calibration
        self._rows = table.look_up(setting)
        self._known: dict[LayerSpec, float] = {}
        self._others: list[LayerSlot] = []
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
            # Layers that follow the same groups share one array: fewer look-ups a candidate.
            summed[slot.groups] = summed[slot.groups] + array if slot.groups in summed else array
        self._arrays = list(summed.items())

    def _layer_ms(self, slot: LayerSlot, spec: LayerSpec) -> float:
        if spec not in self._known:
            look_up = self._rows.estimate_ms if slot.sampled else self._rows.latency_ms
            self._known[spec] = look_up(spec)
        return self._known[spec]

    def indices(self, networks: Sequence[Sequence[int]]) -> np.ndarray:
        """Choice indices (N, groups) of networks whose widths are all among the choices."""
        return np.array(
            [[own.index(width) for own, width in zip(self.choices, w, strict=True)] for w in networks]
        )

    def layers_ms(self, indices: np.ndarray) -> np.ndarray:
        """Sums of layers in ms, not calibrated, for choice indices (N, groups)."""
        total = np.zeros(len(indices))
        for groups, array in self._arrays:
            total += array[tuple(indices[:, group] for group in groups)]
        for slot in self._others:
            for row, index in enumerate(indices):
                widths = [own[i] for own, i in zip(self.choices, index, strict=True)]
                total[row] += self._layer_ms(slot, slot.at(widths))
        return total

    @cached_property
    def cache_mb(self) -> float:
        """The last-level cache of the machine that measured the rows, in megabytes; 0: not known."""
        return self._rows.cache_mb

    def evicted_mb(self, indices: np.ndarray) -> np.ndarray:
        """Megabytes of weights (N,) that come from memory, less those that did when the rows were measured.

        Of a network whose weights fill a share of the last-level cache, that share comes from memory: the
        part that stays cached falls evenly, until a network as large as the cache finds nothing in it.
        """
        total = np.zeros((len(indices), 2))
        for groups, array in self._weights:
            total += array[tuple(indices[:, group] for group in groups)]
        for slot in self._others:
            for row, index in enumerate(indices):
                widths = [own[i] for own, i in zip(self.choices, index, strict=True)]
                total[row] += self._rows.weights_mb(slot.at(widths))
        return self._evicted(total)

    def _evicted(self, total: np.ndarray) -> np.ndarray:
        """From megabytes of weights (..., 2): all, and those from memory when rows were measured."""
        if not self.cache_mb:
            return np.zeros(total.shape[:-1])
        weights, measured = total[..., 0], total[..., 1]
        return np.asarray(weights * np.minimum(weights / self.cache_mb, 1.0) - measured)

    @cached_property
    def _weights(self) -> list[tuple[tuple[int, ...], np.ndarray]]:
        """As `_arrays`, of what `LookUp.weights_mb` tells (..., 2)."""
        summed: dict[tuple[int, ...], np.ndarray] = {}
        for groups, specs in self._specs:
            array = np.zeros([len(self.choices[group]) for group in groups] + [2])
            for index, spec in specs.items():
                array[index] = self._rows.weights_mb(spec)
            summed[groups] = summed[groups] + array if groups in summed else array
        return list(summed.items())

    def price_many(self, indices: np.ndarray) -> np.ndarray:
        """Latencies in ms for choice indices (N, groups)."""
        spills = self.calibration is not None and self.calibration.memory_ms_per_mb
        return self._calibrated(self.layers_ms(indices), self.evicted_mb(indices) if spills else 0.0)

    def __call__(self, widths: Sequence[int]) -> float:
        """The latency in ms of one network; widths between the choices are interpolated."""
        if all(width in own for width, own in zip(widths, self.choices, strict=True)):
            return float(self.price_many(self.indices([widths]))[0])
        specs = [(slot, slot.at(widths)) for slot in self.slots]
        layers = sum(self._layer_ms(slot, spec) for slot, spec in specs)
        weights = np.sum([self._rows.weights_mb(spec) for _, spec in specs], axis=0)
        return float(self._calibrated(np.array(layers), self._evicted(weights)))

    def _calibrated(self, layers_ms: np.ndarray, evicted_mb: np.ndarray | float) -> np.ndarray:
        if self.calibration is None:
            raise TableError("this latency model is not calibrated; run `bcnet build-lut`")
        return self.calibration.whole_ms(layers_ms, evicted_mb)

    def pairwise(self) -> tuple[float, list[tuple[tuple[int, ...], np.ndarray]]]:
        """Prices as an offset and arrays that add up, without what depends on the whole network's weights.

        (ms, [(groups, ms by their choice indices)]). Layers that the runtime could not run cost a thousand
        times the dearest one.
        """
        fit = self.calibration
        offset, scale = (fit.offset_ms, fit.scale) if fit else (0.0, 1.0)
        dearest = max((array[array < FAILED_MS].max(initial=0.0) for _, array in self._arrays), default=0.0)
        return offset, [
            (groups, np.where(array < FAILED_MS, array, 1000 * dearest) * scale)
            for groups, array in self._arrays
        ]

    @property
    def estimate(self) -> bool:
        """Whether its rows were calculated for a device that was not at hand."""
        return self.table.is_estimate(self.used, self.setting)

    @property
    def current(self) -> bool:
        """Whether it is calibrated, and for the rows that it uses as they are now."""
        fit = self.calibration
        if fit is None or fit.rows != self.rows_digest:
            return False
        return not fit.memory_ms_per_mb or fit.cache_mb == self.cache_mb

    @cached_property
    def rows_digest(self) -> str:
        """A hash of the rows that it uses."""
        return self.table.digest_of(self.used, self.setting)

    @cached_property
    def used(self) -> set[LayerSpec]:
        """Every row that the model may look up."""
        found = set()
        for slot in self.slots:
            if slot.sampled:
                found |= self._rows.family(slot.template)
            else:
                found |= set((specs_of(slot, self.choices) or {}).values())
        return found
