"""Who can follow a command, beside its log: a file an observer, of bcnet or of another package.

In: the names in `observers` of bcnet.toml. Out: observers, called with every event (`bcnet/events.py`).
docs/guides/following-a-run.md shows how to add one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from bcnet.errors import FOREIGN, ConfigError, explaining, one_line
from bcnet.events import Event, Observer
from bcnet.progress import say
from bcnet.registry import OBSERVERS, ObserverKind


@dataclass(frozen=True)
class Followed:
    """The command that is followed: its name, the folder of its run, and the settings by dotted names."""

    command: str
    folder: Path
    settings: Mapping[str, Any]


def observer(name: str, summary: str) -> Callable[[Callable[[Followed], Observer]], Any]:
    """Register a function that makes an observer of a command under a name for `observers`."""

    def register(function: Callable[[Followed], Observer]) -> Callable[[Followed], Observer]:
        OBSERVERS.add(ObserverKind(name, function, summary))
        return function

    return register


def imported(module: str, package: str, extra: str) -> ModuleType:
    """A module of an optional package. Raises ConfigError with the command that installs it."""
    try:
        return import_module(module)
    except ImportError:
        raise ConfigError(
            f'the observer "{extra}" needs the package {package}: pip install "bcnet[{extra}]", or remove it '
            "from observers"
        ) from None


class Guarded:
    """An observer of a name whose failure is reported once and does not end the command."""

    def __init__(self, name: str, followed: Followed) -> None:
        """Make the observer. Raises ConfigError where that fails: before any work is done."""
        self._name, self._failed = name, False
        with explaining(ConfigError, f"the observer '{name}' failed"):
            self._observer: Observer = OBSERVERS[name].function(followed)

    def __call__(self, event: Event) -> None:
        """Pass the event on."""
        self._call(lambda: self._observer(event))

    def close(self) -> None:
        """Close the observer."""
        self._call(self._observer.close)

    def _call(self, function: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            function()
        except FOREIGN as cause:
            self._failed = True
            say(f"the observer '{self._name}' failed and is not called any more: {one_line(cause)}")


def figures(event: Event) -> dict[str, float]:
    """The figures of an event by names for a diagram, such as `training the supernet/loss`."""
    task = event.values.get("task", event.name)
    return {
        f"{task}/{key}": float(value)
        for key, value in event.values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and key not in ("step", "steps")
    }


__all__ = ["Event", "Followed", "Observer", "figures", "imported", "observer"]
