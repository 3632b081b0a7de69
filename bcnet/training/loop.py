"""The training loop of supernets and plain networks: batches, optimiser, schedule, snapshots.

In: parameters, and a step that computes their gradients for one batch. Out: trained parameters and the curve.
Randomness depends only on the seed, the epoch and the step, so a loop that continues from a snapshot gives
the same result as an uninterrupted one.
"""

import ctypes
import platform
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from bcnet.data.image_data import ImageData
from bcnet.data.splits import Item
from bcnet.data.training_batches import TrainingBatches
from bcnet.events import emit
from bcnet.plain import loss_text
from bcnet.progress import progress_bar, say
from bcnet.seeds import seed_all
from bcnet.training.averaged_weights import AveragedWeights
from bcnet.training.checkpoints import CheckpointFile, Pace, Snapshot
from bcnet.training.distributed import average, same_as_first, world
from bcnet.training.recipe import Objective, Recipe
from bcnet.training.step_errors import Step, check_trained, explained, finite_loss

SCALE, SCALED = "scaler:state", ("scale", "_growth_tracker")  # of a snapshot, and of a GradScaler's state

# (state, mean loss) after an epoch; within one, the mean loss is None.
Save = Callable[[Snapshot, float | None], None]


@dataclass(frozen=True)
class Trainee:
    """What a loop trains: parameters, in place, by a step. Snapshots hold its buffers, too.

    The step has scaled its losses by the `scaler` before the backward pass.
    """

    parameters: Mapping[str, nn.Parameter]
    step: Step
    buffers: Callable[[], Mapping[str, Tensor]] = dict
    scaler: GradScaler = field(default_factory=lambda: GradScaler("cpu", enabled=False))

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers, by their names in a snapshot."""
        return {**self.parameters, **{f"buffer:{name}": own for name, own in self.buffers().items()}}


def training_batches(data: ImageData, recipe: Recipe) -> TrainingBatches:
    """The training batches of a recipe, on its device."""
    return TrainingBatches(data, recipe.batch_size, recipe.seed, recipe.device)


def batches(data: ImageData, recipe: Recipe, epoch: int) -> Generator[Item, None, None]:
    """Those of one epoch: (inputs, targets). To be closed where it is not exhausted (`closing`)."""
    with training_batches(data, recipe) as source:
        yield from source.epoch(epoch)


def first_batch(data: ImageData, recipe: Recipe) -> Item:
    """The first training batch."""
    with closing(batches(data, recipe, 0)) as some:
        return next(some)


def steps_an_epoch(data: ImageData, recipe: Recipe) -> int:
    """The number of full batches in one pass over the training images."""
    return max(1, len(data.train) // recipe.batch_size)


def fit(
    trainee: Trainee,
    data: ImageData,
    recipe: Recipe,
    description: str,
    *,
    resume: Snapshot | None = None,
    save: Save | None = None,
) -> list[float]:
    """Train in place; return the mean loss of each epoch that was run to its end.

    With `recipe.ema`, their average over the steps replaces the weights in the end. `save` is called after
    each epoch, and within one every few minutes (see `Pace`); `resume` continues from a snapshot.
    """
    keep_freed_memory()
    if recipe.highest_rate != recipe.learning_rate:
        scaling = f"{recipe.learning_rate:g} x {recipe.batch_size} / {recipe.base_batch}"
        say(f"{description}: learning rate {recipe.highest_rate:g} ({scaling}, train.base_batch)")
    parameters = trainee.parameters
    optimizer = _optimizer(parameters, recipe)
    for parameter in parameters.values():
        # Parameters that are not used in every step need a gradient, too. Existing ones are not replaced: a
        # captured step has their addresses.
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.zero_()
    averages = AveragedWeights(trainee.tensors, recipe.ema) if recipe.ema else None
    first, begun, total = 0, 0, 0.0
    if resume is not None:
        first, begun, total = resume.epoch, resume.step, resume.loss
        _restore(trainee, optimizer, resume.tensors)
        if averages is not None:
            averages.restore(resume.tensors)
    per_epoch = steps_an_epoch(data, recipe)
    curve = []
    processes = world()
    share = processes.rank, processes.size
    same_as_first(parameters.values())
    pace = Pace()

    def keep(epoch: int, step: int, mean: float | None = None) -> None:
        check_trained(parameters, f"in epoch {epoch if mean is not None else epoch + 1}")
        if save is not None:
            with pace.writing():
                tensors = _tensors(trainee, optimizer) | (averages.saved() if averages else {})
                save(Snapshot(epoch, tensors, step, total if step else 0.0), mean)

    with (
        TrainingBatches(data, recipe.batch_size, recipe.seed, recipe.device, share) as source,
        progress_bar(description, (recipe.epochs - first) * per_epoch - begun) as advance,
    ):

        def read(loss: Tensor, number: int, batch: Any) -> float:
            value = finite_loss(loss, number, batch)
            advance(f"loss {loss_text(value)}")
            return value

        for epoch in range(first, recipe.epochs):
            before, first_step, start = epoch * per_epoch, begun, time.perf_counter()
            # Of the previous step: a GPU computes its loss while the next batch is read.
            loss: Tensor | None = None
            batch: Any = None
            for number, (inputs, targets) in enumerate(source.epoch(epoch, begun), begun):
                if loss is not None:
                    total += read(loss, before + number - 1, batch)
                    if save is not None and pace.due:
                        keep(epoch, number)
                batch = inputs, targets
                # Custom losses may draw from Python's and NumPy's; dropout differs between processes.
                seed = (recipe.seed * 100_003 + epoch) * 1_000_003 + number
                seed_all(seed, seed + processes.rank * 7919)
                for group in optimizer.param_groups:
                    group["lr"] = recipe.rate(epoch + number / per_epoch)
                loss = explained(trainee.step, inputs, targets, before + number).reshape(-1)
                if processes.size > 1:
                    gradients = [own.grad for own in parameters.values() if own.grad is not None]
                    buffers = [own for own in trainee.buffers().values() if own.is_floating_point()]
                    average([*gradients, *buffers, loss])
                if recipe.clip_gradients:
                    trainee.scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(parameters.values(), recipe.clip_gradients)
                # Where gradients of any process are not finite, none steps, and the scale is halved.
                trainee.scaler.step(optimizer)
                trainee.scaler.update()
                if averages is not None:
                    averages.update(before + number)
                optimizer.zero_grad(set_to_none=False)
            if loss is not None:
                total += read(loss, before + per_epoch - 1, batch)
            curve.append(total / per_epoch)
            seconds = time.perf_counter() - start
            emit(
                "epoch",
                task=description,
                step=epoch + 1,
                steps=recipe.epochs,
                loss=curve[-1],
                learning_rate=optimizer.param_groups[0]["lr"],
                seconds=seconds,
                images_per_second=(per_epoch - first_step) * recipe.batch_size / seconds,
            )
            begun, total = 0, 0.0
            keep(epoch + 1, 0, curve[-1])
    if averages is not None:
        averages.replace_weights()
    return curve


def fit_network(
    model: nn.Module,
    data: ImageData,
    recipe: Recipe,
    description: str,
    *,
    objective: Objective | None = None,
    checkpoint: CheckpointFile | None = None,
) -> list[float]:
    """Train a plain network in place; return the mean loss of each epoch that was run.

    Afterwards it is in eval mode, on the CPU. An `objective` replaces the recipe's loss. A `checkpoint` is
    updated as `fit` says; a training that was killed continues from it, on a CPU with the same result to the
    last bit. Its log, if it has one, then holds the epochs of this training alone.
    """
    # Batches are channels-last, but weights stay contiguous: channels-last weights make the backward pass of
    # depthwise convolutions on a CPU more than twice as slow.
    model.to(recipe.device).train()
    parameters = trainable_parameters(model, objective)
    scaler = recipe.scaler()
    step = plain_step(model, recipe, objective, scaler)
    trainee = Trainee(parameters, step, lambda: dict(model.named_buffers()), scaler)
    if checkpoint is None:
        curve = fit(trainee, data, recipe, description)
    else:
        made_from = {"objective": objective.key} if objective else {}
        file, log = replace(checkpoint, made_from={**checkpoint.made_from, **made_from}), checkpoint.log
        resume = _continued(file, trainee, data, recipe, description)
        if log is not None and resume is None:
            log.epochs.clear()  # of an earlier training

        def save(at: Snapshot, mean: float | None) -> None:
            if log is not None and mean is not None:
                rate = recipe.rate(at.epoch - 1 / steps_an_epoch(data, recipe))
                epoch = log.add(at.epoch, mean, rate, model)
                emit(
                    "validation",
                    task=description,
                    step=epoch.number,
                    steps=recipe.epochs,
                    accuracy=epoch.accuracy,
                )
            file.save(at)

        curve = fit(trainee, data, recipe, description, resume=resume, save=save)
    check_trained(model.state_dict(), "at its end", parameters)
    model.cpu().eval()
    return curve


def _continued(
    checkpoint: CheckpointFile, trainee: Trainee, data: ImageData, recipe: Recipe, description: str
) -> Snapshot | None:
    """The state that a training continues from; None where it starts from the beginning."""
    found = checkpoint.load()
    if found is None:
        return None
    steps = steps_an_epoch(data, recipe)
    if not _fits(trainee, recipe, found) or found.step >= steps:
        say(f"{checkpoint.path} is for another network: training starts from the beginning")
        return None
    done = found.epoch + found.step / steps
    say(f"{description}: continuing after epoch {done:.4g} of {recipe.epochs}")
    return found


def trainable_parameters(model: nn.Module, objective: Objective | None = None) -> dict[str, nn.Parameter]:
    """The trained parameters: those of the network and of the objective."""
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return {**own, **(objective.parameters if objective else {})}


def plain_step(
    model: nn.Module, recipe: Recipe, objective: Objective | None = None, scaler: GradScaler | None = None
) -> Step:
    """The training step of a plain network, which is in training mode on the recipe's device."""
    scaled = scaler or recipe.scaler()

    def step(inputs: Any, targets: Any, _: int) -> Tensor:
        if objective is not None:
            loss = objective.loss(model, inputs, targets, recipe)
        else:
            loss, _ = recipe.training_loss(model, inputs, targets)
        scaled.scale(loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    return step


def _optimizer(parameters: Mapping[str, nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    weights = [parameter for parameter in parameters.values() if parameter.ndim > 1]
    others = [parameter for parameter in parameters.values() if parameter.ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if recipe.optimizer in ("adamw", "adam"):
        kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
        return kind(groups, lr=recipe.learning_rate, fused=True)
    return torch.optim.SGD(
        groups,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        fused=True,
    )


def _tensors(trainee: Trainee, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {name: tensor.detach().cpu() for name, tensor in trainee.tensors().items()}
    for name, parameter in trainee.parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer:{key}:{name}"] = value.cpu()
    scale = trainee.scaler.state_dict()
    if scale:
        tensors[SCALE] = torch.tensor([scale[key] for key in SCALED], dtype=torch.float64)
    return tensors


def _fits(trainee: Trainee, recipe: Recipe, snapshot: Snapshot) -> bool:
    own = {name: tensor.shape for name, tensor in trainee.tensors().items()}
    if recipe.ema:
        averages = AveragedWeights(trainee.tensors, recipe.ema).saved()
        own |= {name: tensor.shape for name, tensor in averages.items()}
    others = ("optimizer:", SCALE)
    found = {n: tensor.shape for n, tensor in snapshot.tensors.items() if not n.startswith(others)}
    return 0 <= snapshot.epoch <= recipe.epochs and found == own


def _restore(trainee: Trainee, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in trainee.tensors().items():
            tensor.copy_(tensors[name])
    for key, tensor in tensors.items():
        if key.startswith("optimizer:"):
            _, slot, name = key.split(":", 2)
            parameter = trainee.parameters[name]
            # AdamW keeps its step counter on the CPU unless it is fused; `to` is right in both cases.
            optimizer.state[parameter][slot] = tensor.clone().to(parameter.device)
    if trainee.scaler.is_enabled() and SCALE in tensors:
        known = dict(zip(SCALED, tensors[SCALE].tolist(), strict=True))
        trainee.scaler.load_state_dict(trainee.scaler.state_dict() | known)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory: otherwise a small network's step spends half its time in mmap."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
