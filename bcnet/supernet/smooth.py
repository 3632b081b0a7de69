"""Scores without their luck: what all scored candidates together say of each.

In: choices and scores. Out: for each candidate the expected score, a Gaussian process's mean.
"""

import numpy as np

FEWEST = 10  # candidates from which something is learned
MOST = 1000  # the best that the process is fitted on: its time grows with their cube
SOME = 250  # of these, evenly from best to worst, say how much is luck
LENGTHS = (0.5, 1.0)  # how far apart, as parts of a group's range, choices still tell of each other
PAIRS = (0.2, 0.5)  # what pairs of groups explain beside single ones
NOISES = (1e-6, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0)  # variance of luck over that of what is explained


def expected_scores(places: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Expected scores (N,) at places (N, groups), each group's choice from 0 to 1, of scores (N,).

    The best of many scores is a lucky one. A score is taken as a sum of smooth functions of single widths and
    of pairs, and of luck; how much is luck is what makes the scores most likely (Rasmussen and Williams,
    "Gaussian processes for machine learning", 2006, section 5.4.1). Scores without luck stay as they are.
    """
    spread = float(scores.std()) if len(scores) >= FEWEST else 0.0
    if spread == 0 or not np.isfinite(spread):
        return scores
    best = np.argsort(-scores, kind="stable")[:MOST]
    seen, values = places[best], (scores[best] - scores.mean()) / spread
    some = slice(None, None, -(-len(best) // SOME))
    length, share, noise = _likeliest(seen[some], values[some])
    single, pairs = _kernels(seen, seen, length)
    alike = (1 - share) * single + share * pairs + noise * np.eye(len(seen))
    of_values, of_ones = np.linalg.solve(alike, np.stack([values, np.ones(len(seen))], axis=1)).T
    level = of_values.sum() / of_ones.sum()
    single, pairs = _kernels(places, seen, length)
    expected = ((1 - share) * single + share * pairs) @ (of_values - level * of_ones) + level
    return np.asarray(expected * spread + scores.mean())


def _likeliest(seen: np.ndarray, values: np.ndarray) -> tuple[float, float, float]:
    """The length, the share of pairs and the noise that make the values most likely."""
    likeliest, chosen = -np.inf, (LENGTHS[0], PAIRS[0], NOISES[-1])
    for length in LENGTHS:
        single, pairs = _kernels(seen, seen, length)
        for share in PAIRS:
            variances, axes = np.linalg.eigh((1 - share) * single + share * pairs)
            variances = np.maximum(variances, 0.0)
            seen_values, ones = axes.T @ values, axes.sum(axis=0)
            for noise in NOISES:
                total = variances + noise
                level = (ones * seen_values / total).sum() / (ones * ones / total).sum()
                rest = seen_values - level * ones
                likelihood = -len(rest) * np.log((rest * rest / total).mean()) - np.log(total).sum()
                if likelihood > likeliest:
                    likeliest, chosen = likelihood, (length, share, noise)
    return chosen


def _kernels(one: np.ndarray, other: np.ndarray, length: float) -> tuple[np.ndarray, np.ndarray]:
    """How alike places are, (N, M): by single groups, and by pairs of groups; both at most 1."""
    total, squares = np.zeros((len(one), len(other))), np.zeros((len(one), len(other)))
    for group in range(one.shape[1]):
        alike = np.exp(-((one[:, group, None] - other[:, group]) ** 2) / (2 * length * length))
        total += alike
        squares += alike * alike
    groups = one.shape[1]
    return total / groups, (total * total - squares) / max(1, groups * (groups - 1))
