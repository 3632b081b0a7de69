"""Locks of files and folders between processes. In: a path. Out: a block for one process at a time.

The lock of `NAME` is the file `.NAME.lock` beside it, so that every process that reaches `NAME` uses the
same lock: in containers, as other users, and on other hosts where the file system shares locks (NFS does,
some network file systems do not). The operating system releases a lock when its process ends. The last
holder removes the file; a file that a killed process left behind does not block, and is removed later.
"""

import errno
import fcntl
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
ATTEMPTS = 100  # of making a folder that others remove: each fails only if they act within microseconds


class Locked(Exception):
    """Another process holds the lock."""


def lock_file(path: Path) -> Path:
    """The lock file of a file or folder; that of a link is beside the link's target."""
    real = Path(os.path.realpath(path))
    path = path if real == Path(os.path.abspath(path)) else real
    return path.with_name(f".{path.name}.lock")


def is_lock_file(name: str) -> bool:
    """Whether this is the name of a lock file."""
    return name.startswith(".") and name.endswith(".lock") and len(name) > len("..lock")


def remove_if_free(file: Path) -> bool:
    """Remove a lock file that a killed process left, unless a process holds it; return whether it did.

    Anything but an empty regular file is not a lock file, and left unchanged.
    """
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_size or not _is_there(file, handle):
            return False
        file.unlink()
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


@contextmanager
def locked(path: Path, *, wait: bool = False, shared: bool = False) -> Iterator[None]:
    """Hold the lock of a file or folder, which need not exist, during the block.

    A `shared` lock can be held by several blocks that share it. If the file system does not support locks, a
    note on stderr reports it. Raises Locked if another process holds it and `wait` is not set, OSError if the
    lock's folder cannot be written.
    """
    file = lock_file(path)
    made = _make_folders(file.parent)
    try:
        handle = _acquired(
            file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        )
        try:
            yield
        finally:
            _release(file, handle)
    finally:
        for folder in made:  # empty, if the block created nothing
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def locked_after_waiting(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """`locked`, if necessary after another process; `waiting()` is called before the wait."""
    with ExitStack() as held:
        try:
            held.enter_context(locked(path))
        except Locked:
            waiting()
            held.enter_context(locked(path, wait=True))
        yield


def _acquired(file: Path, operation: int) -> int:
    """A handle that holds the lock of the file at this path, not that of a removed one."""
    while True:
        handle = _opened(file)
        try:
            try:
                fcntl.flock(handle, operation)
            except OSError as cause:
                if cause.errno not in UNSUPPORTED:
                    raise
                _note(file.parent)
            if _is_there(file, handle):
                return handle
        except BlockingIOError:
            os.close(handle)
            raise Locked(str(file)) from None
        except OSError as cause:
            os.close(handle)
            raise OSError(cause.errno, cause.strerror, str(file)) from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _opened(file: Path) -> int:
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        try:
            handle = os.open(file, flags | os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:  # another process has removed the folder, which was empty
            _make_folder(file.parent)
            continue
        except PermissionError:
            if not file.exists():
                raise
            return os.open(file, flags | os.O_RDONLY)  # another user's: enough for a lock on most systems
        with suppress(OSError):  # every user who may write into the folder may use the lock
            os.fchmod(handle, file.parent.stat().st_mode & 0o666)
        return handle


def _is_there(file: Path, handle: int) -> bool:
    """Whether the open file is still the one at its path: its last holder may have removed it meanwhile."""
    try:
        own, there = os.fstat(handle), os.stat(file, follow_symlinks=False)
    except OSError as cause:
        if cause.errno in (errno.ENOENT, errno.ESTALE):
            return False
        raise
    return own.st_nlink > 0 and (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino)


def _release(file: Path, handle: int) -> None:
    """Remove the file, unless others share its lock or it was moved with its folder; then release it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_there(file, handle):
            file.unlink()
    except OSError:
        pass
    finally:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # now, rather than when a forked process closes its copy
        os.close(handle)


@cache
def _note(folder: Path) -> None:
    print(
        f"the file system of {folder} has no locks: do not start two commands there at once", file=sys.stderr
    )


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder and its missing parents; returns those that were missing, the innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    _make_folder(folder)
    return missing


def _make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, even while other holders remove them because they are empty."""
    for _ in range(ATTEMPTS - 1):
        with suppress(FileExistsError, FileNotFoundError):  # removed between two steps of this call
            folder.mkdir(parents=True, exist_ok=True)
            return
    folder.mkdir(parents=True, exist_ok=True)
