"""Every group at the same share of its channels, the largest that fits.

In: a space, a network's latency, a limit. Out: widths within it: what any other method has to beat.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from bcnet.allocation.limits import Limits
from bcnet.allocation.problem import AllocationProblem
from bcnet.registry import method
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.width_search.constraints import Bound
from bcnet.width_search.evolution import LatencyOf


def allocate_uniformly(
    space: WidthSpace,
    importance: Sequence[Tensor | np.ndarray],
    latency_of: LatencyOf,
    limit_ms: float,
    bounds: Sequence[Bound] = (),
) -> Widths:
    """The widest of the networks whose groups all keep one share of their channels.

    Each width is the choice closest to that share. `importance` is not used: all methods are called alike.
    Raises BudgetError where even the narrowest is slower than `limit_ms` or exceeds a bound.
    """
    return _uniform(Limits(space, latency_of, limit_ms, bounds))


@method("uniform", "all groups at one share of their channels", auto=1)
def propose(problem: AllocationProblem) -> list[Widths]:
    """The uniform network (see `allocate_uniformly`)."""
    return [_uniform(problem.limits)]


def _uniform(limits: Limits) -> Widths:
    return widest_scaled(limits, np.ones(len(limits.space.groups)), "uniformly narrowed network")


def widest_scaled(limits: Limits, weights: np.ndarray, kind: str) -> Widths:
    """The widest network of those at shares `min(1, t * weight)` of every group's channels, for any one t.

    Widths change at few values of t, and latency does not rise with all of them: instead of a bisection, all
    networks are priced, and the largest t that fits is taken. `weights` (groups,) are above zero.
    """
    limits.fastest()  # what no network can meet, none of these can
    at = []
    for own, weight in zip(limits.choices, weights.tolist(), strict=True):
        shares = own / own[-1]
        at.append((shares[:-1] + shares[1:]) / 2 / weight)  # from here on, the next choice is closer
    steps = np.unique(np.concatenate([[0.0], *at]))
    indices = np.stack([np.searchsorted(own, steps, side="right") for own in at], axis=1)
    costs = limits.costs(indices)
    over = limits.excess(costs) > 0
    fits = ~over.any(axis=0)
    if not fits.any():
        raise limits.too_low(float(costs[0, ~over[1:].any(axis=0)].min()), kind)
    return limits.widths(indices[np.flatnonzero(fits)[-1]])
