"""What slicing made: the small network and its training."""

from typing import ClassVar, Literal

from bcnet.pipeline.results.values import AccuracyLost, Budgeted, StageResult


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
            *("preprocess_ms", "discarded_epochs", "lower_rate", "further", "original"),
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
    original: AccuracyLost | None = None  # on the same images, where the original's weights are trained
    params: int
    macs: int
    further: tuple[FurtherSliced, ...] | None = None
