"""The latency table of one device: measured layers, one row each, in a JSON file that is reviewed like code.

In: rows from `build-lut`. Out: latencies of layers in ms, exact or interpolated between measured channels.
A table grows: several models share it, and every row names the measuring session it comes from.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from bcnet.artifacts import digest, write_file
from bcnet.errors import TableError

SCHEMA = 1
STRICT = ConfigDict(extra="forbid")
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
    in_channels: int
    out_channels: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    activation: str = ""
    add: bool = False
    in_height: int = 1
    in_width: int = 1

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
    batch: int
    threads: int
    power_mode: str

    def __str__(self) -> str:
        return (
            f"{self.runtime}, {self.precision}, batch {self.batch}, {self.threads} thread(s), "
            f"power mode {self.power_mode}"
        )


Milliseconds = Annotated[float, Field(ge=0, lt=1e7, allow_inf_nan=False)]


@dataclass(frozen=True)
class LatencyStat:
    """Milliseconds: median and 90th percentile; `spread` is the median absolute deviation over the median."""

    __pydantic_config__ = STRICT

    median_ms: Milliseconds
    p90_ms: Milliseconds
    spread: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    samples: Annotated[int, Field(ge=1)]

    @classmethod
    def of(cls, samples: np.ndarray) -> "LatencyStat":
        """The statistics of samples in ms."""
        median = float(np.median(samples))
        deviation = float(np.median(np.abs(samples - median)))
        return cls(
            median_ms=round(median, 5),
            p90_ms=round(float(np.percentile(samples, 90)), 5),
            spread=round(deviation / max(median, 1e-9), 4),
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
class Calibration:
    """Whole network = offset_ms + scale * sum of its layers, fitted on `fitted` subnets of one model.

    The errors are those on `held_out` other subnets: mean absolute, share within 5 and 10 %, Spearman's
    rank correlation; `noise` is the mean difference of measuring the same subnet twice.
    """

    __pydantic_config__ = STRICT

    model: str
    setting: Setting
    rows: str
    offset_ms: float
    scale: Annotated[float, Field(gt=0)]
    fitted: int
    held_out: int
    mean_error: float
    within_5: float
    within_10: float
    spearman: float
    noise: float


@dataclass(frozen=True)
class _File:
    """The layout of the JSON file."""

    __pydantic_config__ = STRICT

    schema: int
    device: str
    sessions: list[Session]
    rows: list[Row]
    calibrations: list[Calibration]


_ADAPTER: TypeAdapter[_File] = TypeAdapter(_File)


@dataclass
class LatencyTable:
    """Rows by layer and setting, for one device."""

    device: str
    sessions: list[Session] = field(default_factory=list)
    rows: dict[tuple[LayerSpec, Setting], Row] = field(default_factory=dict)
    calibrations: dict[tuple[str, Setting], Calibration] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path) -> "LatencyTable":
        """The table in a file. Raises TableError: missing, cut short, edited to nonsense, another schema."""
        path = Path(path)
        mend = f"run `bcnet build-lut --device {path.stem}`"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise TableError(f"{path} is missing; {mend}") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as cause:
            raise TableError(
                f"{path} is cut short or edited ({cause}); restore the file, or delete it and {mend}"
            ) from None
        if isinstance(raw, dict) and raw.get("schema") != SCHEMA:
            raise TableError(
                f"{path} has schema {raw.get('schema')}, this bcnet reads {SCHEMA}; delete it and {mend}"
            )
        for entry in raw.get("calibrations", ()) if isinstance(raw, dict) else ():
            if isinstance(entry, dict) and entry.pop("digest", None) != digest(entry):
                raise TableError(
                    f"{path}: the calibration of model {entry.get('model')} was edited; restore the file, or "
                    f"take that line out and {mend}"
                )
        try:
            file = _ADAPTER.validate_python(raw)
        except ValidationError as cause:
            error = cause.errors()[0]
            where = ".".join(str(part) for part in error["loc"])
            raise TableError(
                f"{path}: {where}: {error['msg']}; restore the file, or delete it and {mend}"
            ) from None
        table = cls(file.device, file.sessions)
        for row in file.rows:
            if (row.layer, row.setting) in table.rows:
                raise TableError(f"{path} holds two rows for {row.layer}; restore the file, or delete it")
            if not 0 <= row.session < len(file.sessions):
                raise TableError(f"{path}: a row names session {row.session}, which is not there")
            table.rows[row.layer, row.setting] = row
        for calibration in file.calibrations:
            table.calibrations[calibration.model, calibration.setting] = calibration
        return table

    def save(self, path: Path) -> None:
        """Write the table atomically, rows in a stable order, one a line."""

        def lines(values: Iterable[dict[str, Any]]) -> str:
            return ",\n".join(f"  {json.dumps(value)}" for value in values)

        rows = sorted(self.rows.values(), key=lambda row: (row.setting, row.layer))
        fitted = [asdict(self.calibrations[key]) for key in sorted(self.calibrations)]
        text = (
            f'{{\n "schema": {SCHEMA},\n "device": {json.dumps(self.device)},\n'
            f' "sessions": [\n{lines(map(asdict, self.sessions))}\n ],\n'
            f' "rows": [\n{lines(map(asdict, rows))}\n ],\n'
            f' "calibrations": [\n{lines({**entry, "digest": digest(entry)} for entry in fitted)}\n ]\n}}\n'
        )
        write_file(path, text.encode())

    def latency_ms(self, layer: LayerSpec, setting: Setting) -> float:
        """The layer's median; interpolated between the nearest measured channel counts where it has no row.

        Raises TableError where neither is possible, saying what was asked and what the table holds.
        """
        row = self.rows.get((layer, setting))
        if row is not None:
            return row.stat.median_ms
        value = _interpolate(self._family(layer, setting), layer.in_channels, layer.out_channels)
        if value is None:
            raise self._lacks(layer, setting)
        return value

    def estimate_ms(self, layer: LayerSpec, setting: Setting) -> float:
        """The layer's median; from all rows of its family, wherever these lie, where it has none.

        Raises TableError where the family has no rows.
        """
        row = self.rows.get((layer, setting))
        if row is not None:
            return row.stat.median_ms
        points = self._family(layer, setting)
        if not points:
            raise self._lacks(layer, setting)
        return _trend(points, layer.in_channels, layer.out_channels)

    def _family(self, layer: LayerSpec, setting: Setting) -> list[tuple[int, int, float]]:
        """(input channels, output channels, ms) of all rows that differ in nothing else."""
        family = layer.family
        return [
            (key.in_channels, key.out_channels, known.stat.median_ms)
            for (key, at), known in self.rows.items()
            if at == setting and key.family == family
        ]

    def _lacks(self, layer: LayerSpec, setting: Setting) -> TableError:
        settings = "; ".join(str(at) for at in sorted({at for _, at in self.rows})) or "no rows"
        return TableError(
            f"no row for {layer.op} {layer.in_channels}->{layer.out_channels} at {setting}; the table of "
            f"'{self.device}' holds: {settings}. Run `bcnet build-lut --device {self.device}`"
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


def _interpolate(points: list[tuple[int, int, float]], x: int, y: int) -> float | None:
    """Bilinear between the four nearest corners that were measured; None where one of them is missing."""
    known = {(a, b): value for a, b, value in points}
    if all(a == b for a, b in known) and x == y:  # depthwise and pooling: one channel count
        own = sorted(a for a, _ in known)
        if not own or not own[0] <= x <= own[-1]:
            return None
        return float(np.interp(x, own, [known[a, a] for a in own]))
    lows = sorted({a for a, _ in known if a <= x}, reverse=True)
    highs = sorted(a for a in {a for a, _ in known} if a >= x)
    for x0 in lows:
        for x1 in highs:
            ys = sorted({b for a, b in known if a == x0} & {b for a, b in known if a == x1})
            below = [b for b in ys if b <= y]
            above = [b for b in ys if b >= y]
            if below and above:
                y0, y1 = below[-1], above[0]
                u = (x - x0) / (x1 - x0) if x1 > x0 else 0.0
                v = (y - y0) / (y1 - y0) if y1 > y0 else 0.0
                near = known[x0, y0] * (1 - v) + known[x0, y1] * v
                far = known[x1, y0] * (1 - v) + known[x1, y1] * v
                return near * (1 - u) + far * u
    return None


def _trend(points: list[tuple[int, int, float]], x: int, y: int) -> float:
    """Between points that form no grid: a surface through all of them, bent to pass through the nearest.

    The surface is `a + b x + c y + d x y`, what a convolution costs without the steps of its implementation,
    with the least squared relative errors.
    """
    known = np.array(points, dtype=np.float64)
    a, b, ms = known.T

    def features(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.stack([np.ones_like(u), u, v, u * v], axis=-1)

    ms = np.maximum(ms, 1e-6)
    coefficients = np.linalg.lstsq(features(a, b) / ms[:, None], np.ones(len(ms)), rcond=None)[0]
    lowest = 0.1 * float(ms.min())
    surface = np.maximum(features(a, b) @ coefficients, lowest)
    here = max(float(features(np.array(float(x)), np.array(float(y))) @ coefficients), lowest)
    distance = np.log(a / x) ** 2 + np.log(b / y) ** 2
    nearest = np.argsort(distance, kind="stable")[:4]
    weights = 1 / (distance[nearest] + 1e-6)
    return here * float(np.average((ms / surface)[nearest], weights=weights))
