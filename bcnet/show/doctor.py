"""Print the checks of a device, and what a configuration costs there."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bcnet.progress import duration
from bcnet.show.tables import columns, put, short_count

if TYPE_CHECKING:
    from bcnet.doctor import Step
    from bcnet.pipeline.cost import Cost

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


def _bytes(count: int | None) -> str:
    return f"{short_count(count)}B" if count else ""
