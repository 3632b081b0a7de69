"""Checkpoints of a training. In: its state after an epoch. Out: the same, from a file of a plain network.

A sealed safetensors file holds the state of the training after an epoch. A file that was truncated or edited,
or that belongs to another training, is not continued.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bcnet.progress import say
from bcnet.runs import write_file
from bcnet.sealed import seal_tensors, unseal_tensors


@dataclass(frozen=True)
class Snapshot:
    """The state between two epochs that a continued training needs.

    Parameters by name, buffers as "buffer:NAME", the optimizer's tensors as "optimizer:SLOT:NAME".
    """

    epoch: int
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class CheckpointFile:
    """A file that a killed training continues from; `made_from` is everything that its result depends on."""

    path: Path
    made_from: Mapping[str, str]

    def save(self, snapshot: Snapshot) -> None:
        """Write the state after an epoch, atomically."""
        tensors = {name: tensor.contiguous() for name, tensor in snapshot.tensors.items()}
        about = {"made_from": dict(self.made_from), "epoch": snapshot.epoch}
        write_file(self.path, seal_tensors(tensors, about))

    def load(self) -> Snapshot | None:
        """The saved state; None if there is none that can be continued (reported if a file exists)."""
        if not self.path.exists():
            return None
        try:
            tensors, about = unseal_tensors(self.path)
        except ValueError as cause:
            say(f"{self.path}: {cause}; training starts from the beginning")
            return None
        if about.get("made_from") != dict(self.made_from):
            say(f"{self.path} has other settings: training starts from the beginning")
            return None
        return Snapshot(int(about["epoch"]), tensors)
