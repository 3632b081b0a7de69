"""Where in the user's code an export failed. In: the exception. Out: file and line of a module's forward."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import torch

TORCH = str(Path(torch.__file__).parent)
_LINE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


def source_line(error: BaseException) -> str:
    """`file:line` of the forward that an exporter's error is about, the innermost outside PyTorch; or ''.

    It is in the traceback where the export ran the forward, and in the exporter's notes on an operator where
    it converted that one.
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
    """The lines of forwards in a traceback, and those in the notes on the operators that it is about."""
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
