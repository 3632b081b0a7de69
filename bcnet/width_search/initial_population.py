"""The prior of a search: distributions of widths with low expected loss within the budget.

In: the losses recorded in supernet training, and limits. Out: one distribution per group.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bcnet.space.width_space import Widths

ITERATIONS = 30


def potential_losses(
    records: Sequence[tuple[Widths, float]], choices: Sequence[tuple[int, ...]]
) -> list[np.ndarray]:
    """Mean recorded loss of each (group, choice), from the second half of training.

    BCNet, section 3.3. Losses fall during training, so each is taken relative to a moving average; choices
    that were never recorded get the mean.
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


@dataclass(frozen=True)
class Limit:
    """An upper limit on an expected cost, a sum of an offset and arrays by groups' choices."""

    offset: float
    arrays: Sequence[tuple[tuple[int, ...], np.ndarray]]
    at_most: float

    def kept(self, p: Sequence[np.ndarray]) -> bool:
        """Whether these distributions are within the limit."""
        return self.offset + _expected(self.arrays, p) <= self.at_most


def prior(losses: Sequence[np.ndarray], limits: Sequence[Limit]) -> tuple[np.ndarray, ...]:
    """Probabilities of each group's choices that minimise the expected loss within every expected limit.

    BCNet, section 3.3, with the latency table's pairwise cost instead of FLOPs; `losses` are those of
    `potential_losses`. Fixed-point iteration of `p ~ exp(-(loss + price * marginal cost) / temperature)`,
    with marginals under the other groups' current distributions; the price (Lagrange multiplier) of each
    violated limit is found by bisection, one limit at a time. The temperature is the standard deviation of
    the losses.
    """
    temperature = max(float(np.std(np.concatenate([row - row.mean() for row in losses]))), 1e-6)

    def solve(prices: Sequence[float]) -> list[np.ndarray]:
        p = [np.full(len(row), 1 / len(row)) for row in losses]
        for _ in range(ITERATIONS):
            cost = [row.copy() for row in losses]
            for limit, price in zip(limits, prices, strict=True):
                if price:
                    for row, marginal in zip(cost, _marginals(limit.arrays, p), strict=True):
                        row += price * marginal
            fresh = [_softmax(-row / temperature) for row in cost]
            p = [(old + new) / 2 for old, new in zip(p, fresh, strict=True)]
        return p

    prices = [0.0] * len(limits)
    for number, limit in enumerate(limits):
        if limit.kept(solve(prices)):
            continue

        def at(price: float, number: int = number) -> list[np.ndarray]:
            return solve([*prices[:number], price, *prices[number + 1 :]])

        # The price at which the range of costs equals the temperature.
        unit = temperature / max(1e-12, max((float(np.ptp(a)) for _, a in limit.arrays), default=0.0))
        low, high = 0.0, unit
        for _ in range(40):
            if limit.kept(at(high)):
                break
            high *= 2
        for _ in range(14):
            middle = (low + high) / 2
            low, high = (low, middle) if limit.kept(at(middle)) else (middle, high)
        prices[number] = high
    return tuple(solve(prices))


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
    """For each group, the expected cost of its layers, by its choice."""
    marginal = [np.zeros(len(row)) for row in p]
    for groups, array in arrays:
        for group in groups:
            marginal[group] += _average(array, p, groups, group)
    return marginal


def _expected(arrays: Sequence[tuple[tuple[int, ...], np.ndarray]], p: Sequence[np.ndarray]) -> float:
    return float(sum(_average(array, p, groups, None) for groups, array in arrays))
