"""What `bcnet run` would do. In: a run and a problem. Out: each stage, why it would run, what that takes."""

from dataclasses import dataclass

from bcnet.pipeline import cost
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.stage import STAGES
from bcnet.pipeline.trial import Trial
from bcnet.runs import MANIFEST, NOT_DONE, Run

INDEPENDENT = ("build-lut",)  # of the results of stages before


@dataclass(frozen=True)
class PlannedStage:
    """A stage: why it would run (None: its result still matches), and the estimated seconds of that.

    Seconds are None where the stage would not run, or needs a device that is not here.
    """

    name: str
    reason: str | None
    seconds: float | None


def planned(run: Run, problem: Problem) -> list[PlannedStage]:
    """All stages in their order; what follows a stage that would run is assumed to run, too."""
    trial, found, first = Trial(problem), list[PlannedStage](), None
    for name, stage in STAGES.items():
        own = run.stage(name)
        if first is None or name in INDEPENDENT:
            reason = own.outdated(stage.stage_inputs(run, problem))
        else:
            reason = f"follows {first}" if own.path(MANIFEST).exists() else NOT_DONE
        first = first or (name if reason is not None else None)
        found.append(PlannedStage(name, reason, None if reason is None else _seconds(name, trial)))
    return found


def _seconds(name: str, trial: Trial) -> float | None:
    parts = (name, "verify") if name == "export" else (name,)
    seconds = 0.0
    for part in parts:
        function, unknown = cost.STAGES[part]
        if unknown(trial):
            return None
        seconds += function(trial).seconds or 0.0
    return round(seconds, 1)
