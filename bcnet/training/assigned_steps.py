"""Which free channels of drawn widths a supernet's step trains (CafeNet's min-min, reconstructed).

In: drawn widths, the number of a step. Out: subnets. Of several assignments of a width, the one with the
lowest loss on the previous step's batch is trained: on the current batch, those that were trained most would
win. For the same reason, the first steps train a random one.
"""

from collections.abc import Sequence
from typing import Any

import torch

from bcnet.data.image_data import ImageData
from bcnet.data.splits import Item
from bcnet.data.training_batches import TrainingBatches
from bcnet.space.free_channels import Assignments
from bcnet.space.subnet import Subnet
from bcnet.space.width_space import Widths
from bcnet.training.distributed import average, world
from bcnet.training.loop import steps_an_epoch
from bcnet.training.recipe import Recipe
from bcnet.training.supernet_step import SlicedPaths


class BestAssignments:
    """Chooses the assignment that each step trains, by the losses on the previous step's batch."""

    def __init__(self, paths: SlicedPaths, assignments: Assignments, data: ImageData) -> None:
        self._paths, self._assignments, self._data = paths, assignments, data
        recipe = paths.recipe
        steps = recipe.epochs * steps_an_epoch(data, recipe)
        self._random = round(assignments.random * steps)
        self._before: Item | None = None

    def continue_at(self, number: int) -> None:
        """Continue at this step as if those before had been made here: read the batch before it."""
        if number:
            self._before = batch_of(number - 1, self._data, self._paths.recipe)

    def __call__(self, drawn: Sequence[Widths], inputs: Any, targets: Any, number: int) -> list[Subnet]:
        """A subnet for each of the widths drawn in step `number`, whose batch this is."""
        before, self._before = self._before, (inputs, targets)
        own, seed = self._assignments, self._paths.recipe.seed
        count = 1 if before is None or number < self._random else own.trained
        space = self._paths.space
        found = []
        for place, widths in enumerate(drawn):
            tried = own.of(space, widths, count, seed, number, place)
            best = 0
            if len(tried) > 1 and before is not None and count > 1:
                losses = torch.stack([self._paths.loss(subnet, *before).double() for subnet in tried])
                average([losses])  # all processes choose the same
                best = int(losses.nan_to_num(torch.inf).argmin())
            found.append(tried[best])
        return found


def batch_of(number: int, data: ImageData, recipe: Recipe) -> Item:
    """The batch that step `number` of a training takes, in this process."""
    epoch, step = divmod(number, steps_an_epoch(data, recipe))
    share = world().rank, world().size
    with TrainingBatches(data, recipe.batch_size, recipe.seed, recipe.device, share) as source:
        return next(source.epoch(epoch, step))
