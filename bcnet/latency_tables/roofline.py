"""The roofline model: a layer's latency from its operations, its bytes and the device's peaks.

In: layers and a device's peaks. Out: milliseconds that are calculated, not measured. The fraction of the
peaks that layers reach is fitted on a measured table. Williams, Waterman, Patterson, "Roofline", CACM 2009.
"""

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import least_squares
from scipy.stats import spearmanr

from bcnet.errors import TableError
from bcnet.latency_tables.rows import (
    CONVOLUTIONS,
    WEIGHTED,
    Calibration,
    LatencyStat,
    LayerSpec,
    Row,
    Session,
    Setting,
)
from bcnet.latency_tables.table import LatencyTable
from bcnet.traits import PRECISIONS, is_processor

POOLS = frozenset(("MaxPool", "AveragePool"))
GLOBAL = frozenset(("GlobalAveragePool", "GlobalMaxPool", "ReduceMean"))
FEWEST = 20  # minimum number of rows for a fit
LONG_MS = 0.05  # from here on, a profile in whole microseconds is accurate enough for a layer's rate


@dataclass(frozen=True)
class Peak:
    """A device's peaks at one precision: operations and bytes per millisecond."""

    ops_per_ms: float
    bytes_per_ms: float


@dataclass(frozen=True)
class Roofline:
    """The fractions of the peaks that layers reach: of operations (`dense`, `grouped`), and of `bandwidth`.

    `grouped` is for grouped convolutions, including depthwise ones. `launch_ms` is the fixed overhead of each
    layer.
    """

    dense: float
    grouped: float
    bandwidth: float
    launch_ms: float

    def layer_ms(self, layer: LayerSpec, setting: Setting, peak: Peak) -> float:
        """`max(operations / (share * peak), bytes / (share * bandwidth)) + launch` in ms."""
        share = self.grouped if layer.groups > 1 else self.dense
        compute = operations(layer, setting.batch) / (share * peak.ops_per_ms)
        memory = moved_bytes(layer, setting) / (self.bandwidth * peak.bytes_per_ms)
        return max(compute, memory) + self.launch_ms

    def elsewhere(self, launch_ms: float | None) -> "Roofline":
        """The roofline for another device, with its launch overhead if known; fractions are limited to 1.

        A layer may exceed a measured peak, but not that of a data sheet.
        """
        launch_ms = self.launch_ms if launch_ms is None else launch_ms
        return Roofline(min(self.dense, 1.0), min(self.grouped, 1.0), min(self.bandwidth, 1.0), launch_ms)


# From `python benchmarks/roofline.py`; docs/reference/devices.md reports the errors.
DEFAULT = Roofline(dense=0.7985, grouped=0.2661, bandwidth=1.069, launch_ms=0.004)
DEFAULT_SOURCE = (
    "shipped with bcnet: 1,986 rows of MobileNetV2 and ResNet-18 at 224 px, ONNX Runtime 1.32, one thread "
    "of an AMD EPYC"
)
PULL = 0.1  # weight of the regularisation towards the default, which determines what no row does


@dataclass(frozen=True)
class RooflineError:
    """The errors of a roofline on measured rows.

    Mean absolute relative error, fractions of rows within 10 and 25 %, Spearman's rank correlation, and the
    relative error of the sum of all rows (above zero: the roofline's sum is larger).
    """

    rows: int
    mean_error: float
    within_10: float
    within_25: float
    spearman: float
    sum_error: float


def output_size(layer: LayerSpec) -> tuple[int, int]:
    """Height and width of a layer's output. For Resize, those of the input: its row has no others."""
    if layer.op in GLOBAL:
        return 1, 1
    if layer.op not in POOLS | CONVOLUTIONS:
        return layer.in_height, layer.in_width
    sizes = []
    for axis, size in enumerate((layer.in_height, layer.in_width)):
        kernel, stride, dilation = (
            values[axis] if axis < len(values) else 1
            for values in (layer.kernel, layer.stride, layer.dilation)
        )
        half = len(layer.padding) // 2
        padded = layer.padding[axis] + layer.padding[half + axis] if axis < half else 0
        extent = dilation * (kernel - 1) + 1
        if layer.op == "ConvTranspose":
            sizes.append((size - 1) * stride + extent - padded)
        else:
            sizes.append((size + padded - extent) // stride + 1)
    return max(sizes[0], 1), max(sizes[1], 1)


def operations(layer: LayerSpec, batch: int) -> int:
    """Multiplications and additions of a layer on `batch` images; 0 for layers without weights."""
    if layer.op not in WEIGHTED:
        return 0
    height, width = output_size(layer)
    if layer.op == "ConvTranspose":  # the kernel is applied to each input pixel
        height, width = layer.in_height, layer.in_width
    return 2 * batch * height * width * _weights(layer)


def moved_bytes(layer: LayerSpec, setting: Setting) -> int:
    """Minimum memory traffic of a layer in bytes: inputs, a residual, weights and outputs, each once."""
    height, width = output_size(layer)
    read = layer.in_channels * layer.in_height * layer.in_width
    written = layer.out_channels * height * width
    images = setting.batch * (read + written * (2 if layer.add else 1))
    weights = _weights(layer) if layer.op in WEIGHTED else 0
    return PRECISIONS[setting.precision].weight_bytes * (images + weights)


def _weights(layer: LayerSpec) -> int:
    area = int(np.prod(layer.kernel)) if layer.op in CONVOLUTIONS else 1
    return layer.in_channels * layer.out_channels * area // layer.groups


def probe_peak(probe: Mapping[str, float]) -> Peak:
    """The peak of one thread at fp32 of a session's machine, from its reference microbenchmark."""
    if "matmul_256_ms" in probe:  # a table of schema 1
        ops_per_ms = 2 * 256**3 / probe["matmul_256_ms"]
    else:
        ops_per_ms = 8 * 2 * 64**3 / probe["matmul_ms"]
    return Peak(ops_per_ms, 8 * 2**20 / probe["sweep_ms"])


Measured = tuple[LayerSpec, Setting, float, Peak]


def measured_rows(table: LatencyTable) -> list[Measured]:
    """The rows of a processor's table for a fit: measured, fp32, one thread; each with its session's peak.

    If a layer has a higher rate of operations than the reference microbenchmark, its rate becomes the peak:
    the runtime's kernels can be faster than numpy's.
    """
    found: list[Measured] = []
    for key in sorted(table.rows):
        row = table.rows[key]
        session = table.sessions[row.session]
        at, ms = row.setting, row.stat.median_ms
        precision = PRECISIONS.get(at.precision)  # a file may have rows of others
        full = precision is not None and precision.full
        if full and at.threads == 1 and is_processor(at.runtime) and not session.estimate and ms > 0:
            found.append((row.layer, at, ms, probe_peak(session.probe)))
    rates = [
        operations(layer, at.batch) / ms / peak.ops_per_ms for layer, at, ms, peak in found if ms >= LONG_MS
    ]
    best = max(rates, default=1.0)
    return [
        (layer, at, ms, replace(peak, ops_per_ms=peak.ops_per_ms * max(best, 1.0)))
        for layer, at, ms, peak in found
    ]


def fit(rows: Sequence[Measured]) -> Roofline:
    """The roofline that fits the measured rows best, by least squares of log(calculated / measured).

    Large residuals count less (soft L1), because the model does not describe all layers. Parameters that no
    row determines, e.g. `grouped` in a table without grouped convolutions, stay at the default. Raises
    TableError for too few rows.
    """
    if len(rows) < FEWEST:
        raise TableError(f"fitting a roofline needs at least {FEWEST} measured rows; there are {len(rows)}")
    compute = np.array([operations(layer, at.batch) / peak.ops_per_ms for layer, at, _, peak in rows])
    memory = np.array([moved_bytes(layer, at) / peak.bytes_per_ms for layer, at, _, peak in rows])
    grouped = np.array([layer.groups > 1 for layer, *_ in rows])
    measured = np.array([ms for _, _, ms, _ in rows])

    def residuals(logs: np.ndarray) -> np.ndarray:
        dense, of_groups, bandwidth, launch = np.exp(logs)
        work = np.maximum(compute / np.where(grouped, of_groups, dense), memory / bandwidth)
        return np.concatenate([np.log((work + launch) / measured), PULL * (logs - default)])

    default = np.log([DEFAULT.dense, DEFAULT.grouped, DEFAULT.bandwidth, DEFAULT.launch_ms])
    low = np.log([0.001, 0.001, 0.001, 1e-6])
    high = np.log([10.0, 10.0, 10.0, max(float(measured.min()), 2e-6)])
    # The maximum makes several local minima: also start from compute-bound and from memory-bound layers.
    starts = (default, default + np.log([0.5, 0.5, 4, 1]), default + np.log([2, 2, 0.25, 0.1]))
    fits = [
        least_squares(residuals, np.clip(start, low + 1e-6, high - 1e-6), bounds=(low, high), loss="soft_l1")
        for start in starts
    ]
    best = min(fits, key=lambda found: float(found.cost))
    return Roofline(*(float(f"{value:.4g}") for value in np.exp(best.x)))


def error_of(roofline: Roofline, rows: Sequence[Measured]) -> RooflineError:
    """The errors of the roofline on measured rows."""
    calculated = np.array([roofline.layer_ms(layer, at, peak) for layer, at, _, peak in rows])
    measured = np.array([ms for _, _, ms, _ in rows])
    relative = np.abs(calculated - measured) / measured
    return RooflineError(
        rows=len(rows),
        mean_error=round(float(relative.mean()), 4),
        within_10=round(float((relative <= 0.10).mean()), 4),
        within_25=round(float((relative <= 0.25).mean()), 4),
        spearman=round(float(spearmanr(calculated, measured).statistic), 4),
        sum_error=round(float(calculated.sum() / measured.sum() - 1), 4),
    )


def estimate_table(
    table: LatencyTable,
    layers: Iterable[LayerSpec],
    setting: Setting,
    roofline: Roofline,
    peak: Peak,
    provenance: Mapping[str, str],
) -> None:
    """Fill `table` with calculated rows for `layers`, and update the estimated rows that it has.

    All estimated rows of a setting belong to one session, marked as an estimate, which keeps its date if its
    provenance is unchanged. Raises TableError if the table has measured rows of this setting: the two are
    never mixed.
    """
    here = {key: row for key, row in table.rows.items() if row.setting == setting}
    numbers = {row.session for row in here.values()}
    if any(not table.sessions[number].estimate for number in numbers):
        raise TableError(
            f"the table of '{table.device}' has measured rows at {setting}; estimates are never mixed with "
            "them: measure the missing rows on the device, or move the table to another name"
        )
    session = Session(
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        provenance=dict(provenance),
        probe={},
        estimate=True,
    )
    number = min(numbers, default=len(table.sessions))
    if number == len(table.sessions):
        table.sessions.append(session)
    elif table.sessions[number].provenance != session.provenance:
        table.sessions[number] = session
    for layer in {*layers, *(layer for layer, _ in here)}:
        ms = round(roofline.layer_ms(layer, setting, peak), 5)
        stat = LatencyStat(median_ms=ms, p90_ms=ms, spread=0.0, samples=0)
        table.rows[layer, setting] = Row(layer, setting, stat, number)


def estimated_calibration(model: str, setting: Setting, rows: str) -> Calibration:
    """The calibration of an estimate: the plain sum of the layers; no errors, as nothing was measured."""
    return Calibration(
        model=model,
        setting=setting,
        rows=rows,
        offset_ms=0.0,
        scale=1.0,
        fitted=0,
        held_out=0,
        mean_error=None,
        within_5=None,
        within_10=None,
        spearman=None,
        noise=None,
    )
