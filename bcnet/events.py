"""What happens during a command. In: an event's name and values. Out: calls of those who observe the command.

Epochs, generations, measured networks, stages and messages are reported where they happen; without an
observer that costs nothing.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Event:
    """Something that happened: its name, values that JSON can hold, seconds since 1970.

    Names and values: docs/guides/following-a-run.md.
    """

    name: str
    values: Mapping[str, Any]
    at: float = field(default_factory=time.time)


class Observer(Protocol):
    """Who is called with the events of one command, in its process."""

    def __call__(self, event: Event) -> None:
        """Take note of an event."""

    def close(self) -> None:
        """The command has ended."""


_observers: list[Observer] = []


def emit(name: str, **values: Any) -> None:
    """Call all observers with an event."""
    if _observers:
        event = Event(name, values)
        for observer in tuple(_observers):
            observer(event)


def is_observed() -> bool:
    """Whether anybody would be called: what an event costs beyond the work itself is saved otherwise."""
    return bool(_observers)


def followed_stage(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate the function of a stage: its beginning and end are events, with the result's JSON values."""

    def following(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def followed(*args: P.args, **kwargs: P.kwargs) -> R:
            start = time.perf_counter()
            emit("stage started", stage=name)
            result = function(*args, **kwargs)
            summary = result.to_json() if hasattr(result, "to_json") else None
            emit("stage finished", stage=name, seconds=time.perf_counter() - start, result=summary)
            return result

        return followed

    return following


@contextmanager
def observed(observers: Sequence[Observer]) -> Iterator[None]:
    """Add observers for the length of the block, and close them."""
    before = len(_observers)
    _observers.extend(observers)
    try:
        yield
    finally:
        del _observers[before:]
        for observer in observers:
            observer.close()


@contextmanager
def unobserved() -> Iterator[None]:
    """Report no events for the length of the block: what it does is only a trial."""
    before = tuple(_observers)
    _observers.clear()
    try:
        yield
    finally:
        _observers[:] = before
