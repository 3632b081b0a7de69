"""Damages one file at random, and restores it. In: a file, a random generator. Out: a description."""

import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bcnet.config import template

NUMBERS = (b"1e400", b"-1", b"NaN", b"0", b"1" * 30, b"1" * 5000, b'"x"', b"null", b"[" * 2000, b"{}")
JUNK = (b"\xff\xfe", b"\0" * 9, b"\x1b[31m", b",", b'"', b"\n")
NAMES = (b"x", b"inputs", b"digest", b"epoch")
NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
KEY = re.compile(rb'"([A-Za-z_ .-]+)"(?=\s*:)|^([a-z_]+)(?=\s*=)', re.MULTILINE)
SETTING = re.compile(rb"^(?:# )?([a-z_]+) = (.+)$", re.MULTILINE)
Edit = Callable[[bytes, random.Random], bytes]


def flipped(content: bytes, rng: random.Random) -> bytes:
    """One bit is flipped."""
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]


def cut(content: bytes, rng: random.Random) -> bytes:
    """The end is missing."""
    return content[: rng.randrange(len(content))]


def inserted(content: bytes, rng: random.Random) -> bytes:
    """A few bytes are inserted."""
    place = rng.randrange(len(content))
    return (
        content[:place]
        + rng.choice([b"\xff\xfe", b"\0" * 9, b"\x1b[31m", b",", b'"', b"\n"])
        + content[place:]
    )


def zeroed(content: bytes, rng: random.Random) -> bytes:
    """A block was never written."""
    place = rng.randrange(len(content))
    return content[:place] + bytes(len(content[place : place + 512])) + content[place + 512 :]


def lines_moved(content: bytes, rng: random.Random) -> bytes:
    """A line is repeated, missing, or in another place."""
    lines = content.splitlines(keepends=True)
    a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
    how = rng.randrange(3)
    if how == 0:
        lines.insert(b, lines[a])
    elif how == 1:
        del lines[a]
    else:
        lines[a], lines[b] = lines[b], lines[a]
    return b"".join(lines)


def another_number(content: bytes, rng: random.Random) -> bytes:
    """A number has another value."""
    found = list(NUMBER.finditer(content))
    if not found:
        return b""
    match = rng.choice(found)
    value = rng.choice([*NUMBERS, b"%d" % rng.randrange(10**6), match[0] + b"1"])
    return content[: match.start()] + value + content[match.end() :]


def another_key(content: bytes, rng: random.Random) -> bytes:
    """A key has another name."""
    found = list(KEY.finditer(content))
    if not found:
        return b"[]"
    match = rng.choice(found)
    group = 1 if match[1] else 2
    return content[: match.start(group)] + rng.choice(NAMES) + content[match.end(group) :]


def another_setting(content: bytes, rng: random.Random) -> bytes:
    """A setting of a TOML file has another value, often a valid one."""
    match = rng.choice(list(SETTING.finditer(content)))
    return content[: match.start(2)] + _another(match[2], rng) + content[match.end(2) :]


def one_more_setting(content: bytes, rng: random.Random) -> bytes:
    """A key that the configuration knows is in its section, often with a valid value."""
    sections = re.split(r"^\[(\w+)\]$", "\n" + template(), flags=re.MULTILINE)
    section = rng.randrange(1, len(sections), 2)
    match = rng.choice(list(SETTING.finditer(sections[section + 1].encode())))
    header = f"[{sections[section]}]\n".encode()
    line = match[1] + b" = " + rng.choice([match[2], _another(match[2], rng)]) + b"\n"
    if header in content:
        return content.replace(header, header + line)
    return content + b"\n" + header + line


def _another(value: bytes, rng: random.Random) -> bytes:
    if re.fullmatch(NUMBER, value):
        number = float(value)
        found = rng.choice([number + 1, number * 2, number / 2, number / 10, -number, 0.0])
        return f"{found:.0f}".encode() if b"." not in value else repr(found).encode()
    return rng.choice([b"true", b"false", b'"auto"', b'"50%"', b'"evolution"', b"[]", b"0.5", b"2"])


EDITS: tuple[Edit, ...] = (flipped, cut, inserted, zeroed, lines_moved, another_number, another_key)
OF_SETTINGS: tuple[Edit, ...] = (another_setting, one_more_setting)


def _as_other(path: Path, rng: random.Random, others: Sequence[Path]) -> str:
    other = rng.choice(others)
    content = other.read_bytes()
    path.unlink()
    path.write_bytes(content)
    return f"as {other.name}"


def _as_nothing(path: Path, rng: random.Random, others: Sequence[Path]) -> str:
    path.unlink()
    return "missing"


def _as_empty(path: Path, rng: random.Random, others: Sequence[Path]) -> str:
    path.write_bytes(b"")
    return "empty"


def _as_folder(path: Path, rng: random.Random, others: Sequence[Path]) -> str:
    path.unlink()
    path.mkdir()
    return "a folder"


def _as_pipe(path: Path, rng: random.Random, others: Sequence[Path]) -> str:
    path.unlink()
    os.mkfifo(path)
    return "a pipe"


def _as_loop(path: Path, rng: random.Random, others: Sequence[Path]) -> str:
    path.unlink()
    path.symlink_to(path)
    return "a link to itself"


def _as_huge(path: Path, rng: random.Random, others: Sequence[Path]) -> str:
    os.truncate(path, 1 << 42)
    return "four terabytes"


REPLACEMENTS = (_as_other, _as_nothing, _as_empty, _as_folder, _as_pipe, _as_loop, _as_huge)


@contextmanager
def damaged(path: Path, rng: random.Random, others: Sequence[Path]) -> Iterator[str]:
    """Damage the file within the block; `others` may replace it. The value describes the damage."""
    content = path.read_bytes()
    if rng.random() < 0.25:
        how = rng.choice(REPLACEMENTS)(path, rng, others)
    else:
        of_settings = path.suffix == ".toml" and rng.random() < 0.5
        edit = rng.choice(OF_SETTINGS if of_settings else EDITS)
        path.write_bytes(edit(content, rng))
        how = edit.__name__
    try:
        yield f"{path.parent.name}/{path.name}: {how}"
    finally:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.write_bytes(content)
