"""Progress bars and messages, always on stderr, because stdout is for results."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bcnet.plain import LONGEST, plain

stderr = Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """Print a message of one line."""
    stderr.print(plain(message, LONGEST), markup=False, soft_wrap=True)


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar of `total` steps; yields a function that advances it by one and can show a note."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task(description, total=total, note="")

        def advance(note: str = "") -> None:
            bar.update(task, advance=1, note=note)

        yield advance


@contextmanager
def working(description: str) -> Iterator[None]:
    """A spinner for a step of some seconds with unknown duration."""
    if stderr.is_terminal:
        with stderr.status(description):
            yield
    else:
        yield


def announce(what: str, seconds: float) -> None:
    """Report how long a step will take, if it is more than a minute."""
    if seconds > 60:
        say(f"{what}: about {seconds / 60:.0f} min" if seconds >= 120 else f"{what}: about {seconds:.0f} s")
