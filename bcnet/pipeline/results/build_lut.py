"""What is known of a latency table: measured, or calculated from the device's roofline."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from bcnet.latency_tables.rows import Calibration
from bcnet.pipeline.results.values import StageResult, Target, Values


class PrecisionTable(Values):
    """The content of `TableSummary` for the table of a further precision."""

    precision: str
    rows_measured: int
    rows_used: int
    rows_failed: int
    seconds: float
    calibration: Calibration


class TableSummary(StageResult):
    """A measured latency table: the numbers of rows measured now and of this network's, and what they took.

    Rows are measured in so many whole `networks`. `precisions` are the tables of further precisions, if any.
    """

    ABSENT: ClassVar[frozenset[str]] = frozenset({"precisions"})
    FILE: ClassVar[str] = "report.json"

    stage: Literal["build-lut"] = "build-lut"
    folder: str
    table: str
    device: str
    target: Target
    rows_measured: int
    rows_used: int
    rows_failed: int = 0
    networks: int
    seconds: float
    recorded: str | None = None
    calibration: Calibration
    precisions: tuple[PrecisionTable, ...] | None = None


class EstimateSummary(StageResult):
    """A latency table that was calculated from the device's roofline."""

    FILE: ClassVar[str] = "report.json"

    stage: Literal["build-lut"] = "build-lut"
    estimate: Literal[True] = True
    folder: str
    table: str
    device: str
    target: Target
    rows_measured: int = 0
    rows_used: int
    full_ms: float
    narrowest_ms: float
    peaks: str | None
    shares: Mapping[str, float]
    fitted_on: str
    off_there: Mapping[str, Any] | None
