"""Importance that is calculated again while channels are removed: what is left changes in importance.

In: a trained network and its space, training images. Out: the Taylor importance of the channels that are
left, in the network that has only these; for any widths the channels to keep. Iterative pruning (Molchanov et
al., "Importance estimation for neural network pruning", CVPR 2019, sections 3.3 and 4).
"""

from dataclasses import replace

import torch
from torch import Tensor

from bcnet.data.image_data import ImageData
from bcnet.space.importance import kept_channels
from bcnet.space.subnet import Subnet
from bcnet.space.supernet import Supernet
from bcnet.space.width_space import Widths
from bcnet.training.gradient_importance import gate_importances
from bcnet.training.recipe import Recipe

BATCHES = 8  # of each calculation
ROUNDS = 8  # of removing channels until given widths are reached


class IterativeImportance:
    """The importance of the channels that are left of a trained network.

    The same channels and number give the same importance, which is calculated once.
    """

    def __init__(self, whole: Supernet, data: ImageData, recipe: Recipe) -> None:
        """`whole` has the network's own tensors, without extra channels (`Supernet.of`)."""
        self.whole, self.data, self.recipe = whole, data, recipe
        self._known: dict[tuple[int, Subnet], tuple[Tensor, ...]] = {}

    def __call__(self, subnet: Subnet, number: int) -> tuple[Tensor, ...]:
        """For each group the importance (channels,) of the subnet's channels, 0 for all others.

        Each round has a `number`, so that it sees other images. Raises TrainingError where gradients are not
        finite.
        """
        key = number, subnet
        if key not in self._known:
            self._known[key] = self._calculated(subnet, number)
        return self._known[key]

    def _calculated(self, subnet: Subnet, number: int) -> tuple[Tensor, ...]:
        # Batch-norm statistics stay those of the whole network: with statistics of the narrow one, the loss
        # after the rounds is higher (decision 23).
        small = self.whole.extract(subnet)
        recipe = replace(self.recipe, seed=self.recipe.seed + number)
        space = self.whole.space.narrowed(subnet.widths)
        found = gate_importances(small, space, self.data, recipe, BATCHES).taylor
        whole = []
        for group, channels, values in zip(self.whole.space.groups, subnet.channels, found, strict=True):
            spread = torch.zeros(group.channels)
            spread[list(channels)] = values.cpu()
            whole.append(spread)
        return tuple(whole)

    def kept(self, widths: Widths) -> Subnet:
        """The subnet of these widths whose channels are left after `ROUNDS` rounds.

        Each round removes an equal part of what goes of every group.
        """
        space = self.whole.space
        subnet = Subnet.at(space, space.largest())
        for number in range(1, ROUNDS + 1):
            step = Widths(
                width + (group.channels - width) * (ROUNDS - number) // ROUNDS // group.unit * group.unit
                for group, width in zip(space.groups, widths, strict=True)
            )
            if step != subnet.widths:
                subnet = kept_channels(space, step, self(subnet, number))
        return subnet
