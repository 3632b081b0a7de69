"""The records of a latency table: layers, settings, statistics, sessions, calibrations. Times are in ms."""

import math
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field

from bcnet.latency_tables.failed import runs
from bcnet.plain import counted
from bcnet.space.grouped import narrowed_evenly
from bcnet.traits import PRECISIONS

STRICT = ConfigDict(extra="forbid", strict=True)
LARGEST = 2**31 - 1  # larger sizes and counts would overflow in calculations
Count = Annotated[int, Field(ge=1, le=LARGEST)]
Text = Annotated[str, Field(max_length=10_000)]


@cache
def _shared(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """One shared object for equal values: a table repeats a few distinct values a million times."""
    return sizes


Sizes = Annotated[
    tuple[Annotated[int, Field(ge=-LARGEST, le=LARGEST)], ...],
    Field(max_length=16),
    AfterValidator(_shared),
]
BINARY = "BinaryConv"  # a Conv of inputs and weights of one bit, which some runtimes have kernels for
CONVOLUTIONS = frozenset(("Conv", BINARY, "ConvTranspose"))
WEIGHTED = CONVOLUTIONS | {"Gemm", "MatMul"}  # operators that have weights


@dataclass(frozen=True, order=True, slots=True)
class LayerSpec:
    """A fused layer as it is deployed, at one width.

    `activation` names the fused operators that follow it at the same shape ("" for none); `add` is a residual
    sum. Heights and widths are those of the input, in pixels; `padding` is top, left, bottom, right.
    """

    __pydantic_config__ = STRICT

    op: Text
    in_channels: Count
    out_channels: Count
    kernel: Sizes = ()
    stride: Sizes = ()
    padding: Sizes = ()
    dilation: Sizes = ()
    groups: Count = 1
    activation: Text = ""
    add: bool = False
    in_height: Count = 1
    in_width: Count = 1

    def __str__(self) -> str:
        """For messages: kind, channels, fused operators, the input's size."""
        follows = f"{' + Add' if self.add else ''}{f' + {self.activation}' if self.activation else ''}"
        channels = f"{self.in_channels}->{self.out_channels}"
        return f"{self.kind} {channels}{follows} at {self.in_height}x{self.in_width}{self.strided}"

    @property
    def strided(self) -> str:
        """Its stride, for messages; empty for a stride of 1."""
        return f" stride {'x'.join(map(str, self.stride))}" if any(step > 1 for step in self.stride) else ""

    @property
    def kind(self) -> str:
        """The class of layers that share a kernel: operator, kernel size, depthwise or grouped."""
        kernel = " " + "x".join(map(str, self.kernel)) if self.kernel else ""
        if self.groups == 1:
            return self.op + kernel
        return f"{self.op}{kernel} {'depthwise' if self.groups == self.in_channels else 'grouped'}"

    def weights_mb(self, precision: str) -> float:
        """The size of its weights in megabytes (10^6 bytes); binary ones have one bit each."""
        if self.op not in WEIGHTED:
            return 0.0
        weights = self.in_channels // self.groups * self.out_channels * math.prod(self.kernel)
        size = 1 / 8 if self.op == BINARY else PRECISIONS[precision].weight_bytes
        return weights * size / 1e6

    @property
    def family(self) -> "LayerSpec":
        """The layer without its channel counts: rows of one family can be interpolated.

        `groups` is minus the channels per group if the layer is narrowed by whole groups, else their number.
        """
        groups = self.groups
        if not narrowed_evenly(groups, self.in_channels):
            groups = -(self.in_channels // groups)
        return replace(self, in_channels=0, out_channels=0, groups=groups)


@dataclass(frozen=True, order=True, slots=True)
class Setting:
    """What a latency depends on besides the layer; a row is never used for another setting."""

    __pydantic_config__ = STRICT

    runtime: Text
    precision: Text
    batch: Count
    threads: Count
    power_mode: Text

    def __str__(self) -> str:
        return (
            f"{self.runtime}, {self.precision}, batch {self.batch}, {counted(self.threads, 'thread')}, "
            f"power mode {self.power_mode}"
        )


Milliseconds = Annotated[float, Field(ge=0, lt=1e7, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class LatencyStat:
    """Milliseconds: median and 90th percentile; `spread` is the median absolute deviation over the median.

    Without samples, they were calculated, not measured: a row of an estimate.
    """

    __pydantic_config__ = STRICT

    median_ms: Milliseconds
    p90_ms: Milliseconds
    spread: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    samples: Annotated[int, Field(ge=0, le=2**53)]

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
    """One measuring session: its date, machine, versions, and reference microbenchmark.

    `probe` maps each part of the reference microbenchmark to its median in ms over the session's readings
    (before, between and after the measurements), `probe_spread` to the readings' median absolute deviation
    over their median. Rows of an `estimate` were calculated for a device that was not available, not
    measured. `id` identifies the session in the file; an empty one is replaced when the file is written.
    """

    __pydantic_config__ = STRICT

    date: Text
    provenance: dict[Text, Text]
    probe: dict[str, Annotated[float, Field(gt=0, lt=1e7, allow_inf_nan=False)]]
    probe_spread: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = field(default_factory=dict)
    estimate: bool = False
    id: Annotated[str, Field(pattern=r"^[0-9a-z-]{0,40}$")] = field(default="", compare=False)

    @property
    def cache_mb(self) -> float:
        """The size of the last-level cache in megabytes, from the provenance; 0 if it is not known."""
        try:
            size = float(self.provenance.get("cache_mb", "0"))
        except ValueError:
            return 0.0
        return size if 0 < size < math.inf else 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """A measured layer and the index of its session.

    `cache_use` is the fraction of the last-level cache, up to 1, that was filled by the weights of the
    networks in which the layer was measured; None if the size of the cache is not known. Wider networks evict
    more of the layer's weights.
    """

    __pydantic_config__ = STRICT

    layer: LayerSpec
    setting: Setting
    stat: LatencyStat
    session: int
    cache_use: float | None = None


@dataclass(frozen=True)
class Failure:
    """A layer that the runtime could not run, with its reason; networks that contain it are never chosen."""

    __pydantic_config__ = STRICT

    layer: LayerSpec
    setting: Setting
    error: str
    session: int


@dataclass(frozen=True)
class Calibration:
    """Whole network = offset_ms + scale * sum of its layers + memory_ms_per_mb * evicted, for one model.

    Fitted on `fitted` whole subnets. The errors are those on `held_out` subnets, each predicted by a fit on
    all others: mean absolute relative error, fractions within 5 and 10 %, Spearman's rank correlation;
    `noise` is the mean relative difference between two measurements of a subnet. All are None for an
    estimate, which uses the plain sums. `evicted` are the megabytes of weights that come from memory because
    the network fills more of the last-level cache (`cache_mb`) than the networks in which its layers were
    measured.
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
    memory_ms_per_mb: Annotated[float, Field(ge=0)] = 0.0
    cache_mb: Annotated[float, Field(ge=0)] = 0.0

    def whole_ms(self, layers_ms: np.ndarray, evicted_mb: np.ndarray | float = 0.0) -> np.ndarray:
        """Latencies in ms of networks with these sums of layers; see `failed.py`."""
        whole = self.offset_ms + self.scale * layers_ms + self.memory_ms_per_mb * evicted_mb
        return np.where(runs(layers_ms), whole, layers_ms)
