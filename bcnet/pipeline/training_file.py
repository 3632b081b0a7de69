"""A supernet in its file, and beside it a line for each step of its training: finished, or as far as it got.

In: tensors, each step's widths and loss, the curve, what they were made from. Out: the same, if the files
were not changed; the lines stay on disk. `NAME.safetensors` has the number of lines of `NAME.jsonl` that
belong to it, and their last seal.
"""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bcnet.errors import ArtifactError
from bcnet.runs import Content, FilePart, write_file, write_files
from bcnet.sealed import OTHERS, SealedLines, read_about, seal_tensors, sealed_lines, unseal_tensors
from bcnet.space.width_space import Widths
from bcnet.training.checkpoints import Snapshot

Record = tuple[Widths, float]


@dataclass(frozen=True)
class StepLines:
    """The lines of all steps of a training: their content, their number, the seal of the last one."""

    content: Content
    count: int
    seal: str

    @classmethod
    def of(cls, lines: SealedLines) -> "StepLines":
        """Those of a file."""
        return cls(FilePart(lines.path, lines.kept), lines.count, lines.seal)


@dataclass(frozen=True)
class Finished:
    """A trained supernet: its tensors, the mean loss of every epoch, the lines of its steps."""

    state: Mapping[str, Tensor]
    curve: tuple[float, ...]
    steps: StepLines


@dataclass(frozen=True)
class Checkpoint:
    """Where a training stands: its state, and the mean loss of every epoch so far."""

    snapshot: Snapshot
    curve: tuple[float, ...]


class Replaced(ValueError):
    """Another training was killed when it had put its lines, and not yet its tensors, in place."""


class CheckpointFiles:
    """The files that a training continues from; `inputs` are all that its result depends on.

    Lines are appended before the tensors are replaced: those without tensors are dropped.
    """

    def __init__(self, path: Path, inputs: Mapping[str, str]) -> None:
        self.path, self.inputs = path, dict(inputs)
        self._lines: SealedLines | None = None

    def load(self) -> Checkpoint | None:
        """The saved state of a stopped training; None where there is none, or one with other inputs.

        Raises ArtifactError where a file was changed.
        """
        if not self.path.exists():
            return None
        try:
            if read_about(self.path).get("inputs") != self.inputs:
                return None
            tensors, about = unseal_tensors(self.path)
            if about["epoch"] is None:
                raise ValueError("it is a finished supernet")
            at = Checkpoint(Snapshot.at(about, tensors), tuple(about["curve"]))
            if isinstance(about["records"], str):  # of an earlier version
                self.save(at, _inside(about["records"]))
            else:
                self._lines = _lines_of(self.path, about)
        except Replaced:
            return None
        except ValueError as cause:
            raise ArtifactError(
                f"{self.path} cannot be read ({cause}); delete it to train from the start"
            ) from None
        return at

    def save(self, checkpoint: Checkpoint, records: Sequence[Record]) -> None:
        """Save the state of a training, and the records of its steps since it was saved last."""
        at, beside = checkpoint.snapshot, lines_beside(self.path)
        about = {"inputs": self.inputs, **at.numbers, "curve": list(checkpoint.curve)}
        if self._lines is None:  # what another training left is replaced as a whole
            content, seal = sealed_lines(self.inputs, records)
            tensors = _sealed(at.tensors, about, len(records), seal)
            write_files({beside: content, self.path: tensors})
            self._lines = SealedLines(beside, self.inputs, last=0)
            return
        lines = self._lines
        lines.extend(records)
        write_file(self.path, _sealed(at.tensors, about, lines.count, lines.seal))

    def steps(self) -> StepLines:
        """The lines of all steps that were saved."""
        assert self._lines is not None
        return StepLines.of(self._lines)


def finished_files(name: str, finished: Finished, inputs: Mapping[str, str]) -> dict[str, Content]:
    """A trained supernet as files that `load_finished` reads; `name` is that of its tensors.

    `inputs` are those of the lines of its steps, too.
    """
    about, steps = {"inputs": dict(inputs), "epoch": None, "curve": list(finished.curve)}, finished.steps
    tensors = _sealed(finished.state, about, steps.count, steps.seal)
    return {name: tensors, lines_beside(Path(name)).name: steps.content}


def load_finished(path: Path, inputs: Mapping[str, str]) -> Finished | None:
    """The supernet in a file, if it was trained with these inputs and the files were not changed."""
    with suppress(ValueError):
        if path.exists() and read_about(path).get("inputs") == inputs:
            tensors, about = unseal_tensors(path)
            if about["epoch"] is None:
                return Finished(tensors, tuple(about["curve"]), _steps(path, about))
    return None


def inputs_of(path: Path) -> dict[str, str] | None:
    """What a file says it was made from; None where it cannot be read or is from an earlier version."""
    with suppress(ValueError, TypeError):
        return dict(read_about(path)["inputs"])
    return None


def lines_beside(path: Path) -> Path:
    """The file of a training's steps, beside that of its tensors."""
    return path.with_suffix(".jsonl")


def records_of(lines: SealedLines) -> tuple[Record, ...]:
    """Widths and loss of every step."""
    return tuple((Widths(widths), float(loss)) for widths, loss in lines.values)


def _sealed(tensors: Mapping[str, Tensor], about: Mapping[str, Any], records: int, seal: str) -> bytes:
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return seal_tensors(contiguous, {**about, "records": records, "seal": seal})


def _steps(path: Path, about: Mapping[str, Any]) -> StepLines:
    """The lines that belong to tensors. Raises ValueError where some are not what was written."""
    if isinstance(about["records"], str):  # of an earlier version
        records = _inside(about["records"])
        content, seal = sealed_lines(about["inputs"], records)
        return StepLines(content, len(records), seal)
    return StepLines.of(_lines_of(path, about))


def _lines_of(path: Path, about: Mapping[str, Any]) -> SealedLines:
    """The lines that belong to tensors, to which more can be added, without their values.

    Raises ValueError where some are not what was written.
    """
    lines = SealedLines(lines_beside(path), about["inputs"], about["records"], last=0)
    if lines.dropped == OTHERS:
        raise Replaced(lines.dropped)
    if lines.count != about["records"] or lines.seal != about["seal"]:
        reason = lines.dropped or "cut short or edited"
        raise ValueError(f"{lines.path.name} is not what was written: {reason}")
    return lines


def _inside(compressed: str) -> tuple[Record, ...]:
    """The records of an earlier version's file, which had them among the tensors' metadata."""
    records: Sequence[Any] = json.loads(zlib.decompress(base64.b85decode(compressed)))
    return tuple((Widths(widths), float(loss)) for widths, loss in records)
