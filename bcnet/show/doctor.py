"""Print the checks of a device, what a configuration costs there, and what a run would do."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bcnet.plain import duration
from bcnet.show.tables import columns, put, short_count

if TYPE_CHECKING:
    from bcnet.doctor import Step
    from bcnet.pipeline.cost import Cost
    from bcnet.pipeline.planned import PlannedStage

MARKS = {True: "ok", False: "NO", None: "?"}


def show_steps(steps: "Sequence[Step]") -> None:
    """Print each check, its finding, and the fix if it failed."""
    for step in steps:
        put(f"{MARKS[step.passed]:<3} {step.name}")
        for text in (step.found, step.fix and f"-> {step.fix}"):
            if text:
                put(f"    {text}")


def show_costs(stages: "Sequence[Cost]") -> None:
    """Print the time and memory of each stage, and what these estimates are of."""
    known = [own.seconds for own in stages if own.seconds is not None]
    rows = [
        [
            own.stage,
            "?" if own.seconds is None else duration(own.seconds),
            _bytes(own.memory),
            _bytes(own.gpu_memory),
        ]
        for own in stages
    ]
    put(
        "",
        *columns(["stage", "time", "memory", "on the GPU"], [*rows, ["all", duration(sum(known)), "", ""]]),
    )
    put("", *(f"{own.stage}: {own.basis}" for own in stages))


def show_planned(stages: "Sequence[PlannedStage]") -> None:
    """Print which stages would run, about how long each takes, and why."""
    rows = [
        ("stage", "takes", "why"),
        *(
            (own.name, "", "already done")
            if own.reason is None
            else (own.name, "?" if own.seconds is None else duration(own.seconds), own.reason)
            for own in stages
        ),
        ("all", duration(sum(own.seconds or 0.0 for own in stages)), ""),
    ]
    put(*(f"{name:<10} {takes:>9}  {why}".rstrip() for name, takes, why in rows))


def _bytes(count: int | None) -> str:
    return f"{short_count(count)}B" if count else ""
