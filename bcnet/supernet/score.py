"""How good widths are in a trained supernet: batch-norm statistics made anew, then held-out images.

In: a supernet's state and widths. Out: accuracy (or another metric) and loss, the mean of both sides.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bcnet.data import ImageData, to_device
from bcnet.parts import Items, Split
from bcnet.supernet.methods import Side
from bcnet.supernet.paths import State, arguments, path_of, path_state, run_with
from bcnet.supernet.space import Widths, WidthSpace
from bcnet.supernet.task import Task, entries


@dataclass(frozen=True, order=True)
class Score:
    """Accuracy (0 to 1) or another metric, and loss to break ties: `negative_loss` makes larger better.

    Networks that are trained by a step of their own have no loss here: it is 0.
    """

    accuracy: float
    negative_loss: float = 0.0

    @property
    def loss(self) -> float:
        """Mean loss, cross entropy by default."""
        return -self.negative_loss


def evaluate(
    model: nn.Module,
    space: WidthSpace,
    state: Mapping[str, Tensor],
    data: ImageData,
    split: Split | Items,
    task: Task | None = None,
) -> Score:
    """The task's metric and mean loss of one path's tensors on a split, in eval mode."""
    model.eval()
    return _score(lambda inputs: run_with(model, space, state, inputs), data, split, _device(state), task)


def evaluate_network(
    model: nn.Module, data: ImageData, split: Split | Items, task: Task | None = None
) -> Score:
    """The same for a plain network."""
    model.eval()

    def run(inputs: Any) -> Any:
        args, kwargs = arguments(inputs)
        return model(*args, **kwargs)

    return _score(run, data, split, _device(dict(model.named_parameters())), task)


def recalibrated(
    model: nn.Module,
    space: WidthSpace,
    state: Mapping[str, Tensor],
    widths: Widths,
    side: Side,
    data: ImageData,
    images: int,
) -> State:
    """A path's tensors, contiguous, with batch-norm statistics from the first `images` training images.

    Statistics of the supernet mix those of all its paths and fit none of them (US-Nets, ICCV 2019,
    section 3.4). Batches are plain, not augmented; the mean over batches is taken.
    """
    path = path_of(space, widths, side)
    fresh = {name: tensor.detach().contiguous() for name, tensor in path_state(state, space, path).items()}
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    }
    for name in norms:
        fresh[f"{name}.running_mean"] = torch.zeros_like(fresh[f"{name}.running_mean"])
        fresh[f"{name}.running_var"] = torch.ones_like(fresh[f"{name}.running_var"])
        fresh[f"{name}.num_batches_tracked"] = torch.zeros_like(fresh[f"{name}.num_batches_tracked"])
    if not norms:
        return fresh
    momenta = {name: module.momentum for name, module in norms.items()}
    model.eval()
    try:
        for module in norms.values():
            module.train()
            module.momentum = None  # a plain mean over the batches
        part = data.train.take(torch.arange(min(images, len(data.train))))
        device = _device(state)
        with torch.no_grad():
            for inputs, _ in data.batches(part, data.evaluated):
                if entries(inputs) > 1:
                    run_with(model, space, fresh, to_device(inputs, device))
    finally:
        for name, module in norms.items():
            module.momentum = momenta[name]
            module.eval()
    return fresh


def score_sides(
    model: nn.Module,
    space: WidthSpace,
    state: Mapping[str, Tensor],
    widths: Widths,
    data: ImageData,
    images: int,
    task: Task | None = None,
) -> dict[Side, Score]:
    """The score of each side's path on the validation images."""
    return {
        side: evaluate(
            model,
            space,
            recalibrated(model, space, state, widths, side, data, images),
            data,
            data.val,
            task,
        )
        for side in space.rule.sides
    }


def score(
    model: nn.Module,
    space: WidthSpace,
    state: Mapping[str, Tensor],
    widths: Widths,
    data: ImageData,
    images: int,
    task: Task | None = None,
) -> Score:
    """The mean of both sides: what the search maximises (BCNet, section 3.1)."""
    sides = list(score_sides(model, space, state, widths, data, images, task).values())
    return Score(
        sum(side.accuracy for side in sides) / len(sides),
        sum(side.negative_loss for side in sides) / len(sides),
    )


def _device(state: Mapping[str, Tensor]) -> torch.device:
    return next(iter(state.values())).device


def _score(
    run: Callable[[Any], Any],
    data: ImageData,
    split: Split | Items,
    device: torch.device,
    task: Task | None,
) -> Score:
    def batches() -> Iterator[tuple[Any, Any]]:
        for inputs, targets in data.batches(split, data.evaluated):
            yield to_device(run(to_device(inputs, device)), "cpu"), targets

    with torch.no_grad():
        value, loss = (task or Task()).evaluate(batches())
    return Score(value, -loss)
