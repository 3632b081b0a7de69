"""Checkpoints and the record of a training. In: its state after a step. Out: the same, from a file.

A sealed safetensors file holds the state. A file that was truncated or edited, or that belongs to another
training, is not continued.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bcnet.progress import say
from bcnet.runs import write_file
from bcnet.sealed import seal_tensors, unseal_tensors

EVERY_S = 300.0  # between two checkpoints within an epoch, at least
SHARE = 0.01  # of the time that they take, at most


@dataclass(frozen=True)
class Snapshot:
    """The state after `epoch` epochs and `step` steps of the next one, whose losses' sum is `loss`.

    Parameters by name, buffers as "buffer:NAME", the optimizer's tensors as "optimizer:SLOT:NAME".
    """

    epoch: int
    tensors: dict[str, Tensor]
    step: int = 0
    loss: float = 0.0

    @classmethod
    def at(cls, about: Mapping[str, Any], tensors: dict[str, Tensor]) -> "Snapshot":
        """The state with these `numbers`. Earlier versions wrote none within an epoch."""
        return cls(int(about["epoch"]), tensors, int(about.get("step", 0)), float(about.get("loss", 0.0)))

    @property
    def numbers(self) -> dict[str, int | float]:
        """All but the tensors, for the file's JSON values."""
        within = {"step": self.step, "loss": self.loss} if self.step else {}
        return {"epoch": self.epoch, **within}


class Pace:
    """When a checkpoint within an epoch is due: after `EVERY_S`, later if writing takes more than `SHARE`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = clock() + EVERY_S

    @property
    def due(self) -> bool:
        """Whether it is time."""
        return self._clock() >= self._next

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A checkpoint is written during the block."""
        start = self._clock()
        yield
        end = self._clock()
        self._next = end + max(EVERY_S, (end - start) / SHARE)


@dataclass(frozen=True)
class Epoch:
    """An epoch of a training: its number from 1, the mean loss of its steps, the rate of its last step.

    `accuracy` is the task's metric on the validation images after it.
    """

    number: int
    loss: float
    rate: float
    accuracy: float


@dataclass
class EpochLog:
    """What is recorded of a training after each epoch; `metric_of` evaluates the network."""

    metric_of: Callable[[nn.Module], float]
    epochs: list[Epoch] = field(default_factory=list)

    def add(self, number: int, loss: float, rate: float, network: nn.Module) -> Epoch:
        """Evaluate the network, which is in training mode afterwards, and record the epoch."""
        accuracy = self.metric_of(network)
        network.train()
        self.epochs.append(Epoch(number, round(loss, 5), float(f"{rate:.5g}"), round(accuracy, 6)))
        return self.epochs[-1]


@dataclass(frozen=True)
class CheckpointFile:
    """A file that a killed training continues from; `made_from` is everything that its result depends on.

    With a `log`, each epoch is recorded there, and in the file.
    """

    path: Path
    made_from: Mapping[str, str]
    log: EpochLog | None = None

    def save(self, snapshot: Snapshot) -> None:
        """Write the state, atomically."""
        tensors = {name: tensor.contiguous() for name, tensor in snapshot.tensors.items()}
        about: dict[str, Any] = {"made_from": dict(self.made_from), **snapshot.numbers}
        if self.log is not None:
            about["epochs"] = [asdict(epoch) for epoch in self.log.epochs]
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
        if self.log is not None:  # earlier versions recorded none
            self.log.epochs[:] = [Epoch(**epoch) for epoch in about.get("epochs", ())]
        return Snapshot.at(about, tensors)
