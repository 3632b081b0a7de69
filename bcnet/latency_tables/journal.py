"""What a build has measured so far, so that a killed one continues where it was.

In: what one network's layers took, after each network. Out: the same again, when the build is started anew.
A journal lies beside its table and is deleted when its rows are in there.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bcnet.artifacts import digest
from bcnet.errors import TableError
from bcnet.locks import Locked, locked
from bcnet.progress import say


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
    """A file of one JSON value a line. Its name tells the build that it belongs to."""

    def __init__(self, table: Path | None, belongs_to: Mapping[str, Any]) -> None:
        """The journal of a build of the file `table`; without a file it is kept in memory only.

        That of another build (model, setting, versions) has another name, and is left alone.
        """
        self.path = table and table.with_name(f".{table.stem}.{digest(dict(belongs_to))}.jsonl")
        self.entries: list[Entry] = []
        if self.path is not None and self.path.exists():
            self._read(self.path)

    def _read(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # a last line that was cut short was not measured
        try:
            self.entries = [_entry(json.loads(line)) for line in whole.splitlines()]
        except (ValueError, TypeError, KeyError) as cause:
            raise TableError(f"{path} cannot be read ({cause}); delete it to measure anew") from None
        if len(whole) < len(text):
            path.write_text(whole, encoding="utf-8")

    def add(self, entry: Entry) -> None:
        """Keep one more network; it survives the process when this returns."""
        self.entries.append(entry)
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(entry)) + "\n")

    def close(self) -> None:
        """Delete it: its rows are in the table."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


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
    layers = tuple(tuple(float(ms) for ms in runs) for runs in raw["layers_ms"])
    if layers and not np.isfinite(np.concatenate([np.asarray(runs) for runs in layers])).all():
        raise ValueError("a time that is no number")
    whole = raw["whole_ms"]
    if whole is not None and not np.isfinite(whole):
        raise ValueError("a time that is no number")
    return Entry(
        number=int(raw["number"]),
        widths=tuple(int(width) for width in raw["widths"]),
        layers_ms=layers,
        whole_ms=None if whole is None else float(whole),
        probe_ms=raw["probe_ms"],
        error=str(raw["error"]),
    )
