"""What a latency table's arrays do not tell, as a sum over groups: exact enough near one latency.

In: a table's latencies of whole networks, and the sum of its arrays. Out: one array a group by its choices.
"""

from collections.abc import Callable, Sequence

import numpy as np

from bcnet.allocation.rows import Sum
from bcnet.latency_tables.failed import runs

SAMPLES = 4096
NEAR = 0.2  # of the limit: networks count less from here on
REDRAWN = 0.15  # of the groups, around given networks
NOTHING = 1e-9  # of a latency: what floats added up in another order differ by


def additive(
    sizes: Sequence[int],
    latencies_of: Callable[[np.ndarray], np.ndarray],
    known: Sum,
    around: np.ndarray | None = None,
) -> Sum | None:
    """The sum over groups that best fits latencies minus `known`; None if the difference is zero.

    `sizes` are the groups' numbers of choices; `latencies_of` gives ms (N,) of choice indices (N, groups). A
    weighted least-squares fit on networks of all sizes, in which those near the latency limit count most.
    With the choice indices `around`, it is fitted on networks that differ from these in a few groups, and is
    exact at them.
    """
    rng = np.random.default_rng(0)
    counts, limit_ms = np.array(sizes), known.at_most
    if around is None:
        # Of the same size throughout, more or less: independent draws are all of a middling latency.
        share = np.broadcast_to(rng.random((SAMPLES, 1)), (SAMPLES, len(counts)))
        indices = rng.binomial(counts - 1, share)
    else:
        drawn = rng.integers(counts, size=(SAMPLES, len(counts)))
        indices = np.where(rng.random(drawn.shape) < REDRAWN, drawn, around)
    latencies = latencies_of(indices)
    rest = latencies - known.at(indices)
    running = runs(latencies)
    if (np.abs(rest[running]) <= NOTHING * np.abs(latencies[running])).all():
        return None
    indices, latencies, rest = indices[running], latencies[running], rest[running]
    distance = np.abs(latencies - limit_ms)
    reach = max(NEAR * limit_ms, float(distance.min()))
    weight = np.exp(-0.5 * (distance / reach) ** 2)
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
    design = np.zeros((len(indices), int(counts.sum())))
    np.put_along_axis(design, indices + starts, 1.0, axis=1)
    offset = float(np.average(rest, weights=weight))
    weighted = design * weight[:, None]
    # Slightly pulled to zero: what no network shows stays there, and the groups' offsets are determined.
    normal = design.T @ weighted + 1e-6 * weight.sum() * np.eye(design.shape[1])
    found = np.linalg.solve(normal, weighted.T @ (rest - offset))
    if around is not None:
        there = latencies_of(around[None]) - known.at(around[None])
        offset = float(there[0]) - float(found[around + starts].sum())
    arrays = [((group,), own) for group, own in enumerate(np.split(found, starts[1:]))]
    return Sum(offset, arrays, known.at_most)
