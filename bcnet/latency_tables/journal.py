"""Journal of the measurements of a build, so that an interrupted build continues where it stopped.

In: the times of each network's layers, after each network. Out: the same, when the build is started again.
A journal is kept beside its table, and deleted once its rows are in the table.
"""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bcnet.errors import TableError
from bcnet.locks import locked_after_waiting
from bcnet.progress import say
from bcnet.runs import digest
from bcnet.sealed import SealedLines


@dataclass(frozen=True)
class Entry:
    """One network in one pass: times of its layers or of the whole, or why the runtime could not run it."""

    number: int  # number of the pass
    widths: tuple[int, ...]
    layers_ms: tuple[tuple[float, ...], ...] = ()  # (layers, runs)
    whole_ms: float | None = None  # time of a whole network, for the calibration
    probe_ms: Mapping[str, float] | None = None  # the reference microbenchmark just before
    error: str = ""


class Journal:
    """A file of one sealed JSON value per line. Its name identifies the model and the setting measured."""

    def __init__(self, table: Path | None, of: Mapping[str, Any], belongs_to: Mapping[str, Any]) -> None:
        """The journal of a build of the file `table`; None: it is kept in memory only.

        `of` is the model and its setting, which determine the journal's name: journals of others are left
        unchanged. `belongs_to` is what else the entries depend on: entries with other values are not used.
        Raises TableError if the file cannot be read.
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
            say(f"{self.path}: {self._lines.dropped}; the measurements after that are repeated")

    def add(self, entry: Entry) -> None:
        """Add a network; it is on disk when this returns."""
        if self._lines is not None:
            self._lines.append(asdict(entry))
        self.entries.append(entry)

    def close(self) -> None:
        """Delete the journal, once its rows are in the table."""
        if self._lines is not None:
            self._lines.remove()


def journal_of(table: Path, of: Mapping[str, Any]) -> Path:
    """The path of the journal for that model and setting; it exists if a build was interrupted."""
    return table.with_name(f".{table.stem}.{digest(dict(of))}.jsonl")


def alone(table: Path) -> AbstractContextManager[None]:
    """Hold the exclusive lock of a table's file during the block; another build waits for it."""
    return locked_after_waiting(
        table, lambda: say(f"another build is adding to {table}; waiting until it is done")
    )


def _entry(raw: dict[str, Any]) -> Entry:
    probe = raw["probe_ms"]
    return Entry(
        number=int(raw["number"]),
        widths=tuple(int(width) for width in raw["widths"]),
        # The profiler's overhead is subtracted, so a layer that does almost nothing may have a negative time.
        layers_ms=tuple(tuple(_ms(ms, -math.inf) for ms in runs) for runs in raw["layers_ms"]),
        whole_ms=None if raw["whole_ms"] is None else _ms(raw["whole_ms"]),
        probe_ms=None if probe is None else {str(part): _ms(ms) for part, ms in probe.items()},
        error=str(raw["error"]),
    )


def _ms(value: Any, least: float = 0.0) -> float:
    if not (math.isfinite(value) and value >= least):
        raise ValueError(f"a time of {value} ms")
    return float(value)
