"""The latency table of one device: measured layers, one row each.

In: rows from `build-lut`. Out: latencies of layers in ms, exact or interpolated between measured channels.
Several models share a table, and every row names its measuring session.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from bcnet.errors import TableError
from bcnet.latency_tables import file
from bcnet.latency_tables.failed import FAILED_MS
from bcnet.latency_tables.interpolate import Surface, interpolate
from bcnet.latency_tables.rows import LayerSpec, Setting
from bcnet.progress import say
from bcnet.runs import digest, write_file


class LatencyTable(file.Content):
    """Rows by layer and setting, for one device."""

    @classmethod
    def load(cls, path: str | Path) -> "LatencyTable":
        """The table in a file. Raises TableError: missing, truncated, edited, or of another schema."""
        return cls(**vars(file.read(Path(path))))

    def save(self, path: Path) -> None:
        """Write the table atomically: sealed rows in a stable order, one per line."""
        write_file(path, file.text_of(self).encode())
        if not self.sealed:
            say(f"{path}: its rows are now sealed, so later edits by hand will be reported")
            self.sealed = True

    def look_up(self, setting: Setting) -> "LookUp":
        """An index of the rows of one setting as they are now, for many look-ups."""
        return LookUp(self, setting)

    def drop_estimates(self, setting: Setting) -> None:
        """Remove the calculated rows of this setting, with their calibrations and sessions.

        For measured rows, which replace them; the two are never mixed.
        """
        estimated = [
            key
            for key, row in self.rows.items()
            if row.setting == setting and self.sessions[row.session].estimate
        ]
        if estimated:
            for key in estimated:
                del self.rows[key]
            for model, at in list(self.calibrations):
                if at == setting:
                    del self.calibrations[model, at]
            named = {row.session for row in self.rows.values()}
            named |= {failure.session for failure in self.failures.values()}
            while self.sessions and len(self.sessions) - 1 not in named:
                self.sessions.pop()

    def latency_ms(self, layer: LayerSpec, setting: Setting) -> float:
        """One layer's latency: see `LookUp.latency_ms`."""
        return self.look_up(setting).latency_ms(layer)

    def settings(self) -> str:
        """The settings of its rows, for messages."""
        return "; ".join(str(at) for at in sorted({at for _, at in self.rows})) or "no rows"

    def has(self, layer: LayerSpec, setting: Setting) -> bool:
        """Whether this layer has a row or a failure at this setting."""
        return (layer, setting) in self.rows or (layer, setting) in self.failures

    def forget(self, layers: Iterable[LayerSpec], setting: Setting) -> None:
        """Remove these layers' rows and failures at a setting, so that they are measured again."""
        for layer in layers:
            self.rows.pop((layer, setting), None)
            self.failures.pop((layer, setting), None)

    def old_failures(self, setting: Setting, provenance: Mapping[str, str]) -> list[LayerSpec]:
        """Layers that failed at this setting with other versions or on another machine than `provenance`."""
        return [
            failure.layer
            for failure in self.failures.values()
            if failure.setting == setting
            and any(self.sessions[failure.session].provenance.get(k) != v for k, v in provenance.items())
        ]

    def is_estimate(self, layers: Iterable[LayerSpec], setting: Setting) -> bool:
        """Whether a row of these layers was calculated, not measured."""
        return any(
            self.sessions[row.session].estimate
            for layer in layers
            if (row := self.rows.get((layer, setting))) is not None
        )

    def digest_of(self, layers: Iterable[LayerSpec], setting: Setting) -> str:
        """A hash of the rows of these layers; it does not change when rows of other layers are added."""
        return digest(
            sorted(
                [repr(layer), self.rows[layer, setting].stat.median_ms]
                for layer in set(layers)
                if (layer, setting) in self.rows
            )
        )


class LookUp:
    """The latencies of layers at one setting, exact or interpolated; `FAILED_MS` where the runtime failed."""

    def __init__(self, table: LatencyTable, setting: Setting) -> None:
        self._table, self._setting = table, setting
        self._ms = {layer: row.stat.median_ms for (layer, at), row in table.rows.items() if at == setting}
        self._failed = {layer for layer, at in table.failures if at == setting}
        self._families: dict[LayerSpec, list[tuple[int, int, float]]] = {}
        for layer, ms in self._ms.items():
            own = self._families.setdefault(layer.family, [])
            own.append((layer.in_channels, layer.out_channels, ms))
        self._surfaces: dict[LayerSpec, Surface] = {}
        self._cache_use = {
            layer: row.cache_use
            for (layer, at), row in table.rows.items()
            if at == setting and row.cache_use is not None
        }
        self._usual_use = float(np.mean(list(self._cache_use.values()))) if self._cache_use else 0.0

    @property
    def cache_mb(self) -> float:
        """The last-level cache of the machine that measured the rows, in megabytes; 0: not known."""
        sizes = [session.cache_mb for session in self._table.sessions if session.cache_mb]
        return sizes[-1] if sizes and self._cache_use else 0.0

    def weights_mb(self, layer: LayerSpec) -> tuple[float, float]:
        """Megabytes of a layer's weights: all, and those from memory when its row was measured."""
        weights = layer.weights_mb(self._setting.precision)
        return weights, weights * self._cache_use.get(layer, self._usual_use)

    def latency_ms(self, layer: LayerSpec) -> float:
        """The layer's median in ms; interpolated between the nearest measured channel counts without a row.

        Raises TableError if neither is possible, with the requested row and what the table has.
        """
        known = self._known(layer)
        if known is not None:
            return known
        value = interpolate(self._families.get(layer.family, []), layer.in_channels, layer.out_channels)
        if value is None:
            raise self._missing(layer)
        return value

    def estimate_ms(self, layer: LayerSpec) -> float:
        """The layer's median in ms; without a row, interpolated or extrapolated from all rows of its family.

        Raises TableError if the family has no rows.
        """
        known = self._known(layer)
        if known is not None:
            return known
        family = layer.family
        if family not in self._families:
            raise self._missing(layer)
        if family not in self._surfaces:
            self._surfaces[family] = Surface(self._families[family])
        return self._surfaces[family](layer.in_channels, layer.out_channels)

    def family(self, layer: LayerSpec) -> set[LayerSpec]:
        """The layers with a row that differ from this one only in their channel counts."""
        family = layer.family
        return {known for known in self._ms if known.family == family}

    def _known(self, layer: LayerSpec) -> float | None:
        return FAILED_MS if layer in self._failed else self._ms.get(layer)

    def _missing(self, layer: LayerSpec) -> TableError:
        device, build = self._table.device, f"`bcnet build-lut --device {self._table.device}`"
        lacks = f"no row for {layer.op} {layer.in_channels}->{layer.out_channels} at {self._setting}"
        if self._ms or self._failed:
            return TableError(
                f"{lacks} in the table of '{device}', which was built for other layers; run {build}, which "
                "adds what is missing"
            )
        there = self._table.settings()
        return TableError(
            f"{lacks}; the table of '{device}' has: {there}. Run {build} with the same settings"
        )
