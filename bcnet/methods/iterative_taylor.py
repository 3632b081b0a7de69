"""Widths by removing the least important channels of the whole network, their importance calculated again.

In: the importance of the channels that are left, limits. Out: widths within them. Molchanov et al.,
"Importance estimation for neural network pruning" (CVPR 2019, section 4), ranked over all groups with each
group's mean importance as one, as Torch-Pruning does (Fang et al., "DepGraph", CVPR 2023, section 3.3).
"""

from collections.abc import Sequence
from itertools import count

import numpy as np
from torch import Tensor

from bcnet.allocation.limits import Limits
from bcnet.allocation.loss_tables import importance_tables
from bcnet.allocation.problem import AllocationProblem, ImportanceOf
from bcnet.registry import method
from bcnet.space.importance import kept_channels
from bcnet.space.subnet import Subnet
from bcnet.space.width_space import Widths

STEP = 0.05  # of all channels: so many are removed before importance is calculated again
TINY = 1e-300  # a group whose channels all have no importance


@method(
    "iterative-taylor",
    "removes the channels of the least Taylor importance in the whole network, which it calculates again "
    "after every 5 % of them",
    paper="Molchanov et al. (CVPR 2019)",
    auto=5,
)
def propose(problem: AllocationProblem) -> list[Widths]:
    """The first network on this way that is within the limits."""
    return [remove_iteratively(problem.limits, problem.importance_of)]


def remove_iteratively(limits: Limits, importance_of: ImportanceOf) -> Widths:
    """The first network within the limits on the way from the whole one.

    A step takes one group to its next narrower choice: that of the least importance per channel, in
    comparison with the group's mean. Raises BudgetError, with the lowest possible latency, where no network
    is within the limits.
    """
    fastest = limits.fastest()
    space, index = limits.space, limits.index(limits.space.largest())
    left = Subnet.at(space, space.largest())
    for number in count(1):
        if limits.fit(index[None])[0]:
            return limits.widths(index)
        importance = importance_of(left, number)
        losses = importance_tables(space, relative(importance, left.widths))
        narrower = _narrowed(limits, losses, index)
        if np.array_equal(narrower, index):
            return fastest  # no group can be narrower, and only another network is within the limits
        index = narrower
        left = kept_channels(space, limits.widths(index), importance)
    raise AssertionError


def relative(importance: Sequence[Tensor], left: Widths) -> list[Tensor]:
    """Importance in comparison with the mean of a group's channels, of which so many are left."""
    pairs = zip(importance, left, strict=True)
    return [own.double() * count / own.double().sum().clamp(min=TINY) for own, count in pairs]


def _narrowed(limits: Limits, losses: Sequence[np.ndarray], index: np.ndarray) -> np.ndarray:
    """Choice indices of the next round: within the limits, or with a `STEP` fewer of all channels."""
    index, left = index.copy(), STEP * sum(limits.space.largest())
    while left > 0 and index.any() and not limits.fit(index[None])[0]:
        fewer = [int(own[i] - own[i - 1]) if i else 1 for own, i in zip(limits.choices, index, strict=True)]
        lost = [own[i - 1] - own[i] if i else np.inf for own, i in zip(losses, index, strict=True)]
        group = int(np.argmin(np.divide(lost, fewer)))
        index[group] -= 1
        left -= fewer[group]
    return index
