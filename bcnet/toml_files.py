"""TOML files as people save them. In: a path. Out: its values, or an error of one line that names it."""

import errno
import os
import stat
import tomllib
from pathlib import Path
from typing import Any

from bcnet.errors import BcnetError

LARGEST_BYTES = 1_000_000
DEEPEST = 50  # tables in tables; what reads the values again goes down by recursion


def read_toml(path: Path, error: type[BcnetError]) -> dict[str, Any]:
    """The values in a TOML file, with or without a byte order mark, whatever its line ends.

    Raises `error`: no file, a link that leads nowhere, not readable, not TOML, larger than a megabyte.
    """
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise error(f"{path} is a folder, not a file")
        if not stat.S_ISREG(found.st_mode):  # reading a pipe may wait without end
            raise error(f"{path} is a pipe or a device, not a file")
        if found.st_size > LARGEST_BYTES:
            raise error(f"{path} has {found.st_size:,} bytes, more than the {LARGEST_BYTES:,} that are read")
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        if _depth(values) > DEEPEST:
            raise RecursionError
        return values
    except OSError as cause:
        raise error(f"{path} {_why(path, cause)}") from None
    except UnicodeDecodeError as cause:
        raise error(
            f"{path} is not TOML: it is not in UTF-8 ({cause.reason} at byte {cause.start})"
        ) from None
    except RecursionError:
        raise error(f"{path} holds values that are nested more than {DEEPEST} deep") from None
    except ValueError as cause:  # TOMLDecodeError, and numbers of thousands of digits
        raise error(f"{path} is not TOML: {cause}") from None


def is_there(path: Path) -> bool:
    """Whether anything is at the path, a link that leads nowhere included; True where nobody can tell."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _depth(values: Any) -> int:
    """How many levels of tables and arrays there are."""
    depth, level = 0, [values]
    while level and depth <= DEEPEST:
        inner = (list(v.values()) if isinstance(v, dict) else v for v in level if isinstance(v, dict | list))
        level = [value for values in inner for value in values]
        depth += 1
    return depth


def _why(path: Path, cause: OSError) -> str:
    if cause.errno == errno.ELOOP:
        return "is a link that leads to itself; remove it or point it at a file"
    if isinstance(cause, FileNotFoundError) and path.is_symlink():
        return f"is a link to {os.readlink(path)}, which is not there (is its folder mounted?)"
    return f"cannot be read: {cause.strerror or cause}"
