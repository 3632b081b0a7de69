"""Files from which an interrupted command continues, sealed so that changes are detected.

`SealedLines`: JSON values that are appended to a file, one per line, each with a hash of all lines up to it;
the file is compressed if its name ends in .gz. `seal_tensors`, `unseal_tensors`: tensors and JSON values in
one safetensors file, with one hash. In: values. Out: the same values; or only those before a change, or
ValueError.
"""

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcnet.reading import MIB, opened, parse_json

if TYPE_CHECKING:
    from torch import Tensor

LINES_BYTES = 1024 * MIB  # of a file whose values are all kept
LINE_BYTES = 16 * MIB  # of a line in any other
SCHEMA = 1
SEAL = 16  # hex digits
OTHERS = "it was begun with other settings"
ABOUT = "bcnet"  # the key of a safetensors file's metadata under which the JSON values are


class SealedLines:
    """A file with one line per value; the seal of a line shows whether it and all before it are unchanged.

    `values` are those of the lines up to the first change. `dropped` is the reason why there are no more; it
    is empty if nothing follows, or only a last line that was truncated when the process was killed.
    """

    def __init__(
        self, path: Path, belongs_to: Mapping[str, Any], most: int | None = None, *, last: int | None = None
    ) -> None:
        """Read the file if it exists. With another `belongs_to`, all values are dropped.

        With `most`, values after that number are dropped, too. With `last`, all are checked and counted, line
        by line, and `values` are only so many of the last ones: the memory does not grow with the file.
        Raises ValueError if the path is not a file.
        """
        self.path, self._most, self._last = path, most, last
        self.values: list[Any] = []
        self.count = 0
        self.dropped = ""
        self._head = _head(belongs_to)
        self.kept, self.seal = 0, ""  # the number of valid bytes, and the hash of their last line
        if path.exists():
            with opened(path, LINES_BYTES if last is None else None) as file:
                self._read(file)
            self._trim(0)

    def _read(self, file: BufferedReader) -> None:
        number = 0
        for text, end in self._blocks(file):
            if self.kept and self.count == self._most:
                return
            seal, values = self.seal, []
            for line in text.splitlines(keepends=True):
                number += 1
                body, before = line[SEAL + 1 :], seal
                seal = line[:SEAL].decode("ascii", "replace")
                if seal != _next_seal(before, body) or line != _line(seal, body):
                    self.dropped = f"line {number} was changed"
                    return
                value = parse_json(body.decode())
                if number > 1:
                    values.append(value)
                elif value != self._head:
                    self.dropped = OTHERS
                    return
            self.kept, self.seal = end, seal
            self._add(values)

    def _add(self, values: Sequence[Any]) -> None:
        self.count += len(values)
        self.values += values
        self._trim(self._last or 0)

    def _trim(self, beyond: int) -> None:
        """Drop all but the last values where there are so many more."""
        if self._last is not None and len(self.values) > self._last + beyond:
            del self.values[: len(self.values) - self._last]

    def _blocks(self, file: BufferedReader) -> Iterator[tuple[bytes, int]]:
        """Complete lines that were written together, and their end in the file, without a truncated one."""
        if self.path.suffix != ".gz":
            end = 0
            while line := file.readline(LINES_BYTES if self._last is None else LINE_BYTES):
                if not line.endswith(b"\n"):
                    self._check_cut(line, end)
                    return
                end += len(line)
                yield line, end
            return
        content = rest = file.read(LINES_BYTES)
        room = LINES_BYTES
        while rest:
            unpacking = zlib.decompressobj(wbits=31)
            end = len(content) - len(rest)
            try:
                text = unpacking.decompress(rest, room)
            except zlib.error as cause:
                self.dropped = f"it is damaged from byte {end} on ({cause})"
                return
            room -= len(text)
            if room <= 0:
                raise ValueError(f"it unpacks to more than {LINES_BYTES - 1:,} bytes")
            if not unpacking.eof:
                self._check_cut(text, end)
                return
            rest = unpacking.unused_data
            yield text, len(content) - len(rest)

    def _check_cut(self, text: bytes, start: int) -> None:
        """Check that a truncated first line is the beginning of the right one, not that of another file."""
        own = _sealed("", self._head)[0]
        if start == 0 and text[: len(own)] != own[: len(text)]:
            self.dropped = "line 1 was changed"

    def append(self, value: Any) -> None:
        """Append one value; it is on disk when this returns. On an OSError the file is unchanged."""
        self.extend([value])

    def extend(self, values: Sequence[Any]) -> None:
        """Append several values in one write."""
        text, seal = _lines(self.seal, values if self.kept else [self._head, *values])
        if self.path.suffix == ".gz":
            text = gzip.compress(text, mtime=0)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
        try:
            os.ftruncate(handle, self.kept)  # what was dropped is overwritten
            try:
                done = 0
                while done < len(text):
                    done += os.pwrite(handle, text[done:], self.kept + done)
                os.fsync(handle)
            except OSError as cause:
                os.ftruncate(handle, self.kept) if self.kept else self.remove()
                raise OSError(cause.errno, cause.strerror, str(self.path)) from cause
        finally:
            os.close(handle)
        self.kept, self.seal = self.kept + len(text), seal
        self._add(values)

    def remove(self) -> None:
        """Delete the file, when it is no longer needed."""
        self.path.unlink(missing_ok=True)


def sealed_lines(belongs_to: Mapping[str, Any], values: Sequence[Any]) -> tuple[bytes, str]:
    """The content of a `SealedLines` file with these values, and the seal of its last line."""
    return _lines("", [_head(belongs_to), *values])


def _head(belongs_to: Mapping[str, Any]) -> dict[str, Any]:
    return {"schema": SCHEMA, "belongs_to": parse_json(json.dumps(belongs_to))}


def _lines(seal: str, values: Sequence[Any]) -> tuple[bytes, str]:
    """The lines of values that follow a line with this seal, and the last one's seal."""
    lines = []
    for value in values:
        line, seal = _sealed(seal, value)
        lines.append(line)
    return b"".join(lines), seal


def _sealed(seal: str, value: Any) -> tuple[bytes, str]:
    """The line of a value that follows a line with this seal, and its own seal."""
    body = json.dumps(value).encode() + b"\n"
    seal = _next_seal(seal, body)
    return _line(seal, body), seal


def _next_seal(seal: str, body: bytes) -> str:
    return sha256(seal.encode() + body).hexdigest()[:SEAL]


def _line(seal: str, body: bytes) -> bytes:
    return f"{seal} ".encode() + body


def seal_tensors(tensors: "Mapping[str, Tensor]", about: Mapping[str, Any]) -> bytes:
    """A safetensors file of contiguous tensors and of JSON values; the same bytes for the same values."""
    from safetensors.torch import save

    # As one entry, because several would be written in random order.
    text = json.dumps({"about": about, "seal": _seal_of(tensors, about)})
    content: bytes = save(dict(tensors), {ABOUT: text})
    return content


def unseal_tensors(path: Path) -> "tuple[dict[str, Tensor], dict[str, Any]]":
    """The tensors and values of such a file. Raises ValueError if they were changed."""
    about, seal = _about(path)
    tensors = _tensors(path)
    if seal != _seal_of(tensors, about):
        raise ValueError("it is not what was written: cut short or edited")
    return tensors, about


def read_about(path: Path) -> dict[str, Any]:
    """Only the values, without checking the seal. Raises ValueError."""
    return _about(path)[0]


def _about(path: Path) -> tuple[dict[str, Any], str]:
    from safetensors import SafetensorError, safe_open

    try:
        opened(path).close()  # a file, and not a pipe
        with safe_open(path, framework="pt") as file:
            found = parse_json((file.metadata() or {})[ABOUT])
        return dict(found["about"]), str(found["seal"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, OverflowError, MemoryError) as cause:
        reason = "it has no seal" if isinstance(cause, KeyError) else str(cause)
        raise ValueError(f"it is cut short, edited, or from an earlier version: {reason}") from None


def _tensors(path: Path) -> "dict[str, Tensor]":
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, OverflowError, MemoryError) as cause:
        raise ValueError(str(cause)) from None


def _seal_of(tensors: "Mapping[str, Tensor]", about: Mapping[str, Any]) -> str:
    import torch

    found = sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        found.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:SEAL]
