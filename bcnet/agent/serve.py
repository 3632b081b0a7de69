"""The agent's request loop on another machine. In and out: one JSON object per line, until the input ends.

An answer has the "id" of its request. "hello" describes the machine; "have" and "put" upload files, which are
named by their SHA-256; "get" downloads them; "job" executes a job (see `jobs`), with `bytes` in the job and
its answer packed by `parcels`.
"""

import base64
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import signal
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO, Dict

from . import jobs, look
from .errors import JobError, one_line
from .parcels import packed, unpacked

CHUNK = 1024 * 1024
KEPT_BYTES = 2 * 1024**3  # maximum size of all files; the least recently used are deleted first
KEPT_S = 7 * 24 * 3600.0
WAIT_S = 1.0  # interval of messages while it waits for another agent's job


class Agent:
    """The state of an agent, in its folder: uploaded files, answers to jobs, and a lock for measuring."""

    def __init__(self, folder: Path, out: BinaryIO) -> None:
        self.folder, self.out, self.session = folder, out, ""
        self.files, self.answers = folder / "files", folder / "answers"
        for path in (folder, self.files, self.answers):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def answer(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """The answer to a request. Raises JobError."""
        what = request["do"]
        if what == "hello":
            return self._hello(request["session"], request.get("stop", False))
        if what == "have":
            return {"have": self._have(str(request["file"]), request["size"])}
        if what == "put":
            return {"have": self._put(request)}
        if what == "get":
            with (self.files / request["file"]).open("rb") as file:
                file.seek(request["offset"])
                return {"data": base64.b64encode(file.read(CHUNK)).decode()}
        return self._job(request)

    def _hello(self, session: str, stop: bool) -> Dict[str, Any]:
        self.session = session
        if stop:
            self._stop()
        self._tidy(KEPT_BYTES)
        return {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "folder": str(self.folder),
            "power_mode": look.power_mode(),
        }

    def _stop(self) -> None:
        """Kill a running job of this session that it has given up; jobs of other sessions go on."""
        with (self.folder / "lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.seek(0)
                with contextlib.suppress(OSError, ValueError, KeyError):
                    owner = json.loads(lock.read())
                    if owner["session"] == self.session:
                        os.kill(owner["pid"], signal.SIGKILL)

    def _have(self, name: str, size: int) -> int:
        """The number of bytes of a file that have arrived; -1 if it is complete."""
        file, part = self.files / name, self._part(name)
        with contextlib.suppress(FileNotFoundError):
            if file.stat().st_size == size:
                os.utime(str(file))
                return -1
            file.unlink()  # incomplete after a power failure
        return part.stat().st_size if part.exists() else 0

    def _part(self, name: str) -> Path:
        """The path of this session's partial upload of a file; other sessions may be uploading it, too."""
        return self.files / ("%s.%s.part" % (name, self.session))

    def _put(self, request: Dict[str, Any]) -> int:
        name, data = str(request["file"]), base64.b64decode(request["data"])
        part = self._part(name)
        try:
            with part.open("ab") as file:
                if file.tell() != request["offset"]:
                    return int(file.tell())
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as cause:
            with contextlib.suppress(FileNotFoundError):
                part.unlink()
            if cause.errno == errno.ENOSPC and self._tidy(0):
                raise JobError("gone", "files were deleted to make room: send them again")
            raise
        if part.stat().st_size < request["size"]:
            return part.stat().st_size
        if hashlib.sha256(part.read_bytes()).hexdigest() != name:
            part.unlink()
            return 0
        part.rename(self.files / name)
        return -1

    def _job(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """The answer to a job; the stored one if the connection was lost before the answer arrived."""
        kept = self.answers / str(request["key"])
        with (self.folder / "lock").open("a+") as lock:
            self._alone(lock, request["id"])
            with contextlib.suppress(OSError, ValueError):  # it may be empty after a power failure
                return dict(json.loads(kept.read_text()))
            done = jobs.run(unpacked(request["job"], self._fetch))
            answer: Dict[str, Any] = packed(done, self._keep)
            with contextlib.suppress(OSError):  # a full disk: if this answer is lost, the job is run again
                _write(kept, json.dumps(answer).encode())
            return answer

    def _alone(self, lock: Any, number: int) -> None:
        """Wait for the lock, so that only one agent measures at a time."""
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:  # repeated messages end this agent once nobody reads its output
                self.send({"id": number, "waiting": "another agent measures there"})
                time.sleep(WAIT_S)
        lock.truncate(0)
        lock.write(json.dumps({"pid": os.getpid(), "session": self.session}))
        lock.flush()

    def _fetch(self, name: str, size: int) -> bytes:
        try:
            return (self.files / name).read_bytes()
        except FileNotFoundError:
            raise JobError("gone", "file %s no longer exists" % name)

    def _keep(self, name: str, content: bytes) -> None:
        _write(self.files / name, content)

    def _tidy(self, max_bytes: int) -> int:
        """Delete old answers and partial uploads, and the least recently used files beyond `max_bytes`.

        Returns the number of bytes of deleted files. Other agents may delete files at the same time.
        """
        now, used, freed = time.time(), 0, 0
        found = []
        for path in list(self.answers.iterdir()) + list(self.files.iterdir()):
            with contextlib.suppress(FileNotFoundError):
                facts = path.stat()
                if path.parent == self.files and path.suffix != ".part":
                    found.append((facts.st_mtime, facts.st_size, path))
                elif now - facts.st_mtime > KEPT_S:
                    path.unlink()
        for _, size, path in sorted(found, reverse=True):
            used += size
            if used > max_bytes:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
                    freed += size
        return freed

    def send(self, message: Dict[str, Any]) -> None:
        """Write one line."""
        self.out.write(json.dumps(message).encode() + b"\n")
        self.out.flush()


def main() -> None:
    """Serve until the input ends. The first argument is the folder; output of libraries goes to stderr."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        agent = Agent(Path(os.path.expanduser(sys.argv[1])).resolve(), out)
    except OSError as cause:
        out.write(
            json.dumps({"id": 0, "error": {"kind": "device", "message": _cannot(cause)}}).encode() + b"\n"
        )
        out.flush()
        return
    os.environ["XDG_CACHE_HOME"] = str(agent.folder / "cache")  # engines are cached on the chosen disk, too
    for line in sys.stdin.buffer:
        number = 0
        try:
            request = json.loads(line.decode())
            number = request["id"]
            message = {"id": number, "answer": agent.answer(request)}
        except JobError as error:
            message = {"id": number, "error": {"kind": error.kind, "message": error.message}}
        except OSError as cause:
            message = {"id": number, "error": {"kind": "device", "message": _cannot(cause)}}
        except MemoryError:
            message = {"id": number, "error": {"kind": "network", "message": "out of memory"}}
        except Exception as cause:
            message = {"id": number, "error": {"kind": "device", "message": one_line(cause)}}
        agent.send(message)


def _write(path: Path, content: bytes) -> None:
    """Write a file atomically, also with respect to a power failure."""
    part = path.with_name("%s.%d.part" % (path.name, os.getpid()))
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def _cannot(cause: OSError) -> str:
    where = " %s" % cause.filename if cause.filename else ""
    hint = (
        "; free some space there, or set host_folder to another disk" if cause.errno == errno.ENOSPC else ""
    )
    return "cannot write or read%s: %s%s" % (where, cause.strerror or cause, hint)
