"""Progress bars and messages, always on stderr, because stdout is for results.

Without a terminal, as in a log, a plain line says what is going on where nothing else did for a while.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bcnet.events import emit
from bcnet.plain import LONGEST, duration, plain

stderr = Console(stderr=True, highlight=False, force_jupyter=False)
SILENT = 30.0  # seconds without a line


class Silence:
    """How long nothing was printed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.since = clock()

    @property
    def long(self) -> bool:
        """Whether a line is due."""
        return self.clock() - self.since >= SILENT

    def end(self) -> None:
        """Something was printed."""
        self.since = self.clock()


silence = Silence()


@dataclass(frozen=True)
class Part:
    """One of several steps that take about as long: how many follow it, and when it began."""

    later: int
    start: float


_part: ContextVar[Part | None] = ContextVar("part", default=None)


@contextmanager
def part_of(number: int, count: int) -> Iterator[None]:
    """The block is step `number`, from 0, of `count` that take about as long: bars in it tell that of all."""
    before = _part.set(Part(count - 1 - number, silence.clock()))
    try:
        yield
    finally:
        _part.reset(before)


def say(message: str) -> None:
    """Print a message of one line, and report it as an event."""
    print_line(message)
    emit("message", text=message)


def print_line(message: str) -> None:
    """Print a line."""
    silence.end()
    stderr.print(plain(message, LONGEST), markup=False, soft_wrap=True)


def on_terminal() -> bool:
    """Whether lines can be redrawn. With FORCE_COLOR, as in notebooks, rich takes any pipe for a terminal."""
    return stderr.is_terminal and stderr.file.isatty()


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar of `total` steps; yields a function that advances it by one and can show a note."""
    if not on_terminal():
        yield _plain_progress(description, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=stderr, transient=True) as bar:
        task = bar.add_task(description, total=total, note="")

        def advance(note: str = "") -> None:
            bar.update(task, advance=1, note=note)

        yield advance


def _plain_progress(description: str, total: int) -> Callable[[str], None]:
    """The same in lines, for logs."""
    start, done, part = silence.clock(), 0, _part.get()

    def advance(note: str = "") -> None:
        nonlocal done
        done += 1
        if silence.long and done < total:
            left = (silence.clock() - start) / done * (total - done)
            shown = [f"{done} of {total}", note, f"about {duration(left)} left"]
            if part is not None and part.later > 0:
                of_each = silence.clock() - part.start + left
                shown.append(f"{duration(left + part.later * of_each)} for all")
            say(f"{description}: {', '.join(text for text in shown if text)}")

    return advance


@contextmanager
def working(description: str) -> Iterator[None]:
    """A spinner for a step of some seconds with unknown duration."""
    if on_terminal():
        with stderr.status(description):
            yield
    else:
        if silence.long:
            say(description)
        yield


def announce(what: str, seconds: float) -> None:
    """Report how long a step will take, if it is more than a minute."""
    if seconds > 60:
        say(f"{what}: about {duration(seconds)}")
