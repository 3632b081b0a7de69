"""Where a search starts: width distributions that promise low loss inside the budget.

In: the losses recorded in supernet training, and what is to be kept. Out: one distribution a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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


@dataclass(frozen=True)
class Limit:
    """What is to be at most `at_most` on average: an offset and arrays that add up, by groups' choices."""

    offset: float
    arrays: Sequence[tuple[tuple[int, ...], np.ndarray]]
    at_most: float

    def kept(self, p: Sequence[np.ndarray]) -> bool:
        """Whether these distributions keep it."""
        return self.offset + _expected(self.arrays, p) <= self.at_most


def prior(losses: Sequence[np.ndarray], limits: Sequence[Limit]) -> tuple[np.ndarray, ...]:
    """Per group, probabilities of its choices: least expected loss where every limit is kept on average.

    BCNet, section 3.3, with the latency table's pairwise cost in place of FLOPs; `losses` are those of
    `potential_losses`. Solved as `p ~ exp(-(loss + price * marginal cost) / temperature)`: marginals of the
    other groups' current distributions, the price of each limit that is not kept found by bisection, in turn.
    The temperature is the losses' own spread.
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

        # One that moves losses as far as the cheapest and the dearest choices are apart.
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
    """For each group, the expected latency of the layers it is part of, by its choice."""
    marginal = [np.zeros(len(row)) for row in p]
    for groups, array in arrays:
        for group in groups:
            marginal[group] += _average(array, p, groups, group)
    return marginal


def _expected(arrays: Sequence[tuple[tuple[int, ...], np.ndarray]], p: Sequence[np.ndarray]) -> float:
    return float(sum(_average(array, p, groups, None) for groups, array in arrays))
