"""A supernet in its file, and beside it a line for each step of its training: finished, or as far as it got.

In: tensors, each step's widths and loss, the curve, what they were made from. Out: the same, if the files
were not changed. `NAME.safetensors` has the number of lines of `NAME.jsonl` that belong to it, and their
last seal.
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
from bcnet.runs import write_file, write_files
from bcnet.sealed import OTHERS, SealedLines, read_about, seal_tensors, sealed_lines, unseal_tensors
from bcnet.space.width_space import Widths
from bcnet.training.checkpoints import Snapshot

Record = tuple[Widths, float]


@dataclass(frozen=True)
class TrainResult:
    """A trained supernet: its tensors, widths and loss of every step, the mean loss of every epoch."""

    state: dict[str, Tensor]
    records: tuple[Record, ...]
    curve: tuple[float, ...]


@dataclass(frozen=True)
class Checkpoint:
    """Where a training stands after an epoch."""

    snapshot: Snapshot
    records: tuple[Record, ...]
    curve: tuple[float, ...]


class Replaced(ValueError):
    """Another training was killed when it had put its lines, and not yet its tensors, in place."""


class CheckpointFiles:
    """The files that a training continues from; `inputs` are all that its result depends on.

    Lines are appended before the tensors are replaced: those of an epoch without tensors are dropped.
    """

    def __init__(self, path: Path, inputs: Mapping[str, str]) -> None:
        self.path, self.inputs = path, dict(inputs)
        self._lines: SealedLines | None = None

    def load(self) -> Checkpoint | None:
        """The saved state of a stopped training; None for one with other inputs.

        Raises ArtifactError where a file was changed.
        """
        try:
            if read_about(self.path).get("inputs") != self.inputs:
                return None
            tensors, about = unseal_tensors(self.path)
            if about["epoch"] is None:
                raise ValueError("it is a finished supernet")
            self._lines, records = _steps(self.path, about)
        except Replaced:
            return None
        except ValueError as cause:
            raise ArtifactError(
                f"{self.path} cannot be read ({cause}); delete it to train from the start"
            ) from None
        return Checkpoint(Snapshot(int(about["epoch"]), tensors), records, tuple(about["curve"]))

    def save(self, checkpoint: Checkpoint) -> None:
        """Save the state of a training."""
        at, beside = checkpoint.snapshot, lines_beside(self.path)
        about = {"inputs": self.inputs, "epoch": at.epoch, "curve": list(checkpoint.curve)}
        if self._lines is None:  # what another training left is replaced as a whole
            content, seal = sealed_lines(self.inputs, checkpoint.records)
            tensors = _sealed(at.tensors, about, len(checkpoint.records), seal)
            write_files({beside: content, self.path: tensors})
            self._lines = SealedLines(beside, self.inputs)
            return
        lines = self._lines
        lines.extend(checkpoint.records[len(lines.values) :])
        write_file(self.path, _sealed(at.tensors, about, len(lines.values), lines.seal))


def finished_files(name: str, result: TrainResult, inputs: Mapping[str, str]) -> dict[str, bytes]:
    """A trained supernet as files that `load_finished` reads; `name` is that of its tensors."""
    lines, seal = sealed_lines(inputs, result.records)
    about = {"inputs": dict(inputs), "epoch": None, "curve": list(result.curve)}
    tensors = _sealed(result.state, about, len(result.records), seal)
    return {name: tensors, lines_beside(Path(name)).name: lines}


def load_finished(path: Path, inputs: Mapping[str, str]) -> TrainResult | None:
    """The supernet in a file, if it was trained with these inputs and the files were not changed."""
    with suppress(ValueError):
        if path.exists() and read_about(path).get("inputs") == inputs:
            tensors, about = unseal_tensors(path)
            if about["epoch"] is None:
                return TrainResult(tensors, _steps(path, about)[1], tuple(about["curve"]))
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


def _steps(path: Path, about: Mapping[str, Any]) -> tuple[SealedLines | None, tuple[Record, ...]]:
    """The lines that belong to tensors, to which more can be added, and what they hold.

    No lines for a file of an earlier version. Raises ValueError where some are not what was written.
    """
    if isinstance(about["records"], str):
        return None, _inside(about["records"])
    lines = SealedLines(lines_beside(path), about["inputs"], most=about["records"])
    if lines.dropped == OTHERS:
        raise Replaced(lines.dropped)
    if len(lines.values) != about["records"] or lines.seal != about["seal"]:
        reason = lines.dropped or "cut short or edited"
        raise ValueError(f"{lines.path.name} is not what was written: {reason}")
    return lines, records_of(lines)


def _inside(compressed: str) -> tuple[Record, ...]:
    """The records of an earlier version's file, which had them among the tensors' metadata."""
    records: Sequence[Any] = json.loads(zlib.decompress(base64.b85decode(compressed)))
    return tuple((Widths(widths), float(loss)) for widths, loss in records)
