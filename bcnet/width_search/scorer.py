"""How good widths are in a trained supernet: batch-norm statistics made again, then held-out images.

In: a supernet's state and widths. Out: accuracy (or another metric) and calibrated loss, the mean of both
sides. `score` takes all images for each side; `Scorer` is several times faster, for the candidates of a
search.
"""

import copy
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from bcnet.data.dataset import KEPT_BYTES, ImageData, KeptBatches, to_device
from bcnet.data.splits import Item, Items, Split, shared_out
from bcnet.errors import ModelError, explaining
from bcnet.space.channel_rules import Side
from bcnet.space.extract import arguments, run_with
from bcnet.space.subnet import State, Subnet, subnet_state
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.training.task import Batches, Task, entries, logits_of
from bcnet.width_search.temperature import are_classes, calibrated_loss

SHARED = 64  # the least number of images of a side, where the images are split across sides


@dataclass(frozen=True, order=True)
class Score:
    """Accuracy (0 to 1) or another metric, and loss to break ties: `negative_loss` makes larger better.

    Networks that are trained by a step of their own have no loss here: it is 0.
    """

    accuracy: float
    negative_loss: float = 0.0

    @property
    def loss(self) -> float:
        """Mean loss; of a subnet's classification by cross entropy, that at the best temperature."""
        return -self.negative_loss


def loss_of(score: Score) -> float:
    """What of a score is to be small: its loss, infinite where that is not finite.

    Where there is none (a training step of one's own), the metric, negated.
    """
    if not score.loss:
        return -score.accuracy
    return score.loss if math.isfinite(score.loss) else math.inf


def best_first(score: Score) -> tuple[float, float]:
    """By what scores are sorted wherever one network is to be chosen: the loss, of equal ones the metric."""
    return loss_of(score), -score.accuracy


def evaluate(
    model: nn.Module,
    space: WidthSpace,
    state: Mapping[str, Tensor],
    data: ImageData,
    split: Split | Items,
    task: Task | None = None,
) -> Score:
    """The task's metric and mean loss, calibrated, of one path's tensors on a split, in eval mode."""
    model.eval()
    batches = data.batches(split, data.evaluated)
    return score_of(
        predictions_of(lambda inputs: run_with(model, space, state, inputs), batches, _device(state)), task
    )


def evaluate_network(
    model: nn.Module, data: ImageData, split: Split | Items, task: Task | None = None
) -> Score:
    """The same for a plain network; its loss is as it is."""
    model.eval()

    def run(inputs: Any) -> Any:
        args, kwargs = arguments(inputs)
        return model(*args, **kwargs)

    device = _device(dict(model.named_parameters()))
    return score_of(predictions_of(run, data.batches(split, data.evaluated), device), task, calibrate=False)


def score_of(predictions: Batches, task: Task | None = None, *, calibrate: bool = True) -> Score:
    """The task's metric and mean loss of (outputs, targets) of a whole split.

    With `calibrate`, the loss of a classification by cross entropy is that at the best temperature
    (`calibrated_loss`): the supernet's classifier fits no width.
    """
    task = task or Task()
    kept: list[tuple[Tensor, Tensor]] = []
    calibrate = calibrate and task.by_cross_entropy

    def seen() -> Iterator[tuple[Any, Any]]:
        for outputs, targets in predictions:
            if calibrate and are_classes(targets):
                logits = logits_of(outputs)
                # A metric of the user's own may change what it is given.
                own = task.metric is not None
                kept.append((logits.clone(), targets.clone()) if own else (logits, targets))
            yield outputs, targets

    with torch.no_grad():
        value, loss = task.evaluate(seen())
        return Score(value, -(calibrated_loss(kept) if kept else loss))


def recalibrated(
    model: nn.Module,
    space: WidthSpace,
    state: Mapping[str, Tensor],
    subnet: Subnet,
    data: ImageData,
    images: int,
) -> State:
    """A subnet's tensors, contiguous, with batch-norm statistics from the first `images` training images.

    Statistics of the supernet mix those of all its subnets and fit none of them (US-Nets, ICCV 2019,
    section 3.4). Batches are augmented as in training, the same each time: weights are fitted to such
    images, and statistics of plain ones can cost a trained network several points. The mean over batches is
    taken.
    """
    batches = KeptBatches(data, first_images(data, images), 0, str(_device(state)), augmented=True)
    return with_statistics(model, space, subnet_state(state, space, subnet), batches)


def first_images(data: ImageData, images: int) -> Split | Items:
    """The training images that statistics come from."""
    return data.train.take(torch.arange(min(images, len(data.train))))


def with_statistics(
    model: nn.Module, space: WidthSpace, state: Mapping[str, Tensor], batches: Iterable[Item]
) -> State:
    """A narrow network's tensors, contiguous, with batch-norm statistics from (inputs, targets).

    `model` is the network that it is narrower than; the mean over the batches is taken.
    """
    fresh = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    }
    for name in norms:
        fresh[f"{name}.running_mean"] = torch.zeros_like(fresh[f"{name}.running_mean"])
        fresh[f"{name}.running_var"] = torch.ones_like(fresh[f"{name}.running_var"])
        # On the CPU: a plain mean reads it in every forward pass, for which a GPU would be waited for.
        fresh[f"{name}.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
    if not norms:
        return fresh
    model.eval()
    device = _device(state)
    with _plain_means(norms.values()):
        for inputs, _ in batches:
            if entries(inputs) > 1:
                with _explained():
                    run_with(model, space, fresh, to_device(inputs, device))
    return fresh


@contextmanager
def _plain_means(norms: Collection[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    """Let these layers take the plain mean of their statistics over all batches that run in the block."""
    momenta = [module.momentum for module in norms]
    try:
        for module in norms:
            module.train()
            module.momentum = None
        with torch.no_grad():
            yield
    finally:
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum
            module.eval()


def with_new_statistics(network: nn.Module, batches: Iterable[Item]) -> nn.Module:
    """A copy of a plain network, in eval mode, with batch-norm statistics that are the mean over batches."""
    fresh = copy.deepcopy(network).eval()
    norms = [
        module
        for module in fresh.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    for module in norms:
        module.reset_running_stats()
    device = _device(fresh.state_dict())
    with _plain_means(norms):
        for inputs, _ in batches:
            if entries(inputs) > 1:
                args, kwargs = arguments(to_device(inputs, device))
                with _explained():
                    fresh(*args, **kwargs)
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
            recalibrated(model, space, state, Subnet.at(space, widths, side), data, images),
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
    return _mean(list(score_sides(model, space, state, widths, data, images, task).values()))


def _mean(sides: Sequence[Score]) -> Score:
    return Score(
        sum(side.accuracy for side in sides) / len(sides),
        sum(side.negative_loss for side in sides) / len(sides),
    )


@dataclass(frozen=True)
class SupernetSide:
    """One side of one supernet, with the images of its batch-norm statistics and its validation images."""

    state: Mapping[str, Tensor]
    name: Side
    train: KeptBatches
    val: KeptBatches


class Scorer:
    """Scores widths fast: `scorer(widths)` is the mean over both sides of each of the `supernets`.

    Supernets of one space are given by their tensors, all on one device: there candidates are scored, and
    images, read once, are kept (see `KeptBatches`). `amp` computes in bfloat16, for processors that do so
    faster. With `shared` the images are split across the two sides of a supernet: each takes half of the
    validation images, with statistics from half of the `images` training images, so that every image is seen
    once a candidate and supernet (twice, where a half would hold fewer than `SHARED`). All candidates are
    scored on the same images and sides. Half the predictions make a score noisier (docs/results.md).
    """

    def __init__(
        self,
        model: nn.Module,
        space: WidthSpace,
        supernets: Sequence[Mapping[str, Tensor]],
        data: ImageData,
        images: int,
        task: Task | None = None,
        *,
        amp: bool = False,
        shared: bool = False,
    ) -> None:
        self.model, self.space, self.data, self.task = model, space, data, task
        self.amp, self._device = amp, _device(supernets[0])

        def shares(part: Split | Items, augmented: bool) -> list[KeptBatches]:
            count = max(1, min(len(space.rule.sides), len(part) // SHARED)) if shared else 1
            room, device = KEPT_BYTES // (2 * count), str(self._device)
            parts = shared_out(part, count)
            return [KeptBatches(data, own, room, device, augmented=augmented) for own in parts]

        train, val = shares(first_images(data, images), True), shares(data.val, False)
        # The left side of one supernet sees what the right one of the next does.
        self.sides = tuple(
            SupernetSide(state, side, train[(n + k) % len(train)], val[(n + k) % len(val)])
            for n, state in enumerate(supernets)
            for k, side in enumerate(space.rule.sides)
        )

    def __call__(self, widths: Widths) -> Score:
        """The score of one network; the same each time."""
        return _mean([self.score_of_side(side, widths) for side in self.sides])

    def score_of_side(self, side: SupernetSide, widths: Widths) -> Score:
        """The score by one of the `sides`."""
        return score_of(self.predictions(side, widths), self.task)

    def predictions(self, side: SupernetSide, widths: Widths) -> Batches:
        """Outputs and targets of that side's validation images, on the CPU."""
        # Not around the loss and the metric: they want float32, and not all of PyTorch's allow autocast.
        autocast = torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self.amp)
        with autocast:
            subnet = Subnet.at(self.space, widths, side.name)
            taken = subnet_state(side.state, self.space, subnet)
            fresh = with_statistics(self.model, self.space, taken, side.train)

        def run(inputs: Any) -> Any:
            with autocast:
                outputs = run_with(self.model, self.space, fresh, inputs)
            return tree_map_only(Tensor, lambda t: t.float() if t.dtype == torch.bfloat16 else t, outputs)

        self.model.eval()
        return predictions_of(run, side.val, self._device)


def _device(state: Mapping[str, Tensor]) -> torch.device:
    return next(iter(state.values())).device


@torch.no_grad()
def predictions_of(run: Callable[[Any], Any], batches: Iterable[Item], device: torch.device) -> Batches:
    """(outputs, targets) of a network that runs on `device`, on the CPU. Raises ModelError where it fails."""
    for inputs, targets in batches:
        with _explained():
            outputs = to_device(run(to_device(inputs, device)), "cpu")
        yield outputs, targets


def _explained() -> AbstractContextManager[None]:
    return explaining(ModelError, "the network fails on a batch of the data in eval mode")
