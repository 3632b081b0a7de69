"""How good widths are in a trained supernet: recalibrated batch norms, then validation images.

In: supernets and widths. Out: accuracy (or another metric) and calibrated loss, the mean of both sides.
`Validation` takes all images for each side; `Scorer` is several times faster, for the candidates of a search.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from bcnet.data.image_data import ImageData
from bcnet.data.kept_batches import KEPT_BYTES, KeptBatches
from bcnet.data.splits import Item, Items, Split, shared_out
from bcnet.space.channel_rules import Side
from bcnet.space.inputs import arguments, to_device
from bcnet.space.recalibration import evaluating
from bcnet.space.subnet import State, Subnet
from bcnet.space.supernet import NarrowNetwork, Supernet
from bcnet.space.width_space import Widths
from bcnet.training.task import Batches, Task, logits_of
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


def loss_name(task: Task) -> str:
    """What the loss of a narrow network that was not trained by itself is (see `score_of`), for messages."""
    return "validation loss at the best temperature" if task.by_cross_entropy else "validation loss"


def best_first(score: Score) -> tuple[float, float]:
    """By what scores are sorted wherever one network is to be chosen: the loss, of equal ones the metric."""
    return loss_of(score), -score.accuracy


def evaluate(
    network: NarrowNetwork, data: ImageData, split: Split | Items, task: Task | None = None
) -> Score:
    """The task's metric and mean loss, calibrated, of a narrow network on a split, in eval mode."""
    network.model.eval()
    batches = data.batches(split, data.evaluated)
    return score_of(predictions_of(network.run, batches, network.device), task)


def evaluate_network(
    model: nn.Module,
    data: ImageData,
    split: Split | Items,
    task: Task | None = None,
    *,
    calibrate: bool = False,
) -> Score:
    """The same for a plain network; its loss is calibrated only if `calibrate` is set."""
    model.eval()

    def run(inputs: Any) -> Any:
        args, kwargs = arguments(inputs)
        return model(*args, **kwargs)

    device = next(iter(model.parameters())).device
    batches = data.batches(split, data.evaluated)
    return score_of(predictions_of(run, batches, device), task, calibrate=calibrate)


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


def first_images(data: ImageData, images: int) -> Split | Items:
    """The training images that statistics come from."""
    return data.train.take(torch.arange(min(images, len(data.train))))


@dataclass(frozen=True)
class Validation:
    """How networks are compared: statistics from training images, scores on the validation images.

    Batch-norm statistics come from the first `images` training images. Batches are augmented as in training,
    the same each time: weights are fitted to such images, and statistics of plain ones can cost a trained
    network several points.
    """

    data: ImageData
    images: int
    task: Task | None = None

    def recalibrated(self, supernet: Supernet, subnet: Subnet) -> NarrowNetwork:
        """A subnet with batch-norm statistics of its own."""
        part = first_images(self.data, self.images)
        batches = KeptBatches(self.data, part, 0, str(supernet.device), augmented=True)
        return supernet.recalibrate(subnet, batches)

    def score(self, network: NarrowNetwork) -> Score:
        """The score of a network as it is."""
        return evaluate(network, self.data, self.data.val, self.task)

    def sides(self, supernet: Supernet, widths: Widths) -> dict[Side, Score]:
        """The score of each side's subnet, recalibrated."""
        return {
            side: self.score(self.recalibrated(supernet, Subnet.at(supernet.space, widths, side)))
            for side in supernet.space.rule.sides
        }


def score(
    supernet: Supernet, widths: Widths, data: ImageData, images: int, task: Task | None = None
) -> Score:
    """The mean of both sides: what the search maximises (BCNet, section 3.1)."""
    sides = Validation(data, images, task).sides(supernet, widths)
    return _mean(list(sides.values()))


def _mean(sides: Sequence[Score]) -> Score:
    return Score(
        sum(side.accuracy for side in sides) / len(sides),
        sum(side.negative_loss for side in sides) / len(sides),
    )


@dataclass(frozen=True)
class SupernetSide:
    """One side of one supernet, with the images of its batch-norm statistics and its validation images."""

    supernet: Supernet
    name: Side
    train: KeptBatches
    val: KeptBatches


class Scorer:
    """Scores widths fast: `scorer(widths)` is the mean over both sides of each of the `supernets`.

    Supernets are of one network and space, all on one device: there candidates are scored, and images, read
    once, are kept (see `KeptBatches`). `amp` computes in bfloat16, for processors that do so
    faster. With `shared` the images are split across the two sides of a supernet: each takes half of the
    validation images, with statistics from half of the `images` training images, so that every image is seen
    once a candidate and supernet (twice, where a half would hold fewer than `SHARED`). All candidates are
    scored on the same images and sides. Half the predictions make a score noisier (decision 15).
    """

    def __init__(
        self,
        supernets: Sequence[Supernet],
        data: ImageData,
        images: int,
        task: Task | None = None,
        *,
        amp: bool = False,
        shared: bool = False,
    ) -> None:
        self.data, self.task, self.amp = data, task, amp
        self.model, self.space = supernets[0].model, supernets[0].space
        self._device = supernets[0].device

        def shares(part: Split | Items, augmented: bool) -> list[KeptBatches]:
            count = max(1, min(len(self.space.rule.sides), len(part) // SHARED)) if shared else 1
            room, device = KEPT_BYTES // (2 * count), str(self._device)
            parts = shared_out(part, count)
            return [KeptBatches(data, own, room, device, augmented=augmented) for own in parts]

        train, val = shares(first_images(data, images), True), shares(self.scored_images(), False)
        # The left side of one supernet sees what the right one of the next does.
        self.sides = tuple(
            SupernetSide(supernet, side, train[(n + k) % len(train)], val[(n + k) % len(val)])
            for n, supernet in enumerate(supernets)
            for k, side in enumerate(self.space.rule.sides)
        )

    def scored_images(self) -> Split | Items:
        """The validation images that scores come from."""
        return self.data.val

    def __call__(self, widths: Widths) -> Score:
        """The score of one network; the same each time."""
        return _mean([self.score_of_side(side, widths) for side in self.sides])

    def begun(self, widths: Widths) -> State:
        """The tensors of a network as it is scored on the first side, on the CPU."""
        side = self.sides[0]
        network = self.recalibrated(side, self.subnet(side, widths))
        found: State = to_device(dict(network.state), "cpu")
        return found

    def score_of_side(self, side: SupernetSide, widths: Widths) -> Score:
        """The score by one of the `sides`."""
        return score_of(self.predictions(side, widths), self.task)

    def predictions(self, side: SupernetSide, widths: Widths) -> Batches:
        """Outputs and targets of that side's validation images, on the CPU."""
        return self.predicted(self.recalibrated(side, self.subnet(side, widths)), side.val)

    def subnet(self, side: SupernetSide, widths: Widths) -> Subnet:
        """The channels by which widths are scored on a side."""
        return Subnet.at(self.space, widths, side.name)

    def recalibrated(self, side: SupernetSide, subnet: Subnet) -> NarrowNetwork:
        """A subnet with batch-norm statistics of its own."""
        with self._autocast():
            return side.supernet.recalibrate(subnet, side.train)

    def predicted(self, network: NarrowNetwork, images: KeptBatches) -> Batches:
        """Outputs and targets of these images, on the CPU."""

        def run(inputs: Any) -> Any:
            with self._autocast():
                outputs = network.run(inputs)
            return tree_map_only(Tensor, lambda t: t.float() if t.dtype == torch.bfloat16 else t, outputs)

        self.model.eval()
        return predictions_of(run, images, self._device)

    def _autocast(self) -> torch.autocast:
        # Not around the loss and the metric, which need float32; not all of PyTorch's losses allow autocast.
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self.amp)


@torch.no_grad()
def predictions_of(run: Callable[[Any], Any], batches: Iterable[Item], device: torch.device) -> Batches:
    """(outputs, targets) of a network that runs on `device`, on the CPU. Raises ModelError where it fails."""
    for inputs, targets in batches:
        with evaluating():
            outputs = to_device(run(to_device(inputs, device)), "cpu")
        yield outputs, targets
