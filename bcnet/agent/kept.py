"""Cached files on a device: engines and timing caches. They may be deleted at any time."""

import os
import tempfile
from pathlib import Path
from typing import Optional

KEPT_BYTES = 2 * 1024**3  # maximum size of all engines; the least recently used are deleted first


def folder(name: str) -> Path:
    """The folder of that name in the user's cache. It may not exist, and creating it may fail."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base, "bcnet", name)


def read(path: Path) -> Optional[bytes]:
    """The content of a cached file, marked as used now; None if it does not exist."""
    try:
        content = path.read_bytes()
        os.utime(str(path))
        return content
    except OSError:
        return None


def write(path: Path, content: bytes) -> None:
    """Cache a file atomically; errors, e.g. a full disk, are ignored: it can be built again."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=str(path.parent), suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(part, str(path))
        except OSError:
            os.unlink(part)
        _evict(path)
    except OSError:
        pass


def _evict(newest: Path) -> None:
    """Delete the least recently used files with the suffix of `newest`, until the others fit."""
    others = [path for path in newest.parent.glob("*" + newest.suffix) if path != newest]
    kept = newest.stat().st_size
    for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True):
        kept += path.stat().st_size
        if kept > KEPT_BYTES:
            path.unlink()
