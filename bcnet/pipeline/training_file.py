"""A supernet in its file, with how it was trained: finished, or as far as a stopped training got.

In: tensors, each step's widths and loss, the curve, what they were made from. Out: the same, if the file was
not changed.
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
from bcnet.runs import write_file
from bcnet.sealed import read_about, seal_tensors, unseal_tensors
from bcnet.space.width_space import Widths
from bcnet.training.loop import Snapshot

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


def finished_bytes(result: TrainResult, inputs: Mapping[str, str]) -> bytes:
    """A trained supernet as a file that `load_finished` reads."""
    return _bytes(result.state, result.records, result.curve, inputs)


def load_finished(path: Path, inputs: Mapping[str, str]) -> TrainResult | None:
    """The supernet in a file, if it was trained with these inputs and the file was not changed."""
    with suppress(ValueError):
        if path.exists() and read_about(path).get("inputs") == inputs:
            tensors, about = unseal_tensors(path)
            if about["epoch"] is None:
                return TrainResult(tensors, _records(about), tuple(about["curve"]))
    return None


def save_checkpoint(path: Path, checkpoint: Checkpoint, *, inputs: Mapping[str, str]) -> None:
    """Save the state of a training."""
    at = checkpoint.snapshot
    write_file(path, _bytes(at.tensors, checkpoint.records, checkpoint.curve, inputs, at.epoch))


def load_checkpoint(path: Path, inputs: Mapping[str, str]) -> Checkpoint | None:
    """The saved state of a stopped training; None for one with other inputs.

    Raises ArtifactError where the file was changed.
    """
    try:
        if read_about(path).get("inputs") != inputs:
            return None
        tensors, about = unseal_tensors(path)
        if about["epoch"] is None:
            raise ValueError("it is a finished supernet")
    except ValueError as cause:
        raise ArtifactError(f"{path} cannot be read ({cause}); delete it to train from the start") from None
    return Checkpoint(Snapshot(int(about["epoch"]), tensors), _records(about), tuple(about["curve"]))


def inputs_of(path: Path) -> dict[str, str] | None:
    """What a file says it was made from; None where it cannot be read or is from an earlier version."""
    with suppress(ValueError, TypeError):
        return dict(read_about(path)["inputs"])
    return None


def _bytes(
    tensors: Mapping[str, Tensor],
    records: Sequence[Record],
    curve: Sequence[float],
    inputs: Mapping[str, str],
    epoch: int | None = None,
) -> bytes:
    """`epoch`: the last finished one of a training that is not complete."""
    # Compressed: the header of a safetensors file is limited to 100 MB.
    steps = base64.b85encode(zlib.compress(json.dumps(list(records)).encode())).decode()
    about = {"inputs": dict(inputs), "epoch": epoch, "records": steps, "curve": list(curve)}
    return seal_tensors({name: tensor.contiguous() for name, tensor in tensors.items()}, about)


def _records(about: Mapping[str, Any]) -> tuple[Record, ...]:
    records = json.loads(zlib.decompress(base64.b85decode(about["records"])))
    return tuple((Widths(widths), float(loss)) for widths, loss in records)
