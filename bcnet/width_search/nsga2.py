"""Non-dominated sorting and crowding distance of NSGA-II.

In: costs, lower is better. Out: each candidate's front, and its crowding distance within it. Deb, Pratap,
Agarwal and Meyarivan, "A fast and elitist multiobjective genetic algorithm: NSGA-II", 2002, section III.
"""

import bisect

import numpy as np


def fronts(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The front (N,) of each candidate by two costs (N,): 0 for those that no other dominates.

    A candidate dominates another if it is no higher in both costs and lower in one. In sorted order, the last
    of each front is its lowest in the second cost, and these are ascending, so a candidate's front is found
    by bisection: O(N log N) (Jensen, 2003), whereas comparing all pairs takes O(N^2).
    """
    found = np.zeros(len(first), dtype=int)
    lowest: list[tuple[float, float]] = []  # of each front, (second cost, first cost) of its last
    for candidate in np.lexsort((second, first)):
        own = float(second[candidate]), float(first[candidate])
        # A front whose last candidate has the same costs does not dominate it, and neither do later fronts.
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
