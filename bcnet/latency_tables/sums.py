"""What layers add up to in a network, looked up for thousands of networks at once, and fast for a single one.

In: arrays over a few groups' choices each. Out: their sums at choice indices, or at widths.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import cached_property
from operator import itemgetter
from typing import Any

import numpy as np

ENTRIES = 512  # of one array, where several become one: what is looked up at random stays in the cache,
NETWORKS = 4096  # and so do the networks that are summed at a time
Terms = Sequence[tuple[tuple[int, ...], np.ndarray]]  # (groups, (*their choices, 3))
Values = tuple[float, float, float]


class Sums:
    """Sums of three values. Fewer, larger arrays take the place of the terms: each is one look-up.

    One network and many get the same sums to the last bit: the arrays are added in one order.
    """

    def __init__(self, terms: Terms, choices: Sequence[tuple[int, ...]]) -> None:
        """A term's groups ascend."""
        self._choices = tuple(choices)
        self._sizes = np.array([len(own) for own in choices], dtype=np.int64)
        self._terms = self._merged(terms)
        # A network's place in each flattened array is a sum of strides: one small matrix product for many.
        # float32 holds whole numbers up to 2^24.
        self._strides = np.zeros((len(self._terms), len(choices)), dtype=np.float32)
        for row, (groups, _) in zip(self._strides, self._terms, strict=True):
            stride = 1
            for group in reversed(groups):
                row[group] = stride
                stride *= int(self._sizes[group])
        self._flat = [np.ascontiguousarray(array.reshape(-1, 3).T) for _, array in self._terms]

    def _merged(self, terms: Terms) -> list[tuple[tuple[int, ...], np.ndarray]]:
        """Neighbours in a network share groups: a term goes into the array before it while that has room."""
        merged: list[tuple[tuple[int, ...], np.ndarray]] = []
        for groups, array in sorted(terms, key=lambda term: term[0]):
            if merged:
                union = tuple(sorted({*merged[-1][0], *groups}))
                if int(np.prod(self._sizes[list(union)])) <= ENTRIES:
                    total = self._over(union, *merged[-1]) + self._over(union, groups, array)
                    merged[-1] = union, total
                    continue
            merged.append((groups, array))
        return merged

    def _over(self, union: tuple[int, ...], groups: tuple[int, ...], array: np.ndarray) -> np.ndarray:
        """The array over more groups, on which it does not depend."""
        shape = [int(self._sizes[group]) if group in groups else 1 for group in union]
        full = [int(self._sizes[group]) for group in union]
        return np.broadcast_to(array.reshape(*shape, 3), (*full, 3))

    def many(self, indices: np.ndarray, values: int) -> np.ndarray:
        """The first `values` sums (values, N) at choice indices (N, groups). Raises IndexError outside."""
        result = np.zeros((values, len(indices)))
        for start in range(0, len(indices), NETWORKS):
            part = np.asarray(indices[start : start + NETWORKS], dtype=np.int64)
            # Seen as unsigned, an index below zero is too large, too.
            if (part.view(np.uint64) >= self._sizes.view(np.uint64)).any():
                raise IndexError("a choice index is outside its group's choices")
            places = (self._strides @ part.T.astype(np.float32)).astype(np.intp)
            for flat, place in zip(self._flat, places, strict=True):
                for total, column in zip(result[:, start : start + NETWORKS], flat, strict=False):
                    total += column.take(place)
        return result

    def one(self, widths: Sequence[int]) -> Values | None:
        """The sums of one network; None where a width is not among its group's choices."""
        a = b = c = 0.0
        try:
            for key_of, known in self._by_width:
                x, y, z = known[key_of(widths)]
                a, b, c = a + x, b + y, c + z
        except KeyError:
            return None
        return a, b, c

    @cached_property
    def _by_width(self) -> list[tuple[Callable[[Sequence[int]], Any], dict[Any, Values]]]:
        """For each array what finds a network's key, and {key: values}: the fastest that Python has."""
        found = []
        for (groups, _), flat in zip(self._terms, self._flat, strict=True):
            keys: list[Any] = list(itertools.product(*(self._choices[group] for group in groups)))
            if len(groups) == 1:
                keys = [key for (key,) in keys]  # as `itemgetter` gives a single one
            key_of: Callable[[Sequence[int]], Any] = itemgetter(*groups) if groups else lambda _: ()
            found.append((key_of, dict(zip(keys, zip(*flat.tolist(), strict=True), strict=True))))
        return found
