"""Train one supernet. In: a supernet, images, a recipe, a step's plan. Out: weights, each epoch's mean loss.

The stage (`train.py`) calls this for each of a run's supernets, with files that a killed training continues
from.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bcnet.data.image_data import ImageData
from bcnet.pipeline.subnet_probes import SubnetProbes
from bcnet.pipeline.training_file import Checkpoint, CheckpointFiles
from bcnet.progress import say
from bcnet.space.supernet import Supernet
from bcnet.space.width_space import Widths
from bcnet.training.assigned_steps import BestAssignments
from bcnet.training.checkpoints import Snapshot
from bcnet.training.cuda_graph import fastest_paths
from bcnet.training.distributed import world
from bcnet.training.loop import Trainee, first_batch, fit, steps_an_epoch
from bcnet.training.parts import SlicedParts, fastest_parts
from bcnet.training.recipe import Objective, Recipe
from bcnet.training.step_errors import check_trained
from bcnet.training.step_plan import STEPS, StepPlan
from bcnet.training.supernet_step import DrawnSteps, Parts, Paths, SlicedPaths, trainable


@dataclass(frozen=True)
class TrainResult:
    """A trained supernet, its tensors on the CPU, and the mean loss of every epoch."""

    supernet: Supernet
    curve: tuple[float, ...]


def train(  # noqa: PLR0913 - each keyword is one independent option with a default
    supernet: Supernet,
    data: ImageData,
    recipe: Recipe,
    *,
    plan: StepPlan = STEPS["plain"],
    objective: Objective | None = None,
    checkpoints: CheckpointFiles | None = None,
    description: str = "training the supernet",
) -> TrainResult:
    """Train a supernet: each step, the paths of evenly drawn widths (BCNet, section 3).

    `plan` says how many widths are drawn, which paths are added to theirs, and whether the widest one is
    distilled into the others. With an `objective` all paths are trained by that, and none is distilled.
    `checkpoints` are updated as `fit` says, with the widths and the loss of the steps; a training that was
    killed continues from them. On a CPU the supernet's own tensors are trained.
    """
    model, supernet = supernet.model, trainable(supernet, recipe.device)
    model.to(recipe.device).train()
    sliced = SlicedPaths(supernet, recipe, objective)
    plan = plan if objective is None else replace(plan, distilled=False)
    paths, parts = _ways(sliced, plan, data)
    resume = checkpoints.load() if checkpoints else None
    assign = None
    if supernet.assignments is not None:
        assign = BestAssignments(sliced, supernet.assignments, data)
        if resume:
            assign.continue_at(resume.snapshot.epoch * steps_an_epoch(data, recipe) + resume.snapshot.step)
    steps = DrawnSteps.of(paths, plan, recipe.seed, assign, parts)
    curve = list(resume.curve) if resume else []
    probes = SubnetProbes(supernet, data, recipe)
    # Of the steps since the last checkpoint: reading one would wait for a GPU.
    unread: list[tuple[list[Widths], Tensor]] = []

    def step(inputs: Any, targets: Any, number: int) -> Tensor:
        drawn, losses = steps(inputs, targets, number)
        unread.append((drawn, losses[: len(drawn)]))
        return losses

    def save(snapshot: Snapshot, mean_loss: float | None) -> None:
        if mean_loss is not None:
            curve.append(round(mean_loss, 5))
        if checkpoints is not None:
            drawn = [own for widths, _ in unread for own in widths]
            values = torch.cat([losses for _, losses in unread]).tolist()
            records = [(own, round(value, 5)) for own, value in zip(drawn, values, strict=True)]
            checkpoints.save(Checkpoint(snapshot, tuple(curve)), records)
        unread.clear()
        if mean_loss is not None:
            probes(description, snapshot.epoch)

    trainee = Trainee(sliced.parameters, step, lambda: sliced.buffers, sliced.scaler)
    fit(
        trainee,
        data,
        recipe,
        description,
        resume=resume.snapshot if resume else None,
        save=save,
    )
    model.cpu().eval()
    trained = {name: tensor.detach() for name, tensor in supernet.state.items()}
    check_trained(trained, "at its end", sliced.parameters)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in trained.items()}
    return TrainResult(replace(supernet, state=tensors), tuple(curve))


def _ways(sliced: SlicedPaths, plan: StepPlan, data: ImageData) -> tuple[Paths, Parts | None]:
    """How paths are trained one after the other, and how all at once; None where the plan has no such steps.

    On a GPU that is tried: with masks or a recorded CUDA graph where these are right and faster.
    """
    recipe, count = sliced.recipe, plan.paths(len(sliced.space.rule.sides))
    on_gpu = recipe.device == "cuda"
    if plan.parallel and on_gpu:
        return sliced, fastest_parts(sliced, *first_batch(data, recipe), count)
    if plan.parallel:  # masks would need more work, and a training that continues must not change its way
        return sliced, SlicedParts(sliced)
    if plan.cuda_graph and on_gpu and (plan.distilled or sliced.objective):
        teacher = "the original network" if sliced.objective else "the widest path"
        say(f"training on slices, not by a recorded CUDA graph: subnets learn from {teacher}'s outputs")
    elif plan.cuda_graph and on_gpu and world().size == 1:
        return fastest_paths(sliced, *first_batch(data, recipe), count), None
    return sliced, None
