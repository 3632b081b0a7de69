"""The run directory: one folder per stage, each completed by a manifest that is written last.

In: what a stage made. Out: files that are whole or absent, and the answer to "does this still match?".
A manifest records a digest of everything the stage read (`inputs`) and of every file it wrote (`outputs`).
"""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shlex
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from bcnet.errors import ArtifactError
from bcnet.events import followed_stage
from bcnet.locks import Locked, is_lock_file, lock_file, locked, remove_if_free
from bcnet.reading import JSON_BYTES, MIB, opened, parse_json, read_text

P = ParamSpec("P")
R = TypeVar("R")
RUNS = Path("runs")  # in the working folder
MANIFEST = "manifest.json"
UNFINISHED = ".unfinished"  # the end of a temporary file's name
SCHEMA = 2
NOT_DONE = "not done yet"


def digest(value: object) -> str:
    """A short stable hash of a JSON-like value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class FilePart:
    """The first `size` bytes of a file, as the content of another: copied in pieces."""

    path: Path
    size: int

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[bytes]:
        """The pieces. Raises OSError, or ValueError if the path is not a regular file."""
        left = self.size
        with opened(self.path) as file:
            while left and (piece := file.read(min(left, MIB))):
                left -= len(piece)
                yield piece


Content = bytes | FilePart  # of a file to be written


def _pieces(content: Content) -> Iterable[bytes]:
    return content if isinstance(content, FilePart) else [content]


def bytes_digest(content: Content) -> str:
    """The hash of a file's content."""
    found = hashlib.sha256()
    for piece in _pieces(content):
        found.update(piece)
    return found.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """The same for a file on disk. Raises OSError, or ValueError if the path is not a regular file."""
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def json_bytes(value: object) -> bytes:
    """`value` as an indented JSON file."""
    return (json.dumps(value, indent=2) + "\n").encode()


def write_files(files: Mapping[Path, Content], obsolete: Iterable[Path] = ()) -> None:
    """Write all files, or none: each is complete beside its target before the first is put in place.

    They are put in place in the order given; `obsolete` files are removed before the last. Each target keeps
    its old content until then. A failed write leaves no temporary files, and those that a killed process
    left in these folders are removed. Raises OSError that names the target.
    """
    for target in files:
        target.parent.mkdir(parents=True, exist_ok=True)
    for folder in {target.parent for target in files}:
        sweep(folder)
    pending: list[tuple[Path, Path]] = []
    with ExitStack() as locked:  # until all are in place, so that no other process removes them
        try:
            for target, content in files.items():
                handle = _temporary(target, pending)
                file = locked.enter_context(open(handle, "wb", buffering=0))
                for piece in _pieces(content):
                    written = memoryview(piece)
                    while written:
                        written = written[file.write(written) :]
                os.fsync(handle)
            for number, (temporary, target) in enumerate(pending, 1):
                for path in obsolete if number == len(pending) else ():
                    path.unlink(missing_ok=True)
                temporary.replace(target)
        except OSError as cause:
            raise OSError(cause.errno, cause.strerror, str(target)) from cause
        finally:
            for temporary, _ in pending:
                with suppress(OSError):  # in a read-only folder, of which the error above names the target
                    temporary.unlink(missing_ok=True)


def _temporary(target: Path, pending: list[tuple[Path, Path]]) -> int:
    """A new file beside `target`, locked while its handle is open: the lock ends with its process.

    It is added to `pending` before it is created, so that it is removed after an interrupt at any moment.
    """
    while True:
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}{UNFINISHED}")
        pending.append((temporary, target))
        try:
            handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            pending.pop()
            continue
        with suppress(OSError):  # a file system without locks: there, `sweep` finds none free either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            os.fchmod(handle, 0o644)
            return handle
        os.close(handle)  # another process removed it before it was locked
        pending.pop()


def sweep(folder: Path) -> None:
    """Remove temporary and lock files of killed processes in a folder: those that no process locks."""
    try:
        names = [name for name in os.listdir(folder) if name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    for name in names:
        if is_lock_file(name):
            remove_if_free(folder / name)
        if not name.endswith(UNFINISHED):
            continue
        with suppress(OSError):
            handle = os.open(folder / name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if stat.S_ISREG(os.fstat(handle).st_mode):
                    (folder / name).unlink()
            finally:
                os.close(handle)


def write_file(path: Path, content: bytes) -> None:
    """Write one file atomically."""
    write_files({path: content})


def read_json(path: Path, command: str) -> Any:
    """The JSON value in `path`; `command` makes the file again."""
    try:
        return parse_json(read_text(path, JSON_BYTES))
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing; run `{command}`") from None
    except ValueError as cause:
        raise ArtifactError(
            f"{path} is cut short or edited ({cause}); run `{command}` to make it again"
        ) from None


@dataclass(frozen=True)
class Stage:
    """One stage's folder in a run: `runs/<run>/<name>/`."""

    folder: Path
    name: str
    command: str

    def path(self, file: str) -> Path:
        """The path of `file` of this stage."""
        return self.folder / file

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Keep other processes away from this stage for the length of the block.

        Raises ArtifactError where another process is at work, OSError where the path cannot be a folder.
        """
        if self.folder.exists() and not self.folder.is_dir():  # fail now, and not after all the work
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self.folder))
        try:
            with locked(self.folder):
                for path in self._left():
                    shutil.rmtree(path, ignore_errors=True)
                yield
        except Locked:
            raise ArtifactError(
                f"another process is at work in {self.folder}; wait until it is done, or name another run "
                "with --run NAME"
            ) from None

    def finish(
        self, inputs: Mapping[str, str], files: Mapping[str, Content], obsolete: Iterable[Path] = ()
    ) -> None:
        """Write what the stage made from `inputs`, and last the manifest that identifies its files.

        `obsolete` files, from which a stopped stage continues, are removed before the manifest is written.
        On a full disk the files of an earlier time stay, with their manifest. A process that dies while they
        are put in place leaves a manifest that does not fit them, so they are refused.
        """
        outputs = {file: bytes_digest(content) for file, content in files.items()}
        manifest = {
            "schema": SCHEMA,
            "stage": self.name,
            "inputs": dict(inputs),
            "outputs": outputs,
            "sizes": {file: len(content) for file, content in files.items()},
        }
        manifest["digest"] = digest(manifest)
        written: dict[str, Content] = {**files, MANIFEST: json_bytes(manifest)}
        write_files({self.path(file): content for file, content in written.items()}, obsolete)

    @property
    def previous(self) -> Path:
        """Where `finish_beside` keeps the folder as it was."""
        return self.folder.with_name(f"{self.name}.previous")

    def tidy(self) -> None:
        """Remove what a killed process left beside the folder."""
        if self._left() or lock_file(self.folder).exists():
            with self.at_work():
                pass

    def _left(self) -> list[Path]:
        return [path for path in (self._beside("new"), self._beside("old")) if path.exists()]

    def _beside(self, ending: str) -> Path:
        return self.folder.with_name(f".{self.name}.{ending}")

    def finish_beside(self, inputs: Mapping[str, str], files: Mapping[str, bytes]) -> None:
        """Like `finish`, but keep the old folder as a whole in `previous`: it is renamed, not written to.

        If a write fails, the old folder stays in place. The former content of `previous` is removed.
        """
        fresh, old = Stage(self._beside("new"), self.name, self.command), self._beside("old")
        try:
            fresh.finish(inputs, files)
        except BaseException:
            shutil.rmtree(fresh.folder, ignore_errors=True)
            raise
        if self.previous.exists():
            self.previous.rename(old)
        self.folder.rename(self.previous)
        fresh.folder.rename(self.folder)
        shutil.rmtree(old, ignore_errors=True)

    def manifest(self) -> dict[str, Any]:
        """The stage's manifest, its files checked against it. Errors name the command that renews them."""
        manifest = self._own_manifest()
        for file in manifest["outputs"]:
            self._check(file, manifest)
        return manifest

    def inputs(self) -> dict[str, Any]:
        """The inputs of the stage, without reading its own files. Raises ArtifactError."""
        inputs: dict[str, Any] = self._own_manifest()["inputs"]
        return inputs

    def digest(self) -> str:
        """What later manifests record of this stage, without reading its files. Raises ArtifactError."""
        return digest(self._own_manifest())

    def json(self, file: str) -> dict[str, Any]:
        """The JSON object in one of the stage's files, checked against the manifest. Raises ArtifactError."""
        manifest = self._own_manifest()
        if file not in manifest["outputs"]:
            raise ArtifactError(f"{self.path(file)} is not a file of {self.name}; run `{self.command}` again")
        self._check(file, manifest)
        found = read_json(self.path(file), self.command)
        if not isinstance(found, dict):
            raise ArtifactError(f"{self.path(file)} is not in the form that {self.name} writes")
        return found

    def _own_manifest(self) -> dict[str, Any]:
        path = self.path(MANIFEST)
        if not path.exists():
            run = self.folder.parent
            raise ArtifactError(f"{run} has no finished {self.name}; run `{self.command}` first")
        manifest = read_json(path, self.command)
        if (
            not isinstance(manifest, dict)
            or manifest.get("schema") not in (1, SCHEMA)
            or not isinstance(manifest.get("inputs"), dict)
            or not isinstance(manifest.get("outputs"), dict)
        ):
            raise ArtifactError(f"{path} is not a manifest of this version; run `{self.command}` again")
        sealed = {key: value for key, value in manifest.items() if key != "digest"}
        if manifest.get("digest") != (digest(sealed) if manifest["schema"] == SCHEMA else None):
            raise ArtifactError(f"{path} was edited; run `{self.command}` again")
        return manifest

    def _check(self, file: str, manifest: Mapping[str, Any]) -> None:
        """Raise ArtifactError if a file is not the one that the manifest describes."""
        sizes = manifest.get("sizes", {}) if manifest["schema"] == SCHEMA else {}
        try:
            # Check the size first: a file that has grown without bound is not read.
            grown = self.path(file).stat().st_size != sizes.get(file, self.path(file).stat().st_size)
            if not grown and file_digest(self.path(file)) == manifest["outputs"][file]:
                return
            what = f"is not what {self.name} wrote (cut short or edited)"
        except FileNotFoundError:
            what = "is missing"
        except (OSError, ValueError) as cause:
            what = f"cannot be read ({cause})"
        raise ArtifactError(f"{self.path(file)} {what}; run `{self.command}` again")

    def require(self, inputs: Mapping[str, str]) -> str:
        """Check that the stage is finished and was made from `inputs` (those named); returns its digest."""
        manifest = self.manifest()
        for key, value in inputs.items():
            if manifest["inputs"].get(key) != value:
                raise ArtifactError(
                    f"{self.folder} was made with another {key}; run `{self.command}` again, "
                    "or keep both with --run NAME"
                )
        return digest(manifest)

    def missing(self, inputs: Mapping[str, str], *keys: str) -> str | None:
        """Why the stage must run for those of `inputs` to be what it was made from; None where they are.

        Raises ArtifactError where its files were changed: they are not written over.
        """
        if not self.path(MANIFEST).exists():
            return NOT_DONE
        found = self.manifest()["inputs"]
        changed = [key for key in keys if inputs[key] != found.get(key)]
        return f"{', '.join(changed)} changed" if changed else None

    def outdated(self, inputs: Mapping[str, str]) -> str | None:
        """Why the stage must run; None when it is finished, whole, and made from exactly these inputs."""
        if not self.path(MANIFEST).exists():
            return NOT_DONE
        try:
            found = self.manifest()["inputs"]
        except ArtifactError:
            return "its files were changed"
        changed = [key for key in {**inputs, **found} if inputs.get(key) != found.get(key)]
        return f"{', '.join(changed)} changed" if changed else None


@dataclass(frozen=True)
class Run:
    """One run's folder: `runs/<name>/` in the working folder."""

    folder: Path
    config: Path | None = None  # of the command line: suggested commands name it, too

    @classmethod
    def named(cls, name: str, config: Path | None = None) -> "Run":
        """The run of that name in the working folder."""
        return cls(RUNS / name, config)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Prevent removal of the run during the block. Raises ArtifactError where it is being removed.

        Lock files that killed processes left beside it are removed.
        """
        sweep(self.folder.parent)
        with ExitStack() as held:
            try:
                held.enter_context(locked(self.folder, shared=True))
            except Locked:
                raise ArtifactError(
                    f"{self.folder} is being removed; choose another run with --run NAME"
                ) from None
            except OSError as cause:
                if cause.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                    raise  # nothing in a read-only folder can be removed
            yield

    def stage(self, name: str) -> Stage:
        """The folder of the stage called `name`."""
        words = ["bcnet", *(("run", "--compare") if name == "compare" else (name,))]
        words += [] if self.folder.name == "default" else ["--run", self.folder.name]
        words += [] if self.config is None else ["--config", str(self.config)]
        return Stage(self.folder / name, name, shlex.join(words))


_Runs = Callable[Concatenate[Run, P], R]


def alone_in(stage: str) -> Callable[[_Runs[P, R]], _Runs[P, R]]:
    """Decorate a function that needs exclusive access to this stage's folder of a run.

    Its beginning and end are reported as events.
    """

    def kept_alone(function: _Runs[P, R]) -> _Runs[P, R]:
        followed = followed_stage(stage)(function)

        @wraps(function)
        def alone(run: Run, /, *args: P.args, **kwargs: P.kwargs) -> R:
            with run.stage(stage).at_work():
                return followed(run, *args, **kwargs)

        return alone

    return kept_alone
