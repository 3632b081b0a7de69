"""What a build has measured so far, so that a killed one continues where it was.

In: the times of one network's layers, after each network. Out: the same, when the build is started again.
A journal lies beside its table and is deleted when its rows are in there.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bcnet.artifacts import digest
from bcnet.errors import TableError
from bcnet.locks import Locked, locked
from bcnet.progress import say
from bcnet.sealed import SealedLines


@dataclass(frozen=True)
class Entry:
    """One network in one pass: its layers' milliseconds, or its own, or why the runtime could not run it."""

    number: int  # of the pass
    widths: tuple[int, ...]
    layers_ms: tuple[tuple[float, ...], ...] = ()  # (layers, runs)
    whole_ms: float | None = None  # of a whole network that calibrates
    probe_ms: Mapping[str, float] | None = None  # read just before
    error: str = ""


class Journal:
    """A file of one sealed JSON value per line. Its name identifies the model and the setting measured."""

    def __init__(self, table: Path | None, of: Mapping[str, Any], belongs_to: Mapping[str, Any]) -> None:
        """The journal of a build of the file `table`; without a file it is kept in memory only.

        `of` is the model and its setting: the journal of another one has another name, and is left alone.
        `belongs_to` is what else the entries depend on: those of a build with other values are not used.
        Raises TableError where the file cannot be read.
        """
        self.path = journal_of(table, of) if table else None
        self.entries: list[Entry] = []
        self._lines: SealedLines | None = None
        if self.path is None:
            return
        try:
            self._lines = SealedLines(self.path, belongs_to)
            self.entries = [_entry(value) for value in self._lines.values]
        except (ValueError, TypeError, KeyError, AttributeError) as cause:
            raise TableError(f"{self.path} cannot be read ({cause}); delete it to measure again") from None
        if self._lines.dropped:
            say(f"{self.path}: {self._lines.dropped}; what was measured from there on is measured again")

    def add(self, entry: Entry) -> None:
        """Keep one more network; it survives the process when this returns."""
        if self._lines is not None:
            self._lines.append(asdict(entry))
        self.entries.append(entry)

    def close(self) -> None:
        """Delete it: its rows are in the table."""
        if self._lines is not None:
            self._lines.remove()


def journal_of(table: Path, of: Mapping[str, Any]) -> Path:
    """Path of the journal for that model and setting; it exists where a build was stopped."""
    return table.with_name(f".{table.stem}.{digest(dict(of))}.jsonl")


@contextmanager
def alone(table: Path) -> Iterator[None]:
    """Keep other builds away from a table's file for the length of the block; a second one waits."""
    with ExitStack() as held:
        try:
            held.enter_context(locked(table))
        except Locked:
            say(f"another build is adding to {table}; waiting until it is done")
            held.enter_context(locked(table, wait=True))
        yield


def _entry(raw: dict[str, Any]) -> Entry:
    probe = raw["probe_ms"]
    return Entry(
        number=int(raw["number"]),
        widths=tuple(int(width) for width in raw["widths"]),
        # The profiler's overhead is subtracted, so a layer that does almost nothing may get a negative time.
        layers_ms=tuple(tuple(_ms(ms, -math.inf) for ms in runs) for runs in raw["layers_ms"]),
        whole_ms=None if raw["whole_ms"] is None else _ms(raw["whole_ms"]),
        probe_ms=None if probe is None else {str(part): _ms(ms) for part, ms in probe.items()},
        error=str(raw["error"]),
    )


def _ms(value: Any, least: float = 0.0) -> float:
    if not (math.isfinite(value) and value >= least):
        raise ValueError(f"a time of {value} ms")
    return float(value)
