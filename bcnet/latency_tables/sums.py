"""Sums of the layers of a network, by table look-up, for one network or for thousands at once.

In: arrays, each over the choices of a few groups. Out: their sums at choice indices, or at widths.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import cached_property
from operator import itemgetter
from typing import Any

import numpy as np

# Both limits keep random look-ups in the processor's cache (decision 6).
ENTRIES = 512  # maximum number of entries of a merged array
NETWORKS = 4096  # number of networks that are summed at a time
Terms = Sequence[tuple[tuple[int, ...], np.ndarray]]  # (groups, (*their choices, 3))
Values = tuple[float, float, float]


class Sums:
    """Sums of three values. The terms are merged into fewer, larger arrays, each of which is one look-up.

    `one` and `many` return bit-identical sums: they add the arrays in the same order.
    """

    def __init__(self, terms: Terms, choices: Sequence[tuple[int, ...]]) -> None:
        """The groups of each term are in ascending order."""
        self._choices = tuple(choices)
        self._sizes = np.array([len(own) for own in choices], dtype=np.int64)
        self._terms = self._merged(terms)
        # A network's index in each flattened array is a sum of strides: a small matrix product for many
        # networks. float32 represents integers exactly up to 2^24.
        self._strides = np.zeros((len(self._terms), len(choices)), dtype=np.float32)
        for row, (groups, _) in zip(self._strides, self._terms, strict=True):
            stride = 1
            for group in reversed(groups):
                row[group] = stride
                stride *= int(self._sizes[group])
        self._flat = [np.ascontiguousarray(array.reshape(-1, 3).T) for _, array in self._terms]

    def _merged(self, terms: Terms) -> list[tuple[tuple[int, ...], np.ndarray]]:
        """Consecutive layers share groups: merge terms into the previous array while it is small enough."""
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
        """The array broadcast over additional groups."""
        shape = [int(self._sizes[group]) if group in groups else 1 for group in union]
        full = [int(self._sizes[group]) for group in union]
        return np.broadcast_to(array.reshape(*shape, 3), (*full, 3))

    def many(self, indices: np.ndarray, values: int) -> np.ndarray:
        """The first `values` sums (values, N) at choice indices (N, groups). Raises IndexError."""
        result = np.zeros((values, len(indices)))
        for start in range(0, len(indices), NETWORKS):
            part = np.asarray(indices[start : start + NETWORKS], dtype=np.int64)
            # Viewed as unsigned, negative indices are too large as well.
            if (part.view(np.uint64) >= self._sizes.view(np.uint64)).any():
                raise IndexError("a choice index is outside its group's choices")
            places = (self._strides @ part.T.astype(np.float32)).astype(np.intp)
            for flat, place in zip(self._flat, places, strict=True):
                for total, column in zip(result[:, start : start + NETWORKS], flat, strict=False):
                    total += column.take(place)
        return result

    def one(self, widths: Sequence[int]) -> Values | None:
        """The sums of one network; None if a width is not among its group's choices."""
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
        """For each array a function from widths to a key, and {key: values}: Python's fastest look-up."""
        found = []
        for (groups, _), flat in zip(self._terms, self._flat, strict=True):
            keys: list[Any] = list(itertools.product(*(self._choices[group] for group in groups)))
            if len(groups) == 1:
                keys = [key for (key,) in keys]  # `itemgetter` returns a single item without a tuple
            key_of: Callable[[Sequence[int]], Any] = itemgetter(*groups) if groups else lambda _: ()
            found.append((key_of, dict(zip(keys, zip(*flat.tolist(), strict=True), strict=True))))
        return found
