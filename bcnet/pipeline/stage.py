"""What a stage is, and all of them in the order in which they run."""

from typing import Protocol

from bcnet.pipeline import build_lut, compare, export, search, slice, train
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.results import StageResult
from bcnet.runs import Run


class PipelineStage(Protocol):
    """A module of this folder. It is made again where its inputs are others than its manifest records."""

    def stage_inputs(self, run: Run, problem: Problem) -> dict[str, str]:
        """All that the stage's result depends on. Raises ArtifactError where an earlier stage is missing."""

    def run(self, run: Run, problem: Problem) -> StageResult:
        """Make the stage's result from those of earlier stages, and save it in the run's folder."""


STAGES: dict[str, PipelineStage] = {
    "train": train,
    "build-lut": build_lut,
    "search": search,
    "slice": slice,
    "export": export,
    "compare": compare,
}
