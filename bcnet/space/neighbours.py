"""Find classes of channels that are adjacent wherever they occur.

In: axes, as rows of classes with run lengths. Out: the unique neighbours of every class, on both sides.
"""

import numpy as np


def only_neighbours(
    rows: list[tuple[np.ndarray, np.ndarray, str]], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each class, the one that always follows it and the one that always precedes it; else -1."""
    neighbours = []
    for forward in (True, False):
        low, high = np.full(count, count), np.full(count, -2)
        for row, runs, _ in rows:
            if not forward:
                row, runs = row[::-1], runs[::-1]
            following = np.append(row[1:], -1)
            following[np.append(runs[1:], -1) != runs] = -1
            own = row >= 0
            np.minimum.at(low, row[own], following[own])
            np.maximum.at(high, row[own], following[own])
        neighbours.append(np.where(low == high, low, -1))
    return neighbours[0], neighbours[1]
