"""Scores without their noise, and without what only a supernet does: what all of them say of any widths.

In: widths and scores. Out: an `Expectation`: a trend in the widths, and what of the residual is believed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

FEWEST = 10  # candidates from which something is learned
MOST = 1000  # the best that the process is fitted on: its time grows with their cube
SOME = 250  # of these, evenly from best to worst, say how much is noise
LENGTHS = (0.5, 1.0)  # how far apart, as parts of a group's range, choices still tell of each other
PAIRS = (0.2, 0.5)  # what pairs of groups explain beside single ones
NOISES = (1e-6, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0)  # variance of noise over that of what is explained
PENALTIES = np.logspace(-3, 3, 13)
# The residual's variance over the trend's: 0.010 for accuracies from scratch, of all 16,384 settings of
# Channel-Bench-Macro, denoised. Supernets there have 0.016 to 1.9.
RESIDUAL = 0.02
BY_LOSS = 0.75  # of a score: calibrated losses tell more than accuracies (docs/results.md)
BY_OTHER = 0.5  # where losses are not calibrated, or the metric is not accuracy: they may disagree
LEAST = 0.1  # of the residual is believed in any case: widths can be too narrow for a task


def places_of(widths: ArrayLike, choices: Sequence[Sequence[int]]) -> np.ndarray:
    """Places (N, groups), 0 to 1, of widths (N, groups) between the ends of each group's ascending choices.

    In steps of 1 / sqrt(width), by which accuracies from scratch rise nearly evenly: from one channel to two
    is more than from two to three.
    """
    low, high = (-1 / np.sqrt([own[end] for own in choices]) for end in (0, -1))
    result: np.ndarray = (-1 / np.sqrt(widths) - low) / np.where(high > low, high - low, 1.0)
    return result


@dataclass(frozen=True)
class Expectation:
    """What scores together say of any widths, scored or not.

    The best of many scores is a lucky one; and in a supernet, some widths do better or worse than they would
    alone, by the weights that they share. So a score is taken as a trend, a slope a group; a residual, smooth
    functions of single widths and of pairs; and noise. Networks trained from scratch have little residual. A
    larger one is shrunk in the ratio of the two, but not below a tenth. Scores without noise, of a trend and
    little residual, stay as they are.
    """

    trend: "Ridge"
    residual: "_GaussianProcess | None"
    shrinkage: float  # factor of the residual, 0 to 1
    residual_mean: float  # where the scores are
    mean: float
    deviation: float

    @classmethod
    def of(cls, places: np.ndarray, scores: np.ndarray) -> "Expectation | None":
        """Learned from scores (N,) at places (N, groups), those of `places_of`.

        None where nothing can be learned: scores that are few, all equal, or not finite.
        """
        deviation = float(scores.std()) if len(scores) >= FEWEST else 0.0
        if deviation == 0 or not np.isfinite(deviation):
            return None
        mean = float(scores.mean())
        values = (scores - mean) / deviation
        features = features_of(places)
        trend = Ridge.of(features, values, free=1)
        along = trend.at(features)
        residual = _GaussianProcess.of(places, values - along, values)
        left = residual.at(places) if residual else np.zeros(1)
        shrinkage = max(LEAST, min(1.0, RESIDUAL * float(along.var()) / max(float(left.var()), 1e-12)))
        return cls(trend, residual, shrinkage, float(left.mean()), mean, deviation)

    def at(self, places: np.ndarray, shrunk: bool = True) -> np.ndarray:
        """Expected scores (M,) at places (M, groups); without `shrunk`, those in the supernet itself."""
        along = self.trend.at(features_of(places))
        left = self.residual.at(places) - self.residual_mean if self.residual else 0.0
        return np.asarray((along + (self.shrinkage if shrunk else 1.0) * left) * self.deviation + self.mean)


def with_losses(accuracies: np.ndarray, losses: np.ndarray, by_loss: float = BY_LOSS) -> np.ndarray:
    """Accuracies (N,), each `by_loss` of the way to the one that its loss's rank (N,) would have among them.

    A loss tells more than how many answers were right, the more so the fewer images there are. Losses that
    are all equal, or not finite, tell nothing.
    """
    if not np.isfinite(losses).all() or np.ptp(losses) == 0:
        return accuracies
    of_rank = np.empty_like(accuracies)
    of_rank[np.argsort(losses, kind="stable")] = np.sort(accuracies)[::-1]
    return np.asarray((1 - by_loss) * accuracies + by_loss * of_rank)


def expected_scores(places: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """What all of the scores (N,) say of each; where nothing can be learned they stay as they are."""
    learned = Expectation.of(places, scores)
    return scores if learned is None else learned.at(places)


def features_of(places: np.ndarray) -> np.ndarray:
    """Features (N, 1 + groups) of a trend; the first is what all slopes have in common, to be left free."""
    return np.column_stack([places.sum(1), places])


@dataclass(frozen=True)
class Ridge:
    """A ridge regression: `mean` (F,) of the features, `level` of the values, `slopes` (F,)."""

    mean: np.ndarray
    level: float
    slopes: np.ndarray

    @classmethod
    def of(cls, known: np.ndarray, values: np.ndarray, free: int) -> "Ridge":
        """Learned from values (N,) at features (N, F), centred, not scaled; the first `free` are not shrunk.

        The penalty is that of the least leave-one-out error (Hastie, Tibshirani and Friedman, "The elements
        of statistical learning", 2009, sections 3.4.1 and 7.10).
        """
        mean, level = known.mean(0), float(values.mean())
        design, target = known - mean, values - level
        shrunk = np.diag(np.r_[np.full(free, 1e-9), np.ones(design.shape[1] - free)])
        least, slopes = np.inf, np.zeros(design.shape[1])
        for penalty in PENALTIES:
            solver = np.linalg.solve(design.T @ design + penalty * shrunk, design.T)
            found = solver @ target
            leverage = (design * solver.T).sum(1) + 1 / len(target)
            error = float((((target - design @ found) / np.maximum(1 - leverage, 1e-9)) ** 2).mean())
            if error < least:
                least, slopes = error, found
        return cls(mean, level, slopes)

    def at(self, features: np.ndarray) -> np.ndarray:
        """Predictions (M,) at features (M, F)."""
        return np.asarray((features - self.mean) @ self.slopes + self.level)


@dataclass(frozen=True)
class _GaussianProcess:
    """A Gaussian process's mean: smooth functions of single places and of pairs.

    `seen` (N, groups) are the places it is fitted on, `weights` (N,) theirs.
    """

    seen: np.ndarray
    weights: np.ndarray
    level: float
    length: float
    pairs: float  # the part of pairs in the kernel, the rest is that of single places
    deviation: float

    @classmethod
    def of(cls, places: np.ndarray, values: np.ndarray, scores: np.ndarray) -> "_GaussianProcess | None":
        """Learned from values (N,), where the scores (N,) are best; None: all values are equal.

        How much is noise is what makes the values most likely (Rasmussen and Williams, "Gaussian processes
        for machine learning", 2006, section 5.4.1).
        """
        best = np.argsort(-scores, kind="stable")[:MOST]
        seen, deviation = places[best], float(values[best].std())
        if deviation == 0:
            return None
        values = values[best] / deviation
        some = slice(None, None, -(-len(best) // SOME))
        length, pairs, noise = _likeliest(seen[some], values[some])
        alike = _kernel(seen, seen, length, pairs) + noise * np.eye(len(seen))
        of_values, of_ones = np.linalg.solve(alike, np.stack([values, np.ones(len(seen))], axis=1)).T
        level = float(of_values.sum() / of_ones.sum())
        return cls(seen, of_values - level * of_ones, level, length, pairs, deviation)

    def at(self, places: np.ndarray) -> np.ndarray:
        """The mean (M,) at places (M, groups)."""
        alike = _kernel(places, self.seen, self.length, self.pairs)
        return np.asarray((alike @ self.weights + self.level) * self.deviation)


def _likeliest(seen: np.ndarray, values: np.ndarray) -> tuple[float, float, float]:
    """The length, the part of pairs and the noise that make the values most likely."""
    likeliest, chosen = -np.inf, (LENGTHS[0], PAIRS[0], NOISES[-1])
    for length in LENGTHS:
        for pairs in PAIRS:
            variances, axes = np.linalg.eigh(_kernel(seen, seen, length, pairs))
            variances = np.maximum(variances, 0.0)
            seen_values, ones = axes.T @ values, axes.sum(axis=0)
            for noise in NOISES:
                total = variances + noise
                level = (ones * seen_values / total).sum() / (ones * ones / total).sum()
                rest = seen_values - level * ones
                likelihood = -len(rest) * np.log((rest * rest / total).mean()) - np.log(total).sum()
                if likelihood > likeliest:
                    likeliest, chosen = likelihood, (length, pairs, noise)
    return chosen


def _kernel(one: np.ndarray, other: np.ndarray, length: float, pairs: float) -> np.ndarray:
    """How alike places are, (N, M), at most 1: by single groups, and for a part by pairs of groups."""
    total, squares = np.zeros((len(one), len(other))), np.zeros((len(one), len(other)))
    for group in range(one.shape[1]):
        alike = np.exp(-((one[:, group, None] - other[:, group]) ** 2) / (2 * length * length))
        total += alike
        squares += alike * alike
    groups = one.shape[1]
    of_pairs = (total * total - squares) / max(1, groups * (groups - 1))
    return np.asarray((1 - pairs) * total / groups + pairs * of_pairs)
