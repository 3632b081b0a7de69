"""Torch-Pruning (Fang et al., DepGraph, CVPR 2023; package `torch-pruning`) as a competitor.

In: a job. Out: the network of its first pruning step that meets the target latency. Importance is computed
again before every step, as its authors advise for iterative pruning.
"""

from contextlib import closing
from itertools import islice
from typing import Any

from torch import nn

from bcnet.bench.outside_job import Job, output_layers, package, quiet
from bcnet.progress import progress_bar
from bcnet.training.loop import batches

STEPS = 180  # each half a percent of the channels: coarser steps skip networks near the budget
LAST = 0.9  # share of the channels that the last step has removed, and the most that a layer loses
BATCHES = 10  # whose gradients a Taylor importance is summed over


def uniform_l1(job: Job) -> nn.Module:
    """Every layer loses the same share of its channels, those of the least L1 norm."""
    tp = package("torch_pruning", "torch-pruning")
    return _pruned(job, tp, tp.importance.GroupMagnitudeImportance(p=1), global_pruning=False)


def global_group_norm(job: Job) -> nn.Module:
    """The channels of the least L2 norm over their coupled layers, of the whole network."""
    tp = package("torch_pruning", "torch-pruning")
    return _pruned(job, tp, tp.importance.GroupMagnitudeImportance(p=2), global_pruning=True)


def global_taylor(job: Job) -> nn.Module:
    """The channels of the least first-order Taylor importance, of the whole network."""
    tp = package("torch_pruning", "torch-pruning")
    return _pruned(job, tp, tp.importance.GroupTaylorImportance(), gradients=True, global_pruning=True)


def isomorphic(job: Job) -> nn.Module:
    """The same, ranked among layers of one structure only (Isomorphic Pruning, ECCV 2024)."""
    tp = package("torch_pruning", "torch-pruning")
    importance = tp.importance.GroupTaylorImportance()
    return _pruned(job, tp, importance, gradients=True, global_pruning=True, isomorphic=True)


def _pruned(job: Job, tp: Any, importance: Any, *, gradients: bool = False, **how: bool) -> nn.Module:
    model = job.model.eval()
    with quiet():
        pruner = tp.pruner.BasePruner(
            model,
            job.example,
            importance=importance,
            pruning_ratio=LAST,
            max_pruning_ratio=LAST,
            iterative_steps=STEPS,
            ignored_layers=output_layers(model, job.example),
            round_to=job.multiple,
            **how,
        )
    lowest, before, changed = float("inf"), _size(model), True
    with progress_bar("pruning with Torch-Pruning", STEPS) as advance:
        for _ in range(STEPS):
            if gradients and changed:
                _gradients(model, job)
            with quiet():
                pruner.step()
            advance("")
            changed = _size(model) != before
            if not changed:
                continue  # rounded away: the same network as before
            before = _size(model)
            reached, share = job.reached(model)
            lowest = min(lowest, share)
            if reached:
                model.zero_grad(set_to_none=True)
                return model
    raise job.out_of_reach(lowest)


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _gradients(model: nn.Module, job: Job) -> None:
    """Gradients of the loss over a few training batches, which a Taylor importance reads."""
    model.to(job.recipe.device).zero_grad()
    with closing(batches(job.data, job.recipe, 0)) as some:
        for inputs, targets in islice(some, BATCHES):
            loss, _ = job.recipe.training_loss(model, inputs, targets)
            loss.backward()  # type: ignore[no-untyped-call]
    model.cpu()
