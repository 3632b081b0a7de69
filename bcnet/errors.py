"""All errors that bcnet raises on purpose. Each message is one line: what is wrong and how to fix it.

BcnetError (exit 1)
├── ConfigError        bcnet.toml: unknown key, wrong type, missing file
├── DataError          dataset unknown, empty or unreadable
├── ModelError         model unknown or not loadable
├── SpaceError         widths or a space that do not match a network
├── TrainingError      a training step or a user's function of [task] fails, or the loss is not finite
│   └── ProcessEnded       another process of the command has ended
├── ArtifactError      a file of a run is missing, stale, truncated or edited
├── TableError         a latency table is unreadable or has missing rows
├── DeviceError        a hardware profile is unknown or its runtime is not available
│   └── NetworkError       a runtime cannot load or run a network
├── BudgetError        no network can meet the budget
├── UsageError (exit 2)    a flag has an invalid value
├── CheckFailed (exit 3)   what was built did not pass its verification
└── NotVerified (exit 4)   done, but its latency could not be verified here
"""

import errno
import os
import re
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bcnet.plain import plain


class BcnetError(Exception):
    """Base of all errors with an explanatory message; `exit_code` is that of the command line."""

    exit_code = 1


class ConfigError(BcnetError):
    """The configuration file or one of its values cannot be used."""


class DataError(BcnetError):
    """The dataset is unknown, empty or unreadable."""


class ModelError(BcnetError):
    """The network is unknown or cannot be built."""


class SpaceError(BcnetError):
    """Widths do not belong to a space, or no space can be discovered in a network."""


class TrainingError(BcnetError):
    """A training step or a custom function of [task] fails, or the loss is not finite."""


class ProcessEnded(TrainingError):
    """Another process of this command has ended, so this one cannot continue."""


class ArtifactError(BcnetError):
    """A file of a run is missing, stale, truncated or edited."""


class TableError(BcnetError):
    """A latency table is unreadable, or does not have the requested rows."""


class DeviceError(BcnetError):
    """A hardware profile is unknown, or its runtime is not installed."""


class NetworkError(DeviceError):
    """A runtime is available, but cannot load or run this network; it may run others."""


class BudgetError(BcnetError):
    """No network of the space meets the budget."""


class UsageError(BcnetError):
    """A flag has an invalid value."""

    exit_code = 2


class CheckFailed(BcnetError):
    """What was built did not pass its verification; `report` has the measurements, if there are any."""

    exit_code = 3

    def __init__(self, message: str, report: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.report = report


class NotVerified(BcnetError):
    """The work is done and saved, but it could not be verified here: its device is not available."""

    exit_code = 4


# What custom functions and networks may raise; sys.exit() in them must not end bcnet as if it had succeeded.
FOREIGN = (Exception, SystemExit)

# Exceptions of these packages wrap the one that describes the cause.
_WRAPPERS = ("torch.onnx.", "torch.export.", "torch._export.", "torch._dynamo.")
_OWN = Path(__file__).parent
_INSTALLED = [Path(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(\x07|\x1b\\)|\x1b[@-_]")
_OPERATOR = re.compile(r"\b(aten|prims|torchvision|onnx)(::|\.)\w+|\bop_?type\b|node name", re.IGNORECASE)


def one_line(cause: BaseException) -> str:
    """An exception of other code as one printable line: its type and the line of its text with the cause.

    That is the first line, or the last one if the text has a traceback, plus the line that names an operator
    if the first line does not. Escape codes are removed, long texts are truncated.
    """
    while type(cause).__module__.startswith(_WRAPPERS) and cause.__cause__ is not None:
        cause = cause.__cause__
    name = type(cause).__name__
    lines = [" ".join(line.split()) for line in _ESCAPES.sub("", text_of(cause)).splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        return name
    if any("(most recent call last)" in line for line in lines):
        return plain(lines[-1])
    text = lines[0]
    more = lines[1] if text.endswith(":") and len(lines) > 1 else None
    if more is None and not _OPERATOR.search(text):
        more = next((line for line in lines[1:] if _OPERATOR.search(line)), None)
    return plain(f"{name}: {text}" + (f" {more}" if more else ""))


def text_of(cause: BaseException) -> str:
    """An exception's text; empty if its `__str__` fails."""
    try:
        return str(cause)
    except FOREIGN:
        return ""


def message_of(error: BcnetError | OSError) -> str:
    """The line that is shown of an error. For a file or folder: its path, what is wrong, and what to do where
    the disk is full or nothing can be written."""
    if isinstance(error, BcnetError):
        return str(error)
    where = f" {plain(os.fsdecode(error.filename))}" if isinstance(error.filename, str | bytes) else ""
    return f"cannot write or read{where}: {error.strerror or error}{_remedy(error)}"


def _remedy(error: OSError) -> str:
    elsewhere = "run in a folder that you can write to"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "; free some space"
    if error.errno == errno.EROFS:
        return f"; {elsewhere}"
    if error.errno in (errno.EACCES, errno.EPERM) and isinstance(error.filename, str):
        return f"; change the permissions of {plain(_denying(Path(error.filename)))}, or {elsewhere}"
    return ""


def _denying(path: Path) -> str:
    """The file or folder that cannot be read, else the folder in which this path cannot be written."""
    if os.path.exists(path) and not os.access(path, os.R_OK):  # unlike Path.exists, it raises nothing
        return str(path)
    folder = next((own for own in path.parents if os.path.isdir(own)), path)
    return "this folder" if folder == Path() else str(folder)


def raised_by_user(cause: BaseException) -> str | None:
    """The user's function in which an exception was raised, with file and line; None for bcnet's own code.

    Installed packages, and functions that the user's code calls in them, are ignored.
    """
    place = None
    for frame, line in traceback.walk_tb(cause.__traceback__):
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(_OWN):
            place = None
        elif file.is_file() and not any(file.is_relative_to(folder) for folder in _INSTALLED):
            place = f"{frame.f_code.co_qualname}() in {file.name}, line {line},"
    return place


def user_line(cause: BaseException) -> str:
    """` in FILE, line N`: the innermost line of the user's code in an exception's traceback; "" without one.

    Where all of that code is installed, it is the innermost line in the first file that was called.
    """
    places = [
        (file, line)
        for frame, line in traceback.walk_tb(cause.__traceback__)
        if (file := Path(frame.f_code.co_filename)).is_file()
        and not file.is_relative_to(_OWN)
        and not _of_python(file)
    ]
    users = [own for own in places if not any(own[0].is_relative_to(folder) for folder in _INSTALLED)]
    users = users or [own for own in places if own[0] == places[0][0]]
    return f" in {users[-1][0].name}, line {users[-1][1]}" if users else ""


def _of_python(file: Path) -> bool:
    """Whether a file is of the standard library, in whose folder packages may be, too."""
    library, *packages = _INSTALLED[0], *_INSTALLED[2:]
    return file.is_relative_to(library) and not any(file.is_relative_to(folder) for folder in packages)


@contextmanager
def explaining(kind: type[BcnetError], what: str, remedy: str = "") -> Iterator[None]:
    """Turn any exception of a network, a file or a custom function in the block into an error of this kind.

    `what` describes what failed, `remedy` how to fix it. Errors that bcnet raises on purpose pass unchanged.
    """
    try:
        yield
    except BcnetError:
        raise
    except FOREIGN as cause:
        raise kind(f"{what} ({one_line(cause)})" + (f"; {remedy}" if remedy else "")) from cause
