"""No text from a library's own code on stdout, which is for results."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Discard what compiled code prints to stdout in the block, as HiGHS 1.12 does whatever its options."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # there is no stdout
        yield
        return
    _flush()
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        _flush()  # what C still holds would otherwise appear later
        os.dup2(kept, 1)
        os.close(kept)


def _flush() -> None:
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no C library by that name
        ctypes.CDLL(None).fflush(None)
