"""Where a search starts: width distributions that promise low loss inside the budget.

In: the losses recorded in supernet training, and a latency model. Out: one distribution a group.
"""

from collections.abc import Sequence

import numpy as np

from bcnet.latency_tables.model import LatencyModel
from bcnet.supernet.space import Widths

ITERATIONS = 30


def potential_losses(
    records: Sequence[tuple[Widths, float]], choices: Sequence[tuple[int, ...]]
) -> list[np.ndarray]:
    """Mean recorded loss of each (group, choice), from the second half of training.

    BCNet, section 3.3. Losses fall while training goes on, so each is taken relative to its neighbours in
    time; choices that were never recorded get the mean.
    """
    late = records[len(records) // 2 :]
    losses = np.array([loss for _, loss in late])
    window = min(len(losses), 51)
    if window:
        padded = np.pad(losses, (window // 2, (window - 1) // 2), mode="edge")
        losses = losses - np.convolve(padded, np.ones(window) / window, mode="valid")
    tables = []
    for group, own in enumerate(choices):
        widths = np.array([record[0][group] for record in late])
        tables.append(
            np.array([losses[widths == width].mean() if (widths == width).any() else 0.0 for width in own])
        )
    return tables


def prior(
    records: Sequence[tuple[Widths, float]], latency: LatencyModel, budget_ms: float
) -> tuple[np.ndarray, ...]:
    """Per group, probabilities of its choices: least expected loss at an expected latency of the budget.

    BCNet, section 3.3, with the latency table's pairwise cost in place of FLOPs. Solved as
    `p ~ exp(-(loss + price * marginal latency) / temperature)`: marginals of the other groups' current
    distributions, the price found by bisection. The temperature is the losses' own spread, so that weak
    evidence gives a flat distribution.
    """
    losses = potential_losses(records, latency.choices)
    temperature = max(float(np.std(np.concatenate([row - row.mean() for row in losses]))), 1e-6)
    offset, arrays = latency.pairwise()

    def solve(price: float) -> list[np.ndarray]:
        p = [np.full(len(row), 1 / len(row)) for row in losses]
        for _ in range(ITERATIONS):
            marginal = _marginals(arrays, p)
            fresh = [
                _softmax(-(row + price * m) / temperature) for row, m in zip(losses, marginal, strict=True)
            ]
            p = [(old + new) / 2 for old, new in zip(p, fresh, strict=True)]
        return p

    low, high = 0.0, 1.0
    if offset + _expected(arrays, solve(low)) <= budget_ms:
        return tuple(solve(low))
    for _ in range(40):
        if offset + _expected(arrays, solve(high)) <= budget_ms:
            break
        high *= 2
    for _ in range(30):
        middle = (low + high) / 2
        if offset + _expected(arrays, solve(middle)) <= budget_ms:
            high = middle
        else:
            low = middle
    return tuple(solve(high))


def _softmax(values: np.ndarray) -> np.ndarray:
    exponentials = np.exp(values - values.max())
    result: np.ndarray = exponentials / exponentials.sum()
    return result


def _average(
    array: np.ndarray, p: Sequence[np.ndarray], groups: Sequence[int], keep: int | None
) -> np.ndarray:
    """The array averaged over every group but `keep`."""
    for axis in reversed(range(len(groups))):
        if groups[axis] != keep:
            array = np.tensordot(array, p[groups[axis]], axes=(axis, 0))
    return array


def _marginals(
    arrays: Sequence[tuple[tuple[int, ...], np.ndarray]], p: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """For each group, the expected latency of the layers it is part of, by its choice."""
    marginal = [np.zeros(len(row)) for row in p]
    for groups, array in arrays:
        for group in groups:
            marginal[group] += _average(array, p, groups, group)
    return marginal


def _expected(arrays: Sequence[tuple[tuple[int, ...], np.ndarray]], p: Sequence[np.ndarray]) -> float:
    return float(sum(_average(array, p, groups, None) for groups, array in arrays))
