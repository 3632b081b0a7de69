"""NSGA-II's two orders: which candidates no other beats, and which stand apart from their neighbours.

In: costs, less is better. Out: each candidate's front, and its distance to its neighbours in it. Deb, Pratap,
Agarwal and Meyarivan, "A fast and elitist multiobjective genetic algorithm: NSGA-II", 2002, section III.
"""

import bisect

import numpy as np


def fronts(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The front (N,) of each candidate by two costs (N,): 0 for those that no other dominates.

    One dominates another when it is at most as high in both and lower in one. In order of the costs, the last
    of each front is its lowest in the second, and these ascend: so its front is found by bisection, N log N
    in all (Jensen, 2003) where comparing all pairs takes N^2.
    """
    found = np.zeros(len(first), dtype=int)
    lowest: list[tuple[float, float]] = []  # of each front, (second cost, first cost) of its last
    for candidate in np.lexsort((second, first)):
        own = float(second[candidate]), float(first[candidate])
        # A front whose last has the same costs does not dominate it, and neither does any later one.
        place = bisect.bisect_left(lowest, own)
        found[candidate] = place
        lowest[place : place + 1] = [own]
    return found


def crowding(costs: np.ndarray, front: np.ndarray) -> np.ndarray:
    """Crowding distances (N,) of costs (N, M) within their fronts (N,): infinite at the ends of each.

    The sum over costs of the gap between both neighbours, relative to the front's own range.
    """
    distance = np.zeros(len(costs))
    if not len(costs):
        return distance
    for cost in costs.T:
        order = np.lexsort((cost, front))
        values, own = cost[order], front[order]
        starts = np.flatnonzero(np.r_[True, own[1:] != own[:-1]])
        ends = np.r_[starts[1:], len(own)] - 1
        span = np.repeat(values[ends] - values[starts], ends - starts + 1)
        gap = np.zeros(len(own))
        gap[1:-1] = values[2:] - values[:-2]
        gap = np.divide(gap, span, out=np.zeros(len(own)), where=span > 0)
        gap[starts] = gap[ends] = np.inf
        distance[order] += gap
    return distance
