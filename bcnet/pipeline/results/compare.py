"""What the comparison found: networks side by side."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from bcnet.latency_tables.rows import LatencyStat
from bcnet.pipeline.results.values import Budgeted, StageResult, Values
from bcnet.traits import PrecisionName


class TimedOnDevice(Values):
    """One network on a further device, by the file for that device; keys as those of the first one."""

    device: str
    latency: LatencyStat
    rounds_ms: tuple[float, ...]
    noise: float


class ComparedNetwork(Values):
    """One network: accuracy of its ONNX file on the test set with a 95 % interval, latency, size.

    Accuracy is the task's metric, where it has another; only a share of images has an interval. `latency` is
    the fastest of the rounds, `rounds_ms` the median of each; `noise` is the relative difference between the
    slowest and the fastest. `passes` are those of the weights that were kept, None for the network as it was
    given; `discarded_passes` and `lower_rate` as in the result of the slice.
    """

    ABSENT: ClassVar[frozenset[str]] = frozenset({"discarded_passes", "lower_rate", "precision", "further"})

    name: str
    widths: tuple[int, ...]
    accuracy: float
    accuracy_low: float | None
    accuracy_high: float | None
    latency: LatencyStat
    rounds_ms: tuple[float, ...]
    noise: float
    params: int
    macs: int
    size_bytes: int
    passes: int | None
    discarded_passes: int | None = None
    lower_rate: float | None = None
    precision: PrecisionName | None = None  # where networks of several are compared
    further: tuple[TimedOnDevice, ...] | None = None  # on further devices that were measured


class AccuracyDifference(Values):
    """How much more accurate the found network is than the uniform one, with its 95 % interval."""

    found: str
    uniform: str
    difference: float
    low: float
    high: float

    @property
    def separated(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


class CompareSummary(Budgeted, StageResult):
    """The networks side by side; `better` are settings under [slice] that deliver a better network.

    `difference` is None where there is no uniform network, and where the metric is not accuracy.
    """

    ABSENT: ClassVar[frozenset[str]] = frozenset({"difference"})

    stage: Literal["compare"] = "compare"
    device: str
    predicted_ms: float
    metric: str
    test_images: int
    passes: int
    original: str | None = None
    networks: tuple[ComparedNetwork, ...]
    not_separable: tuple[tuple[str, str], ...]
    difference: AccuracyDifference | None = None
    notes: tuple[str, ...]
    file: str
    better: Mapping[str, bool | int] | None = None
