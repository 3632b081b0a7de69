"""Find the line of the user's code where an export failed. In: the exception. Out: file and line."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import torch

TORCH = str(Path(torch.__file__).parent)
_LINE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


def source_line(error: BaseException) -> str:
    """`file:line` of the innermost forward outside PyTorch that caused an exporter's error; or ''.

    It is in the traceback if the export was running the forward, and in the exporter's metadata of an
    operator if it was converting that operator.
    """
    found, cause = "", error
    while True:
        for file, line in _places(cause.__traceback__):
            if not file.startswith(TORCH):
                found = f"{_short(file)}:{line}"
        if cause.__cause__ is None:
            return found
        cause = cause.__cause__


def _places(traceback: TracebackType | None) -> Iterator[tuple[str, int]]:
    """The lines of forwards in a traceback, and in the metadata of the operators in its frames."""
    called = False
    while traceback is not None:
        frame = traceback.tb_frame
        if called:
            yield frame.f_code.co_filename, traceback.tb_lineno
        called = frame.f_code.co_name == "_call_impl"  # of a module: the next frame is its forward
        notes = getattr(frame.f_locals.get("node"), "meta", None)
        if isinstance(notes, dict):
            for match in _LINE.finditer(str(notes.get("stack_trace"))):
                yield match["file"], int(match["line"])
        traceback = traceback.tb_next


def _short(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
