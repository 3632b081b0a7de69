"""Sums over pairs of groups as rows of a linear program with one binary variable for each group and choice.

In: arrays over a few groups' choices each, as `LatencyModel.pairwise` and `Cost.pairwise` give them. Out: the
columns, the rows that tie products to their factors, and each sum as one row over all columns.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from scipy.sparse import coo_array, csr_array

Arrays = Sequence[tuple[tuple[int, ...], np.ndarray]]


@dataclass(frozen=True)
class Sum:
    """At most `at_most`: an offset and arrays that add up, by their groups' choice indices."""

    offset: float
    arrays: Arrays
    at_most: float

    def at(self, indices: np.ndarray) -> np.ndarray:
        """What it is (N,) at choice indices (N, groups)."""
        found = np.full(len(indices), self.offset)
        for groups, array in self.arrays:
            found += array[tuple(indices[:, group] for group in groups)]
        return found

    def plus(self, other: "Sum") -> "Sum":
        """Both together, with the limit of the first."""
        return Sum(self.offset + other.offset, [*self.arrays, *other.arrays], self.at_most)


class Columns:
    """One column for each group and choice (binary), then one for each entry of an array over several groups.

    The entries' columns `z` are products of their groups' columns: non-negative, with sums over all axes but
    one that equal that axis's columns (Sherali, Adams, 1990). They need not be integers: where the groups'
    columns are, they are. An array over a part of another's groups shares its columns.
    """

    def __init__(self, sizes: Sequence[int], sums: Iterable[Sum]) -> None:
        """`sizes` are the numbers of choices; `sums` all that is to be a row."""
        self.sizes = tuple(sizes)
        self.starts = np.concatenate(([0], np.cumsum(self.sizes)))
        self.binary = int(self.starts[-1])
        joint = {groups for one in sums for groups, _ in one.arrays if len(groups) > 1}
        self._joint: dict[tuple[int, ...], int] = {}  # where each array's columns start
        self.count = self.binary
        for groups in sorted(joint, key=lambda own: (-len(own), own)):
            if self._home(groups) is None:
                self._joint[groups] = self.count
                self.count += int(np.prod(self._shape(groups)))

    def _shape(self, groups: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(self.sizes[group] for group in groups)

    def _home(self, groups: tuple[int, ...]) -> tuple[int, ...] | None:
        if groups in self._joint:
            return groups
        return next((own for own in self._joint if set(groups) <= set(own)), None)

    def row(self, one: Sum) -> tuple[np.ndarray, float]:
        """(coefficients of all columns, what they may add up to)."""
        coefficients, free = np.zeros(self.count), one.at_most - one.offset
        for groups, array in one.arrays:
            if not groups:
                free -= float(array)
            elif len(groups) == 1:
                start = self.starts[groups[0]]
                coefficients[start : start + array.size] += array
            else:
                home = self._home(groups)
                assert home is not None
                shape = [
                    size if group in groups else 1
                    for group, size in zip(home, self._shape(home), strict=True)
                ]
                full = np.broadcast_to(array.reshape(shape), self._shape(home))
                coefficients[self._joint[home] : self._joint[home] + full.size] += full.ravel()
        return coefficients, free

    def possible(self, rows: Sequence[tuple[np.ndarray, float]]) -> np.ndarray:
        """The upper bound of each column: 0 where it alone, with the least of all others, exceeds a row."""
        upper = np.ones(self.count)
        parts = [slice(a, b) for a, b in pairwise(self.starts)]
        starts = [*self._joint.values(), self.count]
        parts += [slice(a, b) for a, b in pairwise(starts)]
        for coefficients, free in rows:
            least = [float(coefficients[part].min()) for part in parts]
            room = free - sum(least) + 1e-6 * abs(free)
            for part, own in zip(parts, least, strict=True):
                upper[part][coefficients[part] - own > room] = 0.0
        return upper

    @cached_property
    def ties(self) -> tuple[csr_array, np.ndarray]:
        """Equations (matrix, right-hand sides): one choice a group; products add up to their factors."""
        places: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        right = [1.0] * len(self.sizes)
        for group, size in enumerate(self.sizes):
            columns = np.arange(self.starts[group], self.starts[group] + size)
            places.append((np.full(size, group), columns, np.ones(size)))
        for groups, start in self._joint.items():
            shape = self._shape(groups)
            entries = np.indices(shape).reshape(len(shape), -1)
            for axis, group in enumerate(groups):
                first, size = len(right), self.sizes[group]
                columns = start + np.arange(entries.shape[1])
                places.append((first + entries[axis], columns, np.ones(entries.shape[1])))
                own = np.arange(size)
                places.append((first + own, self.starts[group] + own, np.full(size, -1.0)))
                right += [0.0] * size
        rows, columns, values = (np.concatenate(part) for part in zip(*places, strict=True))
        return csr_array(coo_array((values, (rows, columns)), shape=(len(right), self.count))), np.array(
            right
        )

    def index(self, solution: np.ndarray) -> np.ndarray:
        """The choice indices (groups,) of a solution."""
        return np.array([int(own.argmax()) for own in np.split(solution[: self.binary], self.starts[1:-1])])

    def other_than(self, index: Sequence[int] | np.ndarray) -> tuple[np.ndarray, float]:
        """The row that excludes one network."""
        coefficients = np.zeros(self.count)
        coefficients[self.starts[:-1] + np.asarray(index)] = 1.0
        return coefficients, len(self.sizes) - 1.0
