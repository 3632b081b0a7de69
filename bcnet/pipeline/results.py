"""What each stage found: one model a stage. In: values, or a file of the run. Out: the other.

The JSON on disk and on stdout is the model's dump. All readers read it through the model, so what files of
earlier versions lack is known here alone: those keys have defaults, and any other file is refused.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    AllowInfNan,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    RootModel,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from bcnet.errors import ArtifactError
from bcnet.latency_tables.rows import Calibration, LatencyStat
from bcnet.runs import Stage, read_json
from bcnet.traits import PrecisionName
from bcnet.width_search.latency_budget import LatencyBudget

EARLIER_RECORDS = "records.json"  # of a training; now there is a line for each step beside each supernet
EARLIER_BUDGET = "budget_ms", "budget_share", "budget_p90"  # keys of earlier versions, replaced by `budget`
LOSSES = "losses.json"  # of single widths, which a search measured

M = TypeVar("M", bound=BaseModel)


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Figure = Annotated[float | None, BeforeValidator(_known)]  # None for what is not finite: JSON has no word
Target = Mapping[str, Any]  # device, batch, threads, precision and host, as settings of a configuration


class Values(BaseModel):
    """A part of a result. Its `ABSENT` keys are left out where they are None; all others are `null` then."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, ser_json_inf_nan="constants")
    ABSENT: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_absent(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = dump(self)
        return {key: value for key, value in found.items() if value is not None or key not in self.ABSENT}

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return self.model_dump(mode="json")


class Budgeted(Values):
    """A part of a result with a latency budget; None if no latency is demanded."""

    budget: LatencyBudget | None

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_versions(cls, values: Any) -> Any:
        """Files of earlier versions have a key for each part of a budget."""
        if not isinstance(values, dict) or "budget_ms" not in values:
            return values
        ms, share, p90 = (values.get(key) for key in EARLIER_BUDGET)
        budget = None if ms is None else {"ms": ms, "share": share, "p90": bool(p90)}
        return {**{key: own for key, own in values.items() if key not in EARLIER_BUDGET}, "budget": budget}


class StageResult(Values):
    """What a stage found. A file without a version is of version 1, and so are all files up to now."""

    VERSION: ClassVar[int] = 1
    FILE: ClassVar[str] = "result.json"

    stage: str

    @classmethod
    def read(cls, stage: Stage) -> Self:
        """The result in a stage's folder, not compared with its manifest.

        Raises ArtifactError with the command that makes it again.
        """
        path = stage.path(cls.FILE)
        return cls.parsed(read_json(path, stage.command), path, stage.command)

    @classmethod
    def checked(cls, stage: Stage) -> Self:
        """The same, where it is what the manifest describes."""
        return cls.parsed(stage.json(cls.FILE), stage.path(cls.FILE), stage.command)

    @classmethod
    def parsed(cls, value: Any, path: Path, command: str) -> Self:
        """The result in `path`, from its JSON value. Raises ArtifactError with the command."""
        if isinstance(value, dict) and value.get("version", 1) != cls.VERSION:
            raise ArtifactError(f"{path} is from another version of bcnet; run `{command}` again")
        return parsed(cls, value, path, command, str(cls.model_fields["stage"].default))


def parsed(model: type[M], value: Any, path: Path, command: str, stage: str) -> M:
    """A model from the JSON value in `path`, which `stage` wrote. Raises ArtifactError with the command."""
    try:
        return model.model_validate_json(json.dumps(value))  # a latency's own rules are strict about objects
    except ValidationError as cause:
        where = ".".join(str(part) for part in cause.errors()[0]["loc"])
        what = f"{path}: {where}" if where else path
        raise ArtifactError(f"{what} is not what {stage} wrote; run `{command}` again") from None


class SupernetSummary(StageResult):
    """Trained supernets; `method` is the rule of their paths, `final_loss` the mean of the last epoch."""

    stage: Literal["train"] = "train"
    folder: str
    method: str
    groups: int
    epochs: int
    supernets: int
    final_loss: float
    seconds: float


class NetworkSummary(StageResult):
    """The network itself, as it was "given" or "trained", where no supernet is."""

    stage: Literal["train"] = "train"
    folder: str
    network: Literal["given", "trained"]
    metric: str
    groups: int
    epochs: int
    test_accuracy: float
    seconds: float


class PrecisionTable(Values):
    """The content of `TableSummary` for the table of a further precision."""

    precision: str
    rows_measured: int
    rows_used: int
    rows_failed: int
    seconds: float
    calibration: Calibration


class TableSummary(StageResult):
    """A measured latency table: rows measured now, rows of this network, networks that showed them.

    `precisions` are the tables of further precisions, if the search compares several.
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


class OnDevice(Values):
    """A network on a further device: its predicted latency, and its measured one if there is one."""

    device: str
    predicted_ms: Annotated[float, Field(ge=0)]
    measured: LatencyStat | None


class ScoredNetwork(Values):
    """A network that a search scored and, if `measured` is given, measured; `further`: on further devices."""

    ABSENT: ClassVar[frozenset[str]] = frozenset({"expected_accuracy", "further"})

    widths: tuple[int, ...]
    predicted_ms: Annotated[float, Field(ge=0)]
    accuracy: float
    loss: Annotated[float, AllowInfNan(True)]
    expected_accuracy: float | None = None  # denoised, of a network on the front
    generation: int
    measured: LatencyStat | None
    further: tuple[OnDevice, ...] | None = None


class _ScoredNetworks(RootModel[list[ScoredNetwork]]):
    pass


class PrecisionFound(Values):
    """What a search found in one of several precisions.

    `accuracy` and `loss` are those of the winner on the validation images, as it would be delivered; networks
    of the front are scored in this precision before fine-tuning.
    """

    precision: PrecisionName
    best: ScoredNetwork
    accuracy: float
    loss: Figure
    front: tuple[ScoredNetwork, ...]
    measured: tuple[ScoredNetwork, ...]
    candidates: int
    full_predicted_ms: float
    note: str


class FurtherSearched(Budgeted):
    """The budget of a search on a further device, and what is known about its latency table."""

    ABSENT: ClassVar[frozenset[str]] = frozenset({"preprocess_ms"})

    device: str
    preprocess_ms: float | None = None
    margin: float
    noise: float | None
    table_error: float | None
    full_predicted_ms: float
    estimate: bool
    recorded: str | None


class SearchSummary(Budgeted, StageResult):
    """The winner of a search and what it was chosen from; docs/reference/json.md explains each key.

    If several precisions were searched, it describes the `precision` that won; `precisions` has all of them,
    the best first.
    """

    ABSENT: ClassVar[frozenset[str]] = frozenset(
        {
            *("precision", "precisions", "preprocess_ms", "fitness", "target_ms", "further"),
            *("max_params", "max_macs", "max_size_mb", "size_mb"),
        }
    )

    stage: Literal["search"] = "search"
    folder: str
    device: str
    metric: str = "accuracy"
    target: Target | None = None  # earlier versions named the device alone
    preprocess_ms: float | None = None  # of the delivered file; already subtracted from the budget here
    min_accuracy: float | None
    fitness: str | None = None
    target_ms: float | None = None
    max_params: float | None = None
    max_macs: float | None = None
    max_size_mb: float | None = None
    best: ScoredNetwork
    params: int
    macs: int
    size_mb: float | None = None
    limit_ms: float | None
    margin: float
    noise: float | None = None
    pareto: int
    front: tuple[ScoredNetwork, ...] = ()
    searched_to_ms: float | None = None
    measured: tuple[ScoredNetwork, ...] = ()
    candidates: int
    full_predicted_ms: float
    estimate: bool = False
    recorded: str | None = None
    table_error: float | None
    groups: tuple[str, ...] = ()
    seed: int
    note: str
    method: str | None = None
    methods: tuple[str, ...] = ()
    criterion: str | None = None
    pruning_passes: int = 0
    pruning_passes_of_all_rounds: int = 0
    precision: PrecisionName | None = None
    precisions: tuple[PrecisionFound, ...] | None = None
    further: tuple[FurtherSearched, ...] | None = None


class FurtherSliced(Budgeted):
    """The small network's budget on a further device, for later stages."""

    ABSENT: ClassVar[frozenset[str]] = frozenset({"preprocess_ms"})

    device: str
    preprocess_ms: float | None = None
    predicted_ms: float


class SliceSummary(Budgeted, StageResult):
    """The small network: its widths, where its weights came from, how it was trained, its accuracies.

    `epochs` led to the weights that were kept; `discarded_epochs` made the network worse. `lower_rate` is the
    learning rate, if that of the settings made it worse. `integer_epochs` are further ones through the
    integers of the INT8 file.
    """

    ABSENT: ClassVar[frozenset[str]] = frozenset(
        {
            *("preprocess_ms", "discarded_epochs", "lower_rate", "further"),
            *("integer_epochs", "discarded_integer_epochs"),
        }
    )

    stage: Literal["slice"] = "slice"
    folder: str
    metric: str = "accuracy"
    widths: tuple[int, ...]
    predicted_ms: float
    preprocess_ms: float | None = None  # as in the search's result
    inherited: str | None = None
    supernet: int | None
    side: str | None
    epochs: int
    discarded_epochs: int | None = None
    lower_rate: float | None = None
    integer_epochs: int | None = None
    discarded_integer_epochs: int | None = None
    pruning_passes: int = 0
    from_scratch: bool
    distilled: bool = False
    test_accuracy_before: float
    test_accuracy_after: float
    params: int
    macs: int
    further: tuple[FurtherSliced, ...] | None = None


class AgainstOriginal(Values):
    """What the exported network loses and gains compared with the original one."""

    accuracy: float | None = None
    state: str | None = None  # "given", "head trained" or "trained"
    accuracy_lost: float | None = None
    median_ms: float | None = None
    speedup: float | None = None


class Answers(Values):
    """Which test images are classified correctly: packed bits in hexadecimal, most significant first.

    `test` is a digest of the images' targets and names; `sources` are those of images that share some.
    """

    ABSENT: ClassVar[frozenset[str]] = frozenset({"sources"})

    test: str
    images: int
    correct: str
    sources: tuple[int, ...] | None = None


class PreprocessReport(Values):
    """What a file's own pre-processing does, and how it compares with Pillow's on the test images.

    `input_size` is the height and width of the images that it takes, `resized_by` the operation that
    interpolates their pixels, None if none has to. `scaled_first` is the number of test images of another
    size. Errors are differences of pixels, from 0 to 255; `agreement` is the share of predictions that equal
    PyTorch's for images scaled by Pillow. `added_ms` is what the search subtracted from the budget, None if
    it was not measured; `without` is the latency of the network alone, measured alternately with the file's.
    """

    input_size: tuple[int, int]
    resized_by: str | None
    scaled_first: int
    pixel_error: Figure
    pixel_error_mean: Figure
    agreement: Figure
    added_ms: float | None = None
    without: LatencyStat | None = None


class VerifyReport(Budgeted):
    """One backend's findings.

    `output_error` is the largest difference to PyTorch, relative to the largest output (at int8 it is
    reported, and accuracy decides); `failures` describe what did not pass. `measured` is the fastest of
    several measurements that alternate with those of `full`; `noise` is the relative difference between the
    slowest of one network and its fastest, `notes` what to know about it. `executed` is whether the file, or
    the engine that was built from it, ran on its device: else `not_verified` says why not, `measured` and
    `full` are None, and all else was checked with ONNX Runtime on this processor. `passed` is whether every
    check that could be made passed, `verified` whether the latency on the device is among them. With
    `preprocess`, all of this is about files that pre-process their images.
    """

    ABSENT: ClassVar[frozenset[str]] = frozenset({"preprocess"})

    backend: str
    precision: str
    executed: bool
    shapes_match: bool
    output_error: Figure
    top1_agreement: Figure
    accuracy_torch: Figure
    accuracy: Figure
    predicted_ms: float
    measured: LatencyStat | None
    full: LatencyStat | None
    size_bytes: int
    failures: tuple[str, ...]
    not_verified: str | None = None
    noise: float | None = None
    notes: tuple[str, ...] = ()
    passed: bool
    verified: bool
    preprocess: PreprocessReport | None = None
    answers: Answers | None = Field(default=None, exclude=True)  # in a file of their own


class _Exported(StageResult):
    FILE: ClassVar[str] = "verify.json"

    stage: Literal["export"] = "export"
    folder: str
    file: str
    device: str
    metric: str = "accuracy"
    estimate: bool = False
    recorded: str | None = None


class FurtherExport(VerifyReport):
    """The verification of a further device's file on that device."""

    device: str
    file: str
    recorded: str | None = None
    verify_with: str | None = None


class ExportSummary(VerifyReport, _Exported):
    """The exported file, its verification, and how it compares with the original network.

    With `further` devices, `passed`, `verified`, `failures` and `not_verified` cover all devices, everything
    else is about the first one. `verify_with` says what to do if it is not verified here. Where an engine was
    built, `predicted_for` is the runtime of the prediction, and `onnx_file` what was found of the ONNX file
    on this processor.
    """

    ABSENT: ClassVar[frozenset[str]] = frozenset({"preprocess", "predicted_for", "onnx_file", "further"})

    original: AgainstOriginal = AgainstOriginal()
    verify_with: str | None
    predicted_for: str | None = None
    onnx_file: Mapping[str, Any] | None = None
    further: tuple[FurtherExport, ...] | None = None


class ComparedNetwork(Values):
    """One network: accuracy of its ONNX file on the test set with a 95 % interval, latency, size.

    Accuracy is the task's metric, where it has another; only a share of images has an interval. `latency` is
    the fastest of the rounds, `rounds_ms` the median of each; `noise` is the relative difference between the
    slowest and the fastest. `passes` are those of the weights that were kept, None for the network as it was
    given; `discarded_passes` and `lower_rate` as in the result of the slice.
    """

    ABSENT: ClassVar[frozenset[str]] = frozenset({"discarded_passes", "lower_rate", "precision"})

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


def scored_networks(stage: Stage, file: str) -> list[ScoredNetwork]:
    """All networks of history.json or pareto.json. Raises ArtifactError."""
    path = stage.path(file)
    return parsed(_ScoredNetworks, read_json(path, stage.command), path, stage.command, stage.name).root


def training_steps(stage: Stage) -> list[tuple[tuple[int, ...], float]]:
    """Widths and loss of every step of an earlier version's training. Raises ArtifactError."""
    path = stage.path(EARLIER_RECORDS)
    try:  # no model: there may be millions
        return [(tuple(widths), float(loss)) for widths, loss in read_json(path, stage.command)]
    except (TypeError, ValueError):
        raise ArtifactError(f"{path} is not what train wrote; run `{stage.command}` again") from None


def target_named(path: Path, command: str) -> Target | None:
    """The target that the result of a table or a search names; None where there is no result.

    All else in the file may be of another version: the command that makes it again must know its target.
    Search results of earlier versions name their device alone.
    """
    found = read_json(path, command) if path.exists() else None
    return found.get("target", {"device": found.get("device")}) if isinstance(found, dict) else None
