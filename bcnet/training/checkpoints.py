"""Checkpoints of a plain network's training. In: a network and a file. Out: the network, fully trained.

A sealed safetensors file holds the state of the training after an epoch. A file that was truncated or edited,
or that belongs to another training, is not continued.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from bcnet.data.dataset import ImageData
from bcnet.progress import say
from bcnet.runs import write_file
from bcnet.sealed import seal_tensors, unseal_tensors
from bcnet.training.loop import Snapshot, fit_network, trainable_parameters
from bcnet.training.recipe import Objective, Recipe


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


def fit_resumably(
    model: nn.Module,
    data: ImageData,
    recipe: Recipe,
    description: str,
    file: CheckpointFile | None,
    objective: Objective | None = None,
) -> None:
    """`fit_network`, continued from the file, which is updated after each epoch; None: without a file.

    On a CPU the result is bit-identical to that of an uninterrupted training.
    """
    if file is None:
        fit_network(model, data, recipe, description, objective=objective)
        return
    if objective is not None:
        file = replace(file, made_from={**file.made_from, "objective": objective.key})
    resume = file.load()
    if resume is not None and not _fits(model, recipe, resume, objective):
        say(f"{file.path} is for another network: training starts from the beginning")
        resume = None
    if resume is not None:
        say(f"{description}: continuing after epoch {resume.epoch} of {recipe.epochs}")
    fit_network(
        model,
        data,
        recipe,
        description,
        objective=objective,
        resume=resume,
        on_epoch=lambda at, _: file.save(at),
    )


def _fits(model: nn.Module, recipe: Recipe, snapshot: Snapshot, objective: Objective | None) -> bool:
    trained: dict[str, Tensor] = {**trainable_parameters(model, objective)}
    own = {**trained, **{f"buffer:{name}": buffer for name, buffer in model.named_buffers()}}
    found = {name: t for name, t in snapshot.tensors.items() if not name.startswith("optimizer:")}
    return (
        0 <= snapshot.epoch <= recipe.epochs
        and found.keys() == own.keys()
        and all(found[name].shape == own[name].shape for name in found)
    )
