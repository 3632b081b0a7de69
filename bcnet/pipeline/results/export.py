"""What exporting delivered: the file, and what its verification found on each device."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from bcnet.latency_tables.rows import LatencyStat
from bcnet.pipeline.results.values import AccuracyLost, Budgeted, Figure, StageResult, Values


class AgainstOriginal(AccuracyLost):
    """What the exported network loses and gains compared with the original one."""

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
    reported, and accuracy decides; in floats with binary layers the median image is held to the tolerance,
    because a sum within rounding of a threshold may have either sign); `packed_bytes` is the size of the
    constants with binary weights in one bit each, where there are any; `failures` describe what did not pass.
    `measured` is the fastest of several measurements that alternate with those of `full`; `noise` is the
    relative difference between the slowest of one network and its fastest, `notes` what to know about it.
    `executed` is whether the file, or the engine that was built from it, ran on its device: else
    `not_verified` says why not, `measured` and `full` are None, and all else was checked with ONNX Runtime on
    this processor. `passed` is whether every check that could be made passed, `verified` whether the latency
    on the device is among them. With `preprocess`, all of this is about files that pre-process their images.
    """

    ABSENT: ClassVar[frozenset[str]] = frozenset({"preprocess", "packed_bytes"})

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
    packed_bytes: int | None = None
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
    """The verification of a further device's file on that device; other files as in `ExportSummary`."""

    ABSENT: ClassVar[frozenset[str]] = VerifyReport.ABSENT | {"predicted_for", "onnx_file", "one_bit_file"}

    device: str
    file: str
    one_bit_file: str | None = None
    recorded: str | None = None
    verify_with: str | None = None
    predicted_for: str | None = None
    onnx_file: Mapping[str, Any] | None = None


class ExportSummary(VerifyReport, _Exported):
    """The exported file, its verification, and how it compares with the original network.

    With `further` devices, `passed`, `verified`, `failures` and `not_verified` cover all devices, everything
    else is about the first one. `verify_with` says what to do if it is not verified here. Where an engine was
    built, `predicted_for` is the runtime of the prediction, and `onnx_file` what was found of the ONNX file
    on this processor. `one_bit_file` is the form of a binary network's file that the device's runtime needs
    for its 1-bit kernels.
    """

    ABSENT: ClassVar[frozenset[str]] = FurtherExport.ABSENT | {"further"}

    original: AgainstOriginal = AgainstOriginal()
    one_bit_file: str | None = None
    verify_with: str | None
    predicted_for: str | None = None
    onnx_file: Mapping[str, Any] | None = None
    further: tuple[FurtherExport, ...] | None = None
