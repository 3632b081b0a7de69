"""Read TOML files. In: a path. Out: its values, or an error of one line that names the file."""

import errno
import os
from pathlib import Path
from typing import Any

from bcnet.errors import BcnetError
from bcnet.reading import parse_toml, read_text


def read_toml(path: Path, error: type[BcnetError]) -> dict[str, Any]:
    """The values of a TOML file, with or without a byte order mark, and with any line endings.

    Raises `error` if it is missing, a broken link, not readable, not TOML, or too large.
    """
    try:
        text = read_text(path)
    except OSError as cause:
        raise error(f"{path} {_why(path, cause)}") from None
    except UnicodeDecodeError as cause:
        raise error(f"{path} is not TOML: not in UTF-8 ({cause.reason} at byte {cause.start})") from None
    except ValueError as cause:
        raise error(f"{path} is {cause}") from None
    try:
        return parse_toml(text)
    except ValueError as cause:
        raise error(f"{path} is not TOML: {cause}") from None


def is_there(path: Path) -> bool:
    """Whether the path exists, including broken links; True if that cannot be determined."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _why(path: Path, cause: OSError) -> str:
    if cause.errno == errno.ELOOP:
        return "is a link that leads to itself; remove it or point it at a file"
    if isinstance(cause, FileNotFoundError) and path.is_symlink():
        return f"is a link to {os.readlink(path)}, which is not there (is its folder mounted?)"
    return f"cannot be read: {cause.strerror or cause}"
