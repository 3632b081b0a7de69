"""What each stage found: one model a stage, in the file of its name. `values.py`: what all have in common."""

from bcnet.pipeline.results.build_lut import EstimateSummary, PrecisionTable, TableSummary
from bcnet.pipeline.results.compare import AccuracyDifference, ComparedNetwork, CompareSummary, TimedOnDevice
from bcnet.pipeline.results.export import (
    AgainstOriginal,
    Answers,
    ExportSummary,
    FurtherExport,
    PreprocessReport,
    VerifyReport,
)
from bcnet.pipeline.results.search import (
    LOSSES,
    FurtherSearched,
    OnDevice,
    PrecisionFound,
    ScoredNetwork,
    SearchSummary,
    scored_networks,
)
from bcnet.pipeline.results.slice import FurtherSliced, SliceSummary
from bcnet.pipeline.results.train import EARLIER_RECORDS, NetworkSummary, SupernetSummary, training_steps
from bcnet.pipeline.results.values import (
    AccuracyLost,
    Budgeted,
    Figure,
    StageResult,
    Target,
    Values,
    parsed,
    target_named,
)

__all__ = [
    "EARLIER_RECORDS",
    "LOSSES",
    "AccuracyDifference",
    "AccuracyLost",
    "AgainstOriginal",
    "Answers",
    "Budgeted",
    "CompareSummary",
    "ComparedNetwork",
    "EstimateSummary",
    "ExportSummary",
    "Figure",
    "FurtherExport",
    "FurtherSearched",
    "FurtherSliced",
    "NetworkSummary",
    "OnDevice",
    "PrecisionFound",
    "PrecisionTable",
    "PreprocessReport",
    "ScoredNetwork",
    "SearchSummary",
    "SliceSummary",
    "StageResult",
    "SupernetSummary",
    "TableSummary",
    "Target",
    "TimedOnDevice",
    "Values",
    "VerifyReport",
    "parsed",
    "scored_networks",
    "target_named",
    "training_steps",
]
