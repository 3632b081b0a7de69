"""Lines on stderr while a command works. In: its events. Out: a line an epoch without a terminal; with
`--verbose` a line for every event.
"""

from collections.abc import Callable
from time import monotonic
from typing import Any

from bcnet.events import Event
from bcnet.plain import loss_text
from bcnet.progress import on_terminal, print_line

OFTEN = 1.0  # seconds: epochs that follow sooner are not all printed


class EventLines:
    """Prints epochs, or all events."""

    def __init__(self, *, verbose: bool, clock: Callable[[], float] = monotonic) -> None:
        self._verbose, self._clock = verbose, clock
        self._printed = -OFTEN

    def __call__(self, event: Event) -> None:
        """Print the event, if it is for a person to read now."""
        if event.name == "message":
            return  # printed already
        if event.name == "epoch":
            last = event.values["step"] == event.values["steps"]
            due = last or self._clock() - self._printed >= OFTEN
            if self._verbose or (due and not on_terminal()):
                self._printed = self._clock()
                print_line(_epoch(event.values))
        elif self._verbose:
            print_line(_any(event))

    def close(self) -> None:
        """Nothing is open."""


def _epoch(values: Any) -> str:
    return (
        f"{values['task']}: epoch {values['step']} of {values['steps']}, loss {loss_text(values['loss'])}, "
        f"rate {values['learning_rate']:.3g}, {values['seconds']:.0f} s"
    )


def _any(event: Event) -> str:
    words = [f"{key} {_text(value)}" for key, value in event.values.items() if key != "result"]
    return f"{event.name}: {', '.join(words)}"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "-".join(map(str, value))
    return str(value)
