"""The result of training: supernets, or the network itself in a run without a supernet."""

from typing import Literal

from bcnet.errors import ArtifactError
from bcnet.pipeline.results.values import StageResult
from bcnet.runs import Stage, read_json

EARLIER_RECORDS = "records.json"  # of a training; now there is a line for each step beside each supernet


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
    """The network itself, in a run without a supernet: "given" with its weights, or "trained" here."""

    stage: Literal["train"] = "train"
    folder: str
    network: Literal["given", "trained"]
    metric: str
    groups: int
    epochs: int
    test_accuracy: float
    seconds: float


def training_steps(stage: Stage) -> list[tuple[tuple[int, ...], float]]:
    """Widths and loss of every step of an earlier version's training. Raises ArtifactError."""
    path = stage.path(EARLIER_RECORDS)
    try:  # no model: there may be millions
        return [(tuple(widths), float(loss)) for widths, loss in read_json(path, stage.command)]
    except (TypeError, ValueError):
        raise ArtifactError(f"{path} is not what train wrote; run `{stage.command}` again") from None
