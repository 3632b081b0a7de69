"""Widths by one number for the whole network and a weight for each group: AdaPruner.

In: the importance of each group's channels (published: their batch-norm scales), a network's latency, a
limit. Out: widths within it. "AdaPruner: adaptive channel pruning and effective weights inheritance" (arXiv
2109.06397); its abstract fixes the mean importance of a block and the bisection to the budget, the mapping
from importance to widths is a reconstruction.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from bcnet.allocation.limits import Limits
from bcnet.allocation.loss_tables import importance_tables
from bcnet.allocation.problem import AllocationProblem
from bcnet.methods.uniform import widest_scaled
from bcnet.registry import method
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.width_search.constraints import Bound
from bcnet.width_search.evolution import LatencyOf

LEAST = 1e-3  # of the most important group's mean: a group of no importance still has a share


def allocate_by_scales(
    space: WidthSpace,
    importance: Sequence[Tensor | np.ndarray],
    latency_of: LatencyOf,
    limit_ms: float,
    bounds: Sequence[Bound] = (),
) -> Widths:
    """Every group at a share of its channels proportional to their mean importance; the widest that fit.

    `share = min(1, t * mean / largest mean)`, one t for the network; each width is the choice closest to it.
    `importance` holds (channels,) a group, larger is more important. Raises BudgetError where even the
    narrowest of these networks is slower than `limit_ms` or exceeds a bound.
    """
    return _scaled(Limits(space, latency_of, limit_ms, bounds), importance)


@method(
    "adapruner",
    "groups in proportion to their mean batch-norm scale",
    paper="AdaPruner (arXiv 2109.06397)",
    auto=4,
)
def propose(problem: AllocationProblem) -> list[Widths]:
    """The same by batch-norm scales."""
    return [_scaled(problem.limits, problem.importances["bn-scale"])]


def _scaled(limits: Limits, importance: Sequence[Tensor | np.ndarray]) -> Widths:
    importance_tables(limits.space, importance)  # refuses what does not fit the space
    means = np.array([float(own.mean()) for own in importance])
    weights = np.maximum(means / max(means.max(initial=0.0), 1e-300), LEAST)
    return widest_scaled(limits, weights, "network scaled by importance")
