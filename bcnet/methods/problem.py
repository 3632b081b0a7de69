"""What an allocator is given: a space, a latency table, limits, and what is known of the trained network.

In: those. Out: limits that price many networks at once. An allocator is a function from a `Problem` to
networks, which `allocators.py` has by name.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from bcnet.latency_tables.model import LatencyModel
from bcnet.methods.limits import Limits
from bcnet.methods.loss_tables import LossOf
from bcnet.space.importance import Importances
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.width_search.constraints import Bound

AdjustedBy = Literal["latency", "macs"]


@dataclass(frozen=True)
class Problem:
    """Networks of at most `limit_ms` within the bounds are wanted that lose little.

    What takes time is a function: `tables` gives
    the losses (choices,) of each group narrowed alone, `loss_of` the loss of a whole network, `dropped` the
    rise of it (groups,) when channels of each group alone are dropped at random at a rate (groups,). All give
    the same for the same widths. `adjust_by` is what network adjustment compares groups by.
    """

    space: WidthSpace
    latency: LatencyModel
    limit_ms: float
    bounds: Sequence[Bound]
    importances: Importances
    tables: Callable[[], Sequence[np.ndarray]]
    loss_of: LossOf
    dropped: Callable[[Widths, np.ndarray], np.ndarray]
    adjust_by: AdjustedBy = "latency"

    @cached_property
    def limits(self) -> Limits:
        """The latency and the bounds, for many networks at once."""
        return Limits(self.space, self.latency, self.limit_ms, self.bounds)


# The networks that a method proposes, best first. Raises BudgetError where it finds none within the limits.
Allocator = Callable[[Problem], list[Widths]]
