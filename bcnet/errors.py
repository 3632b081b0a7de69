"""Every error that bcnet raises on purpose. Each message is one line: what is wrong and how to mend it.

BcnetError (exit 1)
├── ConfigError        bcnet.toml: unknown key, wrong type, missing file
├── DataError          dataset unknown, empty or unreadable
├── ModelError         model unknown or not loadable
├── SpaceError         widths or a space that do not fit a network
├── TrainingError      a training step or a user's function of [task] fails, or the loss is not finite
├── ArtifactError      a file of a run is missing, stale, cut short or edited
├── TableError         a latency table is unreadable or lacks rows
├── DeviceError        a hardware profile is unknown or its runtime is not here
│   └── NetworkError       a runtime cannot load or run a network
├── BudgetError        no network can meet the budget
├── UsageError (exit 2)    a flag has a value that cannot be meant
├── CheckFailed (exit 3)   what was built did not pass its verification
└── NotVerified (exit 4)   done, but its latency could not be verified here
"""

import re
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bcnet.plain import plain


class BcnetError(Exception):
    """Base of all errors that a message explains; `exit_code` is what the command line returns."""

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
    """A training step or a user's function of [task] fails, or the loss is not finite any more."""


class ArtifactError(BcnetError):
    """A file of a run is missing, stale, cut short or edited."""


class TableError(BcnetError):
    """A latency table is unreadable, or lacks what was asked of it."""


class DeviceError(BcnetError):
    """A hardware profile is unknown, or its runtime is not installed."""


class NetworkError(DeviceError):
    """A runtime is here, but it cannot load or run a network; others it may."""


class BudgetError(BcnetError):
    """No network of the space meets the budget."""


class UsageError(BcnetError):
    """A flag has a value that cannot be meant."""

    exit_code = 2


class CheckFailed(BcnetError):
    """What was built did not pass its verification; `report` holds what was measured, where there is one."""

    exit_code = 3

    def __init__(self, message: str, report: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.report = report


class NotVerified(BcnetError):
    """The work is done and saved, but it could not be verified here: its device is not at hand."""

    exit_code = 4


# What a user's function or network may raise; sys.exit() in it does not end bcnet as if it were done.
FOREIGN = (Exception, SystemExit)

# Exceptions of these packages wrap the one that describes the cause.
_WRAPPERS = ("torch.onnx.", "torch.export.", "torch._export.", "torch._dynamo.")
_OWN = Path(__file__).parent
_INSTALLED = [Path(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(\x07|\x1b\\)|\x1b[@-_]")
_OPERATOR = re.compile(r"\b(aten|prims|torchvision|onnx)(::|\.)\w+|\bop_?type\b|node name", re.IGNORECASE)


def one_line(cause: BaseException) -> str:
    """A foreign exception as one printable line: its type and the sentence of its text that names the cause.

    That is the first line; the last one after a traceback inside the text; and the line that names an
    operator where the first does not. Escape codes are left out, long texts are cut.
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
    """An exception's text; empty where its own `__str__` fails."""
    try:
        return str(cause)
    except FOREIGN:
        return ""


def raised_by_user(cause: BaseException) -> str | None:
    """The user's function in which an exception was raised, with file and line; None for bcnet's own code.

    Packages that are installed, and what is called from the user's code in them, are not looked at.
    """
    place = None
    for frame, line in traceback.walk_tb(cause.__traceback__):
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(_OWN):
            place = None
        elif file.is_file() and not any(file.is_relative_to(folder) for folder in _INSTALLED):
            place = f"{frame.f_code.co_qualname}() in {file.name}, line {line},"
    return place


@contextmanager
def explaining(kind: type[BcnetError], what: str, remedy: str = "") -> Iterator[None]:
    """Turn whatever a network, a file or a user's function raises in the block into one line of this kind.

    `what` describes what failed, `remedy` how to fix it. Errors that bcnet raises on purpose pass unchanged.
    """
    try:
        yield
    except BcnetError:
        raise
    except FOREIGN as cause:
        raise kind(f"{what} ({one_line(cause)})" + (f"; {remedy}" if remedy else "")) from cause
