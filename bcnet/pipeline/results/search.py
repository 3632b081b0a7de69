"""What a search found: the winner, what it was chosen from, and both on further devices."""

from typing import Annotated, ClassVar, Literal

from pydantic import AllowInfNan, Field, RootModel

from bcnet.latency_tables.rows import LatencyStat
from bcnet.pipeline.results.values import Budgeted, Figure, StageResult, Target, Values, parsed
from bcnet.runs import Stage, read_json
from bcnet.traits import PrecisionName

LOSSES = "losses.json"  # of single widths, which a search measured


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


def scored_networks(stage: Stage, file: str) -> list[ScoredNetwork]:
    """All networks of history.json or pareto.json. Raises ArtifactError."""
    path = stage.path(file)
    return parsed(_ScoredNetworks, read_json(path, stage.command), path, stage.command, stage.name).root
