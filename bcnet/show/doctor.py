"""Print the checks of a device."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bcnet.show.tables import put

if TYPE_CHECKING:
    from bcnet.doctor import Step

MARKS = {True: "ok", False: "NO", None: "?"}


def show_steps(steps: "Sequence[Step]") -> None:
    """Print each check, its finding, and the fix if it failed."""
    for step in steps:
        put(f"{MARKS[step.passed]:<3} {step.name}")
        for text in (step.found, step.fix and f"-> {step.fix}"):
            if text:
                put(f"    {text}")
