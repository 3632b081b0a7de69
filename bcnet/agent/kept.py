"""Files that a device keeps from one job to the next: engines, timing caches. They may vanish at any time."""

import os
import tempfile
from pathlib import Path
from typing import Optional

KEPT_BYTES = 2 * 1024**3  # of engines; those that were not used for the longest time go first


def folder(name: str) -> Path:
    """The folder of that name in the user's cache. It may not be there, nor possible to make."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base, "bcnet", name)


def read(path: Path) -> Optional[bytes]:
    """A kept file, used now; None if it is not there."""
    try:
        content = path.read_bytes()
        os.utime(str(path))
        return content
    except OSError:
        return None


def write(path: Path, content: bytes) -> None:
    """Keep a file, all of it or nothing, if there is room: it can be made again."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=str(path.parent), suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(part, str(path))
        except OSError:
            os.unlink(part)
        _forget(path)
    except OSError:
        pass


def _forget(newest: Path) -> None:
    """Delete the files of that kind that were not used for the longest time, until the others fit."""
    others = [path for path in newest.parent.glob("*" + newest.suffix) if path != newest]
    kept = newest.stat().st_size
    for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True):
        kept += path.stat().st_size
        if kept > KEPT_BYTES:
            path.unlink()
