"""The latency table of one device: measured layers, one row each, in a JSON file that is reviewed like code.

In: rows from `build-lut`. Out: latencies of layers in ms, exact or interpolated between measured channels.
A table grows: several models share it, and every row names the measuring session it comes from.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from bcnet.artifacts import digest, write_file
from bcnet.errors import TableError
from bcnet.latency_tables.interpolate import Surface, interpolate

SCHEMA = 2
STRICT = ConfigDict(extra="forbid", strict=True)
Count = Annotated[int, Field(ge=1)]
# Convolutions of up to so many groups are narrowed evenly inside each group, others by whole groups.
EVEN_GROUPS = 4


@dataclass(frozen=True, order=True)
class LayerSpec:
    """A fused layer as it is deployed, at one width.

    `activation` names the operators that follow it at the same shape ("" for none); `add` is a residual
    sum. Heights and widths are those of the input, in pixels; `padding` is top, left, bottom, right.
    """

    __pydantic_config__ = STRICT

    op: str
    in_channels: Count
    out_channels: Count
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: Count = 1
    activation: str = ""
    add: bool = False
    in_height: Count = 1
    in_width: Count = 1

    def __str__(self) -> str:
        parts = [f"{self.op} {self.in_channels}->{self.out_channels}"]
        parts += ["x".join(map(str, self.kernel))] if self.kernel else []
        parts += [f"stride {'x'.join(map(str, self.stride))}"] if any(s != 1 for s in self.stride) else []
        parts += [f"{self.groups} groups"] if self.groups > 1 else []
        parts += ["+ Add"] if self.add else []
        parts += [f"+ {self.activation}"] if self.activation else []
        return f"{' '.join(parts)} at {self.in_height}x{self.in_width}"

    @property
    def family(self) -> "LayerSpec":
        """The same layer without its channel counts: rows of one family can be interpolated.

        Layers that are narrowed by whole groups share the size of one (below zero here), others their number.
        """
        groups = self.groups
        if groups > EVEN_GROUPS or groups == self.in_channels > 1:
            groups = -(self.in_channels // groups)
        return replace(self, in_channels=0, out_channels=0, groups=groups)


@dataclass(frozen=True, order=True)
class Setting:
    """What a latency depends on beside the layer; a row is never used for another setting."""

    __pydantic_config__ = STRICT

    runtime: str
    precision: str
    batch: Count
    threads: Count
    power_mode: str

    def __str__(self) -> str:
        return (
            f"{self.runtime}, {self.precision}, batch {self.batch}, {self.threads} thread(s), "
            f"power mode {self.power_mode}"
        )


Milliseconds = Annotated[float, Field(ge=0, lt=1e7, allow_inf_nan=False)]


@dataclass(frozen=True)
class LatencyStat:
    """Milliseconds: median and 90th percentile; `spread` is the median absolute deviation over the median.

    Statistics of no samples were calculated, not measured: rows of an estimate.
    """

    __pydantic_config__ = STRICT

    median_ms: Milliseconds
    p90_ms: Milliseconds
    spread: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    samples: Annotated[int, Field(ge=0)]

    @classmethod
    def of(cls, samples: np.ndarray) -> "LatencyStat":
        """The statistics of samples in ms."""
        median = float(np.median(samples))
        deviation = float(np.median(np.abs(samples - median)))
        return cls(
            median_ms=round(median, 5),
            p90_ms=round(float(np.percentile(samples, 90)), 5),
            spread=round(deviation / max(median, 1e-3), 4),
            samples=len(samples),
        )


@dataclass(frozen=True)
class Session:
    """One measuring session: when, on what, with which versions, and the machine's probe.

    `probe` maps each part of the probe to its median in ms over the session's readings (before, between and
    after the measurements), `probe_spread` to the readings' median absolute deviation over their median.
    Rows of an `estimate` were calculated for a device that was not at hand, not measured.
    """

    __pydantic_config__ = STRICT

    date: str
    provenance: dict[str, str]
    probe: dict[str, float]
    probe_spread: dict[str, float] = field(default_factory=dict)
    estimate: bool = False


@dataclass(frozen=True)
class Row:
    """A measured layer and the number of the session it comes from."""

    __pydantic_config__ = STRICT

    layer: LayerSpec
    setting: Setting
    stat: LatencyStat
    session: int


@dataclass(frozen=True)
class Failure:
    """A layer that the runtime could not run, with its reason; networks that hold it are never chosen."""

    __pydantic_config__ = STRICT

    layer: LayerSpec
    setting: Setting
    error: str
    session: int


@dataclass(frozen=True)
class Calibration:
    """Whole network = offset_ms + scale * sum of its layers, fitted on `fitted` subnets of one model.

    The errors are those on `held_out` other subnets: mean absolute, share within 5 and 10 %, Spearman's
    rank correlation; `noise` is the mean difference of measuring the same subnet twice. All are None in an
    estimate: its sums are taken as they are, and nothing was measured.
    """

    __pydantic_config__ = STRICT

    model: str
    setting: Setting
    rows: str
    offset_ms: float
    scale: Annotated[float, Field(gt=0)]
    fitted: int
    held_out: int
    mean_error: float | None
    within_5: float | None
    within_10: float | None
    spearman: float | None
    noise: float | None


@dataclass(frozen=True)
class _Line:
    """A row of the file: `stat`, or the `error` of a runtime that could not run the layer."""

    __pydantic_config__ = STRICT

    layer: LayerSpec
    session: Annotated[int, Field(ge=0)]
    stat: LatencyStat | None = None
    error: str | None = None


@dataclass(frozen=True)
class _Block:
    """All rows of one setting."""

    __pydantic_config__ = STRICT

    setting: Setting
    rows: list[_Line]


@dataclass(frozen=True)
class _Sealed(Calibration):
    """A calibration with the hash that tells whether it was edited."""

    digest: str = ""


@dataclass(frozen=True)
class _File:
    """The latency table of one device."""

    __pydantic_config__ = STRICT

    schema: Literal[2]
    device: str
    sessions: list[Session]
    settings: list[_Block]
    calibrations: list[_Sealed]


_ADAPTER: TypeAdapter[_File] = TypeAdapter(_File)


def json_schema() -> dict[str, Any]:
    """The JSON schema of the file; `schema.json` beside this module holds it for other tools."""
    return {"title": "bcnet latency table", **_ADAPTER.json_schema()}


@dataclass
class LatencyTable:
    """Rows by layer and setting, for one device."""

    device: str
    sessions: list[Session] = field(default_factory=list)
    rows: dict[tuple[LayerSpec, Setting], Row] = field(default_factory=dict)
    failures: dict[tuple[LayerSpec, Setting], Failure] = field(default_factory=dict)
    calibrations: dict[tuple[str, Setting], Calibration] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path) -> "LatencyTable":
        """The table in a file. Raises TableError: missing, cut short, edited to nonsense, another schema."""
        path = Path(path)
        mend = f"run `bcnet build-lut --device {path.stem}`"
        restore = f"restore the file, or delete it and {mend}"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise TableError(f"{path} is missing; {mend}") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as cause:
            raise TableError(f"{path} is cut short or edited ({cause}); {restore}") from None
        try:
            raw = migrated(raw)
            file = _ADAPTER.validate_json(json.dumps(raw))
        except TableError as cause:
            raise TableError(f"{path} {cause}; {restore}") from None
        except ValidationError as cause:
            raise TableError(f"{path}: {_explained(cause, raw)}; {restore}") from None
        table = cls(file.device, file.sessions)
        for block in file.settings:
            for line in block.rows:
                table._add(path, line, block.setting, restore)
        for sealed in file.calibrations:
            calibration = Calibration(**{f.name: getattr(sealed, f.name) for f in fields(Calibration)})
            if sealed.digest != digest(asdict(calibration)):
                raise TableError(
                    f"{path}: the calibration of model {sealed.model} was edited; restore the file, or take "
                    f"that line out and {mend}"
                )
            table.calibrations[calibration.model, calibration.setting] = calibration
        return table

    def _add(self, path: Path, line: _Line, setting: Setting, restore: str) -> None:
        key = line.layer, setting
        if key in self.rows or key in self.failures:
            raise TableError(f"{path} holds two rows for {line.layer} at {setting}; {restore}")
        if line.session >= len(self.sessions):
            raise TableError(f"{path}: a row names session {line.session}, which is not there; {restore}")
        if (line.stat is None) == (line.error is None):
            raise TableError(f"{path}: the row of {line.layer} needs a stat or an error; {restore}")
        if line.stat is not None and not line.stat.samples and not self.sessions[line.session].estimate:
            raise TableError(f"{path}: a measured row has no samples: {line.layer}; {restore}")
        if line.stat is not None:
            self.rows[key] = Row(*key, line.stat, line.session)
        else:
            self.failures[key] = Failure(*key, line.error or "", line.session)

    def save(self, path: Path) -> None:
        """Write the table atomically, rows in a stable order, one a line."""
        lines: dict[Setting, list[_Line]] = {}
        for row in self.rows.values():
            lines.setdefault(row.setting, []).append(_Line(row.layer, row.session, row.stat))
        for failure in self.failures.values():
            lines.setdefault(failure.setting, []).append(
                _Line(failure.layer, failure.session, error=failure.error)
            )
        blocks = [
            f'  {{"setting": {json.dumps(asdict(setting))}, "rows": [\n'
            + _lines((_without_defaults(line) for line in sorted(rows, key=lambda line: line.layer)), 3)
            + "\n  ]}"
            for setting, rows in sorted(lines.items())
        ]
        fitted = [asdict(self.calibrations[key]) for key in sorted(self.calibrations)]
        sealed = ({**entry, "digest": digest(entry)} for entry in fitted)
        text = (
            f'{{\n "schema": {SCHEMA},\n "device": {json.dumps(self.device)},\n'
            f' "sessions": [\n{_lines(map(asdict, self.sessions), 2)}\n ],\n'
            f' "settings": [\n{_joined(blocks)}\n ],\n'
            f' "calibrations": [\n{_lines(sealed, 2)}\n ]\n}}\n'
        )
        write_file(path, text.encode())

    def look_up(self, setting: Setting) -> "LookUp":
        """The rows of one setting as they are now, ready to be asked many times."""
        return LookUp(self, setting)

    def drop_estimates(self, setting: Setting) -> None:
        """Take calculated rows of this setting out, with all that was made from them.

        Measured rows take their place; the two are never mixed.
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

    def has(self, layer: LayerSpec, setting: Setting) -> bool:
        """Whether this layer was measured at this setting, or failed there; an estimate is no measurement."""
        row = self.rows.get((layer, setting))
        if row is None:
            return (layer, setting) in self.failures
        return not self.sessions[row.session].estimate

    def is_estimate(self, layers: Iterable[LayerSpec], setting: Setting) -> bool:
        """Whether a row of these layers was calculated, not measured."""
        return any(
            self.sessions[row.session].estimate
            for layer in layers
            if (row := self.rows.get((layer, setting))) is not None
        )

    def digest_of(self, layers: Iterable[LayerSpec], setting: Setting) -> str:
        """A hash of the rows of these layers: changes when one of them does, not when the table grows."""
        return digest(
            sorted(
                [repr(layer), self.rows[layer, setting].stat.median_ms]
                for layer in set(layers)
                if (layer, setting) in self.rows
            )
        )


class LookUp:
    """The latencies of layers at one setting, exact or interpolated; infinite where the runtime failed."""

    def __init__(self, table: LatencyTable, setting: Setting) -> None:
        self._table, self._setting = table, setting
        self._ms = {layer: row.stat.median_ms for (layer, at), row in table.rows.items() if at == setting}
        self._failed = {layer for layer, at in table.failures if at == setting}
        self._families: dict[LayerSpec, list[tuple[int, int, float]]] = {}
        for layer, ms in self._ms.items():
            own = self._families.setdefault(layer.family, [])
            own.append((layer.in_channels, layer.out_channels, ms))
        self._surfaces: dict[LayerSpec, Surface] = {}

    def latency_ms(self, layer: LayerSpec) -> float:
        """The layer's median; interpolated between the nearest measured channel counts if it has no row.

        Raises TableError where neither is possible, saying what was asked and what the table holds.
        """
        known = self._known(layer)
        if known is not None:
            return known
        value = interpolate(self._families.get(layer.family, []), layer.in_channels, layer.out_channels)
        if value is None:
            raise self._lacks(layer)
        return value

    def estimate_ms(self, layer: LayerSpec) -> float:
        """The layer's median in ms; from all rows of its family, wherever these lie, if it has no row.

        Raises TableError where the family has no rows.
        """
        known = self._known(layer)
        if known is not None:
            return known
        family = layer.family
        if family not in self._families:
            raise self._lacks(layer)
        if family not in self._surfaces:
            self._surfaces[family] = Surface(self._families[family])
        return self._surfaces[family](layer.in_channels, layer.out_channels)

    def family(self, layer: LayerSpec) -> set[LayerSpec]:
        """The layers that differ from this one in their channel counts only, and have a row."""
        family = layer.family
        return {known for known in self._ms if known.family == family}

    def _known(self, layer: LayerSpec) -> float | None:
        return math.inf if layer in self._failed else self._ms.get(layer)

    def _lacks(self, layer: LayerSpec) -> TableError:
        device = self._table.device
        settings = "; ".join(str(at) for at in sorted({at for _, at in self._table.rows})) or "no rows"
        return TableError(
            f"no row for {layer.op} {layer.in_channels}->{layer.out_channels} at {self._setting}; the table "
            f"of '{device}' holds: {settings}. Run `bcnet build-lut --device {device}` with the same settings"
        )


def migrated(raw: Any) -> Any:
    """An older file's values in today's layout. Raises TableError where this bcnet cannot read the schema."""
    if not isinstance(raw, dict) or raw.get("schema") == SCHEMA:
        return raw
    if raw.get("schema") != 1:
        raise TableError(f"has schema {raw.get('schema')!r}, this bcnet reads 1 and {SCHEMA}")
    # Schema 1 repeated the setting in every row and wrote out default values.
    blocks: dict[str, dict[str, Any]] = {}
    for row in raw.get("rows", []):
        if not isinstance(row, dict) or "setting" not in row:
            raise TableError("has a row without a setting")
        row = dict(row)
        setting = row.pop("setting")
        blocks.setdefault(digest(setting), {"setting": setting, "rows": []})["rows"].append(row)
    kept = {key: value for key, value in raw.items() if key != "rows"}
    return {**kept, "schema": SCHEMA, "settings": list(blocks.values())}


def _explained(cause: ValidationError, raw: Any) -> str:
    """The first of pydantic's errors, with the row that it is about."""
    error = cause.errors()[0]
    where = ".".join(str(part) for part in error["loc"])
    found: Any = raw
    layer = None
    for part in error["loc"]:
        try:
            found = found[part]
        except (KeyError, IndexError, TypeError):
            break
        if isinstance(found, dict) and isinstance(found.get("layer"), dict):
            layer = found["layer"]
    about = f" (the row of {json.dumps(layer)})" if layer else ""
    return f"{where}{about}: {error['msg']}"


def _without_defaults(line: _Line) -> dict[str, Any]:
    """A row's values as short as they can be told: what is at its default is left out."""
    values = {key: value for key, value in asdict(line).items() if value is not None}
    defaults = {f.name: f.default for f in fields(LayerSpec)}
    values["layer"] = {key: value for key, value in values["layer"].items() if value != defaults[key]}
    order = ("layer", "stat", "error", "session")
    return {key: values[key] for key in order if key in values}


def _lines(values: Iterable[dict[str, Any]], indent: int) -> str:
    return _joined([" " * indent + json.dumps(value) for value in values])


def _joined(lines: Sequence[str]) -> str:
    return ",\n".join(lines)
