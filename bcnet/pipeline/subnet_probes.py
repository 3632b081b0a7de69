"""How good subnets become while a supernet is trained. In: the supernet after an epoch. Out: an event.

Five subnets are followed: the widest, the narrowest, and three at random, always the same ones. Processes
that train together share them out.
"""

import time

import torch

from bcnet.data.image_data import ImageData
from bcnet.data.kept_batches import KeptBatches
from bcnet.errors import BcnetError
from bcnet.events import emit, is_observed
from bcnet.progress import say
from bcnet.space.subnet import Subnet
from bcnet.space.supernet import Supernet
from bcnet.space.width_space import Widths
from bcnet.training.distributed import gathered, world
from bcnet.training.recipe import Recipe
from bcnet.width_search.scorer import first_images, predictions_of, score_of

IMAGES = 256  # of validation, and as many of training for batch-norm statistics
AT_RANDOM = 3
SHARE = 0.05  # of the time of training that probes may take


class SubnetProbes:
    """Reports the metric of five subnets after epochs, in at most `SHARE` of the time; trains nothing.

    Without an observer of the command nothing is done. The first epoch is always probed. All processes that
    train together make the same calls.
    """

    def __init__(self, supernet: Supernet, data: ImageData, recipe: Recipe) -> None:
        space = supernet.space
        self._supernet, self._data, self._recipe = supernet, data, recipe
        self._widths: dict[str, Widths] = {"widest": space.largest(), "narrowest": space.smallest()}
        for number in range(AT_RANDOM):
            self._widths[f"random {number + 1}"] = space.random(number)
        self._again_at = 0.0

    def __call__(self, task: str, epoch: int) -> None:
        """After an epoch, from 1, of the training called `task`; the model is left in training mode."""
        start = time.perf_counter()
        wanted, *_ = gathered(is_observed() and start >= self._again_at)  # the first process is observed
        if not wanted:
            return
        every = gathered(self._found())
        reason = next((found for found in every if isinstance(found, str)), None)
        if reason is not None:
            say(f"subnets are not followed during training: {reason}")
            self._again_at = float("inf")
            return
        now = time.perf_counter()
        self._again_at = now + (now - start) / SHARE
        reached = {name: value for found in every if isinstance(found, dict) for name, value in found.items()}
        values = {name: reached[name] for name in self._widths}
        emit("subnets", task=task, step=epoch, steps=self._recipe.epochs, **values)

    def _found(self) -> dict[str, float] | str:
        """The metrics of this process's share of the subnets, or the reason why there are none."""
        data, device, images = self._data, str(self._supernet.device), min(IMAGES, len(self._data.val))
        # Kept only until all are evaluated: a training leaves less memory than a search.
        train = KeptBatches(data, first_images(data, IMAGES), device=device, augmented=True)
        val = KeptBatches(data, data.val.take(torch.arange(images)), device=device)
        try:
            with torch.random.fork_rng():
                return {name: self._reached(self._widths[name], train, val) for name in self._share()}
        except BcnetError as reason:
            return str(reason)
        finally:
            self._supernet.model.train()

    def _share(self) -> list[str]:
        """This process's subnets by name: each, the largest first, goes to the process with least work."""
        todo = [0] * world().size
        own = []
        for macs, name in sorted(
            ((self._supernet.space.macs(widths), name) for name, widths in self._widths.items()), reverse=True
        ):
            rank = todo.index(min(todo))
            todo[rank] += macs
            own += [name] if rank == world().rank else []
        return own

    def _reached(self, widths: Widths, train: KeptBatches, val: KeptBatches) -> float:
        """The metric on some validation images, with batch-norm statistics of its own."""
        supernet, task = self._supernet, self._recipe.task
        narrow = supernet.recalibrate(Subnet.at(supernet.space, widths), train)
        narrow.model.eval()
        return score_of(predictions_of(narrow.run, val, narrow.device), task).accuracy
