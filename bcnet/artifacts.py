"""The run directory: one folder a stage, each closed by a manifest that is written last.

In: what a stage made. Out: files that are whole or absent, and the answer to "does this still match?".
A manifest records a digest of everything the stage read (`inputs`) and of every file it wrote (`outputs`).
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bcnet.errors import ArtifactError

MANIFEST = "manifest.json"
SCHEMA = 1


def digest(value: object) -> str:
    """A short stable hash of a JSON-like value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """The hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step.

    Whatever stood at `path` stays until the new file is complete; a failed write leaves no litter.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    text = json.dumps(value, indent=2) + "\n"
    write_atomically(path, lambda temporary: _write_text(temporary, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def read_json(path: Path, mend: str) -> Any:
    """The JSON value in `path`; `mend` is the command that makes the file anew."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing; run `{mend}`") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as cause:
        raise ArtifactError(
            f"{path} is cut short or edited ({cause}); run `{mend}` to make it anew"
        ) from None


@dataclass(frozen=True)
class Stage:
    """One stage's folder in a run: `runs/<run>/<name>/`."""

    folder: Path
    name: str
    command: str

    def path(self, file: str) -> Path:
        """Where this stage keeps `file`."""
        return self.folder / file

    def finish(self, inputs: Mapping[str, str], files: tuple[str, ...]) -> None:
        """Close the stage: record what it read and what it wrote. Nothing counts before this."""
        outputs = {file: file_digest(self.path(file)) for file in files}
        manifest = {"schema": SCHEMA, "stage": self.name, "inputs": dict(inputs), "outputs": outputs}
        write_json(self.path(MANIFEST), manifest)

    def reopen(self) -> None:
        """Take the manifest away before the files that it vouches for are replaced."""
        self.path(MANIFEST).unlink(missing_ok=True)

    def manifest(self) -> dict[str, Any]:
        """The stage's manifest, its files checked against it. Errors name the command that mends."""
        path = self.path(MANIFEST)
        if not path.exists():
            raise ArtifactError(f"{self.folder} holds no finished {self.name}; run `{self.command}` first")
        manifest = read_json(path, self.command)
        if (
            not isinstance(manifest, dict)
            or manifest.get("schema") != SCHEMA
            or not isinstance(manifest.get("inputs"), dict)
            or not isinstance(manifest.get("outputs"), dict)
        ):
            raise ArtifactError(f"{path} is not a manifest of this version; run `{self.command}` again")
        for file, expected in manifest["outputs"].items():
            if not self.path(file).exists():
                raise ArtifactError(f"{self.path(file)} is missing; run `{self.command}` again")
            if file_digest(self.path(file)) != expected:
                raise ArtifactError(
                    f"{self.path(file)} is not what {self.name} wrote (cut short or edited); "
                    f"run `{self.command}` again"
                )
        return manifest

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

    def matches(self, inputs: Mapping[str, str]) -> bool:
        """Whether the stage is finished, whole, and was made from exactly these inputs."""
        try:
            return bool(self.manifest()["inputs"] == dict(inputs))
        except ArtifactError:
            return False


@dataclass(frozen=True)
class Run:
    """One run's folder: `runs/<name>/` in the working folder."""

    folder: Path

    @classmethod
    def named(cls, name: str) -> "Run":
        """The run of that name in the working folder."""
        return cls(Path("runs") / name)

    def stage(self, name: str) -> Stage:
        """The folder of the stage called `name`."""
        flag = "" if self.folder.name == "default" else f" --run {self.folder.name}"
        command = "run" if name == "compare" else name
        return Stage(self.folder / name, name, f"bcnet {command}{flag}")
