"""Read and write the JSON file of a latency table: validated, migrated, and in a stable order for review.

In: a path, or a table's content. Out: the content, or the file's text. The lines that `text_of` writes are
read in batches, which is fast for a million rows; other formatting is read as ordinary JSON.
"""

import contextlib
import gc
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from itertools import groupby, islice, repeat
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from bcnet.errors import TableError
from bcnet.latency_tables.layout import (
    FILE,
    LINES,
    SCHEMA,
    Line,
    explained,
    json_schema,
    migrated,
    row_text,
)
from bcnet.latency_tables.rows import Calibration, Failure, LayerSpec, Row, Session, Setting
from bcnet.latency_tables.seals import (
    UNSEALED,
    Edit,
    base_of,
    edited_row,
    edited_session,
    row_seal,
    session_seal,
)
from bcnet.plain import plain, shown
from bcnet.reading import JSON_BYTES
from bcnet.runs import digest

__all__ = ["Content", "json_schema", "read", "text_of"]

# The end of the line before a setting's rows, and the beginning of each row.
OPENS, ROW = b'"rows": [\n', b'   {"layer": {"op": '
BATCH = 4000  # rows
LONGEST_LINE = 2**20  # maximum number of bytes that are read at once
_sides = attrgetter(*(f.name for f in fields(LayerSpec)))


def _order(line: Line) -> Any:
    """A sort key with the order of layers, much faster than comparing them."""
    return _sides(line.layer)


@dataclass
class Content:
    """The content of a table. `sealed`: whether its file has seals; files of earlier versions have none."""

    device: str
    sessions: list[Session] = field(default_factory=list)
    rows: dict[tuple[LayerSpec, Setting], Row] = field(default_factory=dict)
    failures: dict[tuple[LayerSpec, Setting], Failure] = field(default_factory=dict)
    calibrations: dict[tuple[str, Setting], Calibration] = field(default_factory=dict)
    sealed: bool = field(default=True, compare=False)


def read(path: Path) -> Content:
    """The content of a file. Raises TableError if it is missing, truncated, edited, or has another schema."""
    content, edits = read_with_edits(path)
    if edits:
        rows = sum(edit.is_row for edit in edits)
        more = f" (the first of {rows} rows)" if rows > 1 else ""
        raise TableError(
            f"{path}: {edits[0]}{more}; restore the file, or, if the edit is meant, run "
            f"`bcnet lut accept-edit --table {path}`"
        )
    return content


def read_with_edits(path: Path) -> tuple[Content, list[Edit]]:
    """The content of a file and the parts that do not match their seals. Raises TableError like `read`."""
    # Only in the folder of latency tables is a file named after its device.
    device = f" --device {path.stem}" if path.parent.name == "latency_tables" else ""
    build = f"run `bcnet build-lut{device}`"
    restore = f"restore the file, or delete it and {build}"
    try:
        with _opened(path) as file, _no_collection():
            return _read(file)
    except FileNotFoundError:
        raise TableError(f"{path} is missing; {build}") from None
    except OSError as cause:
        raise TableError(f"{path} cannot be read: {cause.strerror or cause}") from None
    except RecursionError:
        raise TableError(f"{path} is cut short or edited (it is nested too deeply); {restore}") from None
    except ValueError as cause:  # invalid JSON or UTF-8
        raise TableError(f"{path} is cut short or edited ({cause}); {restore}") from None
    except TableError as cause:
        end = f" {build}" if str(cause).endswith(" and") else f"; {restore}"
        raise TableError(f"{path}: {cause}{end}") from None


def text_of(content: Content) -> str:
    """The file's text: one block per setting, one row per line, in a stable order."""
    sessions = named(content.sessions)
    lines: dict[Setting, list[Line]] = {}
    for row in content.rows.values():
        line = Line(row.layer, sessions[row.session].id, row.stat, cache_use=row.cache_use)
        lines.setdefault(row.setting, []).append(line)
    for failure in content.failures.values():
        line = Line(failure.layer, sessions[failure.session].id, error=failure.error)
        lines.setdefault(failure.setting, []).append(line)
    seals: dict[str | int, list[str]] = {session.id: [] for session in sessions}
    blocks = []
    for setting, own in sorted(lines.items()):
        base, texts = base_of(setting), []
        for line in sorted(own, key=_order):
            text = row_text(line)
            seal = row_seal(text.encode(), base)
            seals[line.session].append(seal)
            texts.append(f'   {text}, "seal": "{seal}"}}')
        blocks.append(f'  {{"setting": {json.dumps(asdict(setting))}, "rows": [\n{_joined(texts)}\n  ]}}')
    sealed = ({**asdict(session), "seal": session_seal(session, seals[session.id])} for session in sessions)
    fitted = [asdict(content.calibrations[key]) for key in sorted(content.calibrations)]
    return (
        f'{{\n "schema": {SCHEMA},\n "device": {json.dumps(content.device)},\n'
        f' "sessions": [\n{_lines(sealed, 2)}\n ],\n'
        f' "settings": [\n{_joined(blocks)}\n ],\n'
        f' "calibrations": [\n{_lines(({**entry, "digest": digest(entry)} for entry in fitted), 2)}\n ]\n}}\n'
    )


def named(sessions: Sequence[Session]) -> list[Session]:
    """The sessions, each with an id that is independent of the others, so that branches can be merged."""
    taken: set[str] = set()
    found = []
    for session in sessions:
        own = session.id or digest(asdict(session))[:8]
        while own in taken:
            own += "-2"
        taken.add(own)
        found.append(replace(session, id=own))
    return found


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The opened file. Raises OSError unless it is regular: reading a named pipe would block forever."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(None, "it is not a regular file")
        yield file


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Disable Python's garbage collector, which would dominate the time to create millions of objects."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read(file: IO[bytes]) -> tuple[Content, list[Edit]]:
    """The content and edits of a file. Blocks of one-line rows are extracted, and replaced by a number."""
    frame: list[bytes] = []
    extracted: dict[int, bytes] = {}  # the last line of each block of rows
    places, room = [], JSON_BYTES
    for number, line in _numbered(file):
        if number < 0:
            room -= len(line)
            if room < 0:
                raise ValueError(f"it holds more than {JSON_BYTES:,} bytes beside its rows")
            frame.append(line)
            continue
        if number not in extracted:
            places.append(len(frame))
            frame.append(b"")
        extracted[number] = line
    for place, (number, last) in zip(places, extracted.items(), strict=True):
        frame[place] = b"%d%s\n" % (number, b"," if last.rstrip().endswith(b",") else b"")
    raw = json.loads(b"".join(frame))
    reader = _Reader(raw)
    if sorted(reader.blocks) != list(extracted):
        raise ValueError("a number instead of a row")
    file.seek(0)
    for block, numbered in groupby(_numbered(file), key=itemgetter(0)):
        lines = (line for _, line in numbered)
        while block >= 0 and (batch := list(islice(lines, BATCH))):
            reader.add(block, batch)
    return reader.content, [*reader.edits, *reader.edited_sessions()]


def _numbered(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Each line with the number of its block of rows; -1 for a line that is not one row.

    A line longer than LONGEST_LINE comes in parts, which bounds the memory for a file without line breaks.
    """
    block, inside = -1, False
    for line in iter(partial(file.readline, LONGEST_LINE), b""):
        if inside and line.startswith(ROW):
            yield block, line
        else:
            inside = line.endswith(OPENS)
            block += inside
            yield -1, line


class _Reader:
    """Builds the content of a file: everything but the extracted rows at once, these rows in batches."""

    def __init__(self, raw: Any) -> None:
        """`raw` is the file's JSON value; numbers stand for blocks of rows. Raises TableError."""
        self.sealed = isinstance(raw, dict) and raw.get("schema") == SCHEMA
        raw = migrated(raw)
        bare, rows = _without_rows(raw)
        try:
            file = FILE.validate_json(json.dumps(bare))
        except ValidationError as cause:
            raise _error(cause, bare) from None
        self.file = file
        self.content = Content(
            file.device, [_plain(session) for session in file.sessions], sealed=self.sealed
        )
        self._take_calibrations(raw["calibrations"])
        self.numbers: dict[str | int, int] = {
            session.id if self.sealed else number: number
            for number, session in enumerate(self.content.sessions)
        }
        if len(self.numbers) < len(file.sessions) or "" in self.numbers:
            raise TableError("two sessions have the same id, or one has none")
        self.seals: list[list[str]] = [[] for _ in file.sessions]
        self.edits: list[Edit] = []
        # For each block of extracted rows: its setting, the setting's index, and the index of its next row.
        self.blocks: dict[int, tuple[Setting, int, int]] = {}
        for place, (block, own) in enumerate(zip(file.settings, rows, strict=True)):
            given = [entry for entry in own if not isinstance(entry, int)]
            for entry in own:
                if isinstance(entry, int):
                    if entry in self.blocks:
                        raise TableError("a number instead of a row")
                    self.blocks[entry] = block.setting, place, len(given)
            if given:
                self._add(json.dumps(given).encode(), None, block.setting, place, 0)

    def _take_calibrations(self, raw: list[dict[str, Any]]) -> None:
        for sealed, entry in zip(self.file.calibrations, raw, strict=True):
            fitted = Calibration(**{f.name: getattr(sealed, f.name) for f in fields(Calibration)})
            numbers = [value for value in vars(fitted).values() if isinstance(value, float)]
            right = digest({key: value for key, value in entry.items() if key != "digest"})
            if sealed.digest != right or not all(map(math.isfinite, numbers)):
                raise TableError(
                    f"the calibration of model {plain(sealed.model)} was edited: its digest is "
                    f"{shown(sealed.digest)}, but should be {right}; restore the file, or delete that line "
                    "and"
                )
            self.content.calibrations[fitted.model, fitted.setting] = fitted

    def add(self, block: int, lines: list[bytes]) -> None:
        """Add rows of that block, given as their lines of the file."""
        setting, place, first = self.blocks[block]
        self.blocks[block] = setting, place, first + len(lines)
        last = lines[-1].rstrip(b",\r\n ")
        self._add(
            b"[" + b"".join([*lines[:-1], last]) + b"]", [*lines[:-1], last + b",\n"], setting, place, first
        )

    def _add(self, text: bytes, texts: list[bytes] | None, setting: Setting, place: int, first: int) -> None:
        """Add rows, given as a JSON list, and as their lines of the file if these are known."""
        try:
            lines = LINES.validate_json(text)
        except ValidationError as cause:
            raise _error(cause, text, ("settings", place, "rows"), first) from None
        base, content = base_of(setting), self.content
        rows, failures = content.rows, content.failures
        for line, own in zip(lines, texts or repeat(b""), strict=False):
            number, key = self.numbers.get(line.session), (line.layer, setting)
            if number is None:
                raise TableError(f"a row names session {shown(line.session)}, which does not exist")
            if self.sealed:
                self.seals[number].append(line.seal)
                if row_seal(own[3:-UNSEALED], base) != line.seal:
                    right = row_seal(row_text(line).encode(), base)  # independent of the file's formatting
                    if right != line.seal:
                        self.edits.append(edited_row(line.layer, setting, number, line.seal, right))
            if (line.stat is None) == (line.error is None):
                raise TableError(f"the row of {line.layer} needs a stat or an error")
            if line.stat is None:
                failure = Failure(*key, line.error or "", number)
                twice = failures.setdefault(key, failure) is not failure or key in rows
            else:
                if not line.stat.samples and not content.sessions[number].estimate:
                    raise TableError(f"a measured row has no samples: {line.layer}")
                row = Row(line.layer, setting, line.stat, number, line.cache_use)
                twice = rows.setdefault(key, row) is not row or (bool(failures) and key in failures)
            if twice:
                raise TableError(f"holds two rows for {line.layer} at {setting}")

    def edited_sessions(self) -> list[Edit]:
        """Sessions that do not match their digest although all their rows match; call after the last row."""
        if not self.sealed:
            return []
        with_edits = {edit.session for edit in self.edits}
        found = []
        for number, (session, given) in enumerate(
            zip(self.content.sessions, self.file.sessions, strict=True)
        ):
            if number not in with_edits:
                right = session_seal(session, self.seals[number])
                if right != given.seal:
                    found.append(edited_session(session, number, given.seal, right))
        return found


def _error(
    cause: ValidationError, raw: Any, where: tuple[int | str, ...] = (), first: int = 0
) -> TableError | ValueError:
    """The error in `raw`, a JSON value or its text: see `explained`. ValueError if it is not JSON."""
    if cause.errors()[0]["type"] == "json_invalid":
        return ValueError(cause.errors()[0]["msg"])
    return TableError(explained(cause, json.loads(raw) if isinstance(raw, bytes) else raw, where, first))


def _without_rows(raw: Any) -> tuple[Any, list[list[Any]]]:
    """The file's value without rows, and the rows of each setting. Values of other forms are unchanged."""
    settings = raw.get("settings") if isinstance(raw, dict) else None
    if not isinstance(settings, list) or not all(
        isinstance(block, dict) and isinstance(block.get("rows"), list) for block in settings
    ):
        return raw, []
    return {**raw, "settings": [{**block, "rows": []} for block in settings]}, [
        block["rows"] for block in settings
    ]


def _plain(sealed: Session) -> Session:
    return Session(**{f.name: getattr(sealed, f.name) for f in fields(Session)})


def _lines(values: Iterable[dict[str, Any]], indent: int) -> str:
    return _joined([" " * indent + json.dumps(value) for value in values])


def _joined(lines: Sequence[str]) -> str:
    return ",\n".join(lines)
