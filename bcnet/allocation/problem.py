"""What a method is given: a space, limits on latency and cost, and what is known of the trained network.

A method that proposes widths takes an `AllocationProblem`; one that trains while it removes channels takes a
`PruningProblem` and returns a `TrainedNetwork`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor, nn

from bcnet.allocation.limits import Limits
from bcnet.allocation.loss_tables import LossOf
from bcnet.data.image_data import ImageData
from bcnet.latency_tables.model import LatencyModel
from bcnet.space.importance import Importances
from bcnet.space.subnet import State, Subnet
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.training.recipe import Objective, Recipe
from bcnet.width_search.constraints import Bound

ImportanceOf = Callable[[Subnet, int], Sequence[Tensor]]


@dataclass(frozen=True)
class AllocationProblem:
    """Networks of at most `limit_ms` within the bounds are wanted that lose little.

    What takes time is a function: `tables` gives the losses (choices,) of each group narrowed alone,
    `loss_of` the loss of a whole network, `dropped` the rise of it (groups,) when channels of each group
    alone are dropped at random at a rate (groups,). All give the same for the same widths. `importance_of`
    calculates Taylor importance again where channels were removed: the subnet that is left and the number of
    the round give (channels,) a group, 0 for channels that are not left. `settings` is the method's own
    model, None for a method without settings.
    """

    space: WidthSpace
    latency: LatencyModel
    limit_ms: float
    bounds: Sequence[Bound]
    importances: Importances
    tables: Callable[[], Sequence[np.ndarray]]
    loss_of: LossOf
    dropped: Callable[[Widths, np.ndarray], np.ndarray]
    importance_of: ImportanceOf
    settings: Any = None

    @cached_property
    def limits(self) -> Limits:
        """The latency and the bounds, for many networks at once."""
        return Limits(self.space, self.latency, self.limit_ms, self.bounds)


@dataclass(frozen=True)
class PruningProblem:
    """A network within the limits is wanted, made of `model` while that is trained, which may change it.

    The recipe has the passes over the training images and the learning rate that are configured for this;
    `objective`, where there is one, is the loss. `settings` as for an `AllocationProblem`.
    """

    model: nn.Module
    limits: Limits
    data: ImageData
    recipe: Recipe
    objective: Objective | None = None
    settings: Any = None


@dataclass(frozen=True)
class TrainedNetwork:
    """A small network: its widths, its tensors, and the passes over the training images that it took."""

    widths: Widths
    state: State
    passes: int
