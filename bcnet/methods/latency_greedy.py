"""Widths by removing, step by step, what has the least importance per millisecond that it saves.

In: the importance of each group's channels, a network's latency, a limit. Out: widths within it. The greedy
form of HALP's knapsack (Shen et al., "Structural pruning via latency-saliency knapsack", NeurIPS 2022,
section 3), with every layer's latency taken at the widths that all groups have at that step.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from bcnet.allocation.limits import Limits
from bcnet.allocation.loss_tables import check_tables, importance_tables
from bcnet.allocation.problem import AllocationProblem
from bcnet.registry import method
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.width_search.constraints import Bound
from bcnet.width_search.evolution import LatencyOf

SMALLEST = 1e-4  # a step that saves a smaller part of what is still to be saved is none


def allocate_greedily(
    space: WidthSpace,
    importance: Sequence[Tensor | np.ndarray],
    latency_of: LatencyOf,
    limit_ms: float,
    bounds: Sequence[Bound] = (),
) -> Widths:
    """Widths of at most `limit_ms` within the bounds that keep much of the importance; seconds at most.

    `importance` holds (channels,) a group, larger is more important, in one unit for all groups. Starts at
    the widest network. A step takes one group one or several choices down, so that it crosses the stairs of
    the latency; at last channels come back where that costs no limit. Raises BudgetError, with the lowest
    possible latency, where no network is that fast.
    """
    return narrowed_by(
        space, importance_tables(space, importance), Limits(space, latency_of, limit_ms, bounds)
    )


@method(
    "latency-greedy",
    "removes, step by step, what has the least Taylor importance per millisecond saved",
    paper="HALP (NeurIPS 2022)",
    auto=2,
)
def propose(problem: AllocationProblem) -> list[Widths]:
    """The same by Taylor's importance."""
    losses = importance_tables(problem.space, problem.importances["taylor"])
    return [narrowed_by(problem.space, losses, problem.limits)]


def narrowed_by(space: WidthSpace, losses: Sequence[np.ndarray], limits: Limits) -> Widths:
    """The same by any tables of losses: an array (choices,) a group that falls with the width.

    Raises SpaceError where they do not fit the space.
    """
    check_tables(space, losses)
    anchor = limits.index(limits.fastest())
    index = _narrowed(limits, losses, limits.index(space.largest()))
    return limits.widths(filled(limits, losses, anchor if index is None else index))


def _narrowed(limits: Limits, losses: Sequence[np.ndarray], index: np.ndarray) -> np.ndarray | None:
    """Choice indices within all limits; None where no single step saves anything any more."""
    while not limits.fit(index[None])[0]:
        step = cheapest_step(limits, losses, index)
        if step is None:
            return None
        index = step
    return index


def cheapest_step(limits: Limits, losses: Sequence[np.ndarray], index: np.ndarray) -> np.ndarray | None:
    """The choice indices after the step that loses least per latency, and what else exceeds a limit, saved.

    A step takes one group one or several choices down; those of infinite loss are none. None where none saves
    anything that is still to be saved.
    """
    costs = limits.costs(index[None])
    need = limits.excess(costs)
    over = need[:, 0] > 0
    options, lost = steps(losses, index, wider=False)
    if not len(options) or not over.any():
        return None
    saved = (costs - limits.costs(options))[over]
    # What is saved beyond the need is worth nothing, and each limit counts by what it still lacks.
    share = np.minimum(saved / need[over], 1.0).sum(axis=0)
    worth = (share >= SMALLEST) & np.isfinite(lost)
    if not worth.any():
        return None
    rate = np.where(worth, lost / np.where(worth, share, 1.0), np.inf)
    return np.asarray(options[np.lexsort((-share, rate))[0]])


def filled(limits: Limits, losses: Sequence[np.ndarray], index: np.ndarray) -> np.ndarray:
    """Choice indices where no group alone can be wider within the limits and lose less by it."""
    while True:
        options, lost = steps(losses, index, wider=True)
        options, lost = options[lost < 0], lost[lost < 0]
        if len(options):
            fits = limits.fit(options)
            options, lost = options[fits], lost[fits]
        if not len(options):
            return index
        index = options[lost.argmin()]


def steps(losses: Sequence[np.ndarray], index: np.ndarray, wider: bool) -> tuple[np.ndarray, np.ndarray]:
    """Every network (N, groups) with one group wider, or narrower, and what more it loses (N,)."""
    options, lost = [], []
    for group, (own, now) in enumerate(zip(losses, index.tolist(), strict=True)):
        for choice in range(now + 1, len(own)) if wider else range(now):
            option = index.copy()
            option[group] = choice
            options.append(option)
            lost.append(own[choice] - own[now])
    return np.array(options, dtype=np.int64).reshape(len(options), len(index)), np.array(lost, dtype=float)
