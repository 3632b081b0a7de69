"""How good subnets become while a supernet is trained. In: the supernet after an epoch. Out: an event.

Five subnets are followed: the widest, the narrowest, and three at random, always the same ones.
"""

import time

import torch

from bcnet.data.image_data import ImageData
from bcnet.errors import BcnetError
from bcnet.events import emit, is_observed
from bcnet.progress import say
from bcnet.space.subnet import Subnet
from bcnet.space.supernet import Supernet
from bcnet.space.width_space import Widths
from bcnet.training.recipe import Recipe
from bcnet.width_search.scorer import Validation, evaluate

IMAGES = 256  # of validation, and as many of training for batch-norm statistics
AT_RANDOM = 3
SHARE = 0.05  # of the time of training that probes may take


class SubnetProbes:
    """Reports the metric of five subnets after epochs, in at most `SHARE` of the time; trains nothing.

    Nothing is done where nobody follows the training. The first epoch is always probed.
    """

    def __init__(self, supernet: Supernet, data: ImageData, recipe: Recipe) -> None:
        space = supernet.space
        self._supernet, self._recipe = supernet, recipe
        self._by = Validation(data, IMAGES, recipe.task)
        self._data, self._images = data, data.val.take(torch.arange(min(IMAGES, len(data.val))))
        self._widths: dict[str, Widths] = {"widest": space.largest(), "narrowest": space.smallest()}
        for number in range(AT_RANDOM):
            self._widths[f"random {number + 1}"] = space.random(number)
        self._again_at = 0.0

    def __call__(self, task: str, epoch: int) -> None:
        """After an epoch, from 1, of the training called `task`; the model is left in training mode."""
        if not is_observed() or time.perf_counter() < self._again_at:
            return
        start = time.perf_counter()
        try:
            with torch.random.fork_rng():
                found = {name: self._reached(widths) for name, widths in self._widths.items()}
        except BcnetError as reason:
            say(f"subnets are not followed during training: {reason}")
            self._again_at = float("inf")
            return
        finally:
            self._supernet.model.train()
        now = time.perf_counter()
        self._again_at = now + (now - start) / SHARE
        emit("subnets", task=task, step=epoch, steps=self._recipe.epochs, **found)

    def _reached(self, widths: Widths) -> float:
        """The metric on some validation images, with batch-norm statistics of its own."""
        supernet = self._supernet
        narrow = self._by.recalibrated(supernet, Subnet.at(supernet.space, widths))
        return evaluate(narrow, self._data, self._images, self._recipe.task).accuracy
