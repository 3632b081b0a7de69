"""Read untrusted files and text within limits. In: a path, or text. Out: bytes, text, JSON or TOML values.

Nothing here blocks on a pipe, fills the memory, or ends in a RecursionError: beyond the limits it raises a
ValueError of one line, which callers turn into their own error with the path and a remedy.
"""

import json
import os
import stat
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

MIB = 1 << 20
TEXT_BYTES = MIB  # configurations and hardware profiles, which are written by hand
JSON_BYTES = 256 * MIB  # results of a stage
DEPTH = 64  # levels of nested lists and tables; the deepest that bcnet writes has eight
INTEGER = 1 << 63
KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def opened(path: Path, limit: int | None = None) -> BufferedReader:
    """A regular file, open for reading. Raises OSError, and ValueError for another kind or a larger one."""
    _check(os.stat(path), limit)  # before opening: opening a device may have side effects
    # O_NONBLOCK: does not block on a pipe that was put there meanwhile.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    try:
        _check(os.fstat(file.fileno()), limit)
    except ValueError:
        file.close()
        raise
    return file


def _check(found: os.stat_result, limit: int | None) -> None:
    kind = next((name for is_kind, name in KINDS if is_kind(found.st_mode)), None)
    if kind is not None:
        raise ValueError(f"{kind}, not a file")
    if limit is not None and found.st_size > limit:
        raise ValueError(f"{found.st_size:,} bytes long, but at most {limit:,} are read")


def read_bytes(path: Path, limit: int = JSON_BYTES) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises OSError, ValueError."""
    with opened(path, limit) as file:
        return file.read(limit)


def read_text(path: Path, limit: int = TEXT_BYTES) -> str:
    """The content as text, without a byte order mark. Raises OSError, and ValueError if it is not UTF-8."""
    return read_bytes(path, limit).decode("utf-8-sig")


def parse_json(text: str) -> Any:
    """A JSON value within the limits. Raises ValueError."""
    with _in_plain_words():
        return bounded(json.loads(text))


def parse_toml(text: str) -> dict[str, Any]:
    """The values of a TOML text within the limits. Raises ValueError."""
    with _in_plain_words():
        values = tomllib.loads(text)
        bounded(values)
        return values


@contextmanager
def _in_plain_words() -> Iterator[None]:
    """Turn errors of Python's parsers about depth and length into those of `bounded`."""
    try:
        yield
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except ValueError as cause:
        if "set_int_max_str_digits" in str(cause):  # advice of Python that does not apply here
            raise ValueError(_TOO_LONG) from None
        raise


_TOO_LONG = "an integer of more than 64 bits"
_TOO_DEEP = f"more than {DEPTH} levels of nested lists or tables"


def bounded(value: Any) -> Any:
    """`value` unchanged. Raises ValueError if it is nested too deeply, or an integer exceeds 64 bits."""
    level = [value]
    for depth in range(DEPTH + 1):
        inner: list[Any] = []
        for entry in level:
            if isinstance(entry, int) and not -INTEGER <= entry < INTEGER:
                raise ValueError(_TOO_LONG)
            if isinstance(entry, dict | list):
                if depth == DEPTH:
                    raise ValueError(_TOO_DEEP)
                inner.extend(entry.values() if isinstance(entry, dict) else entry)
        level = inner
    return value
