"""Denoise scores of subnets, and estimate scores of other widths, with a surrogate.

In: widths and their scores in a supernet. Out: a `Surrogate`: a linear trend in the widths, and a shrunk
residual.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

FEWEST = 10  # minimum number of scores for a surrogate
MOST = 1000  # maximum number of scores, the best ones, for the Gaussian process: its time is cubic in them
SOME = 250  # of these, evenly from best to worst, the number that selects the hyperparameters
# Candidates for the hyperparameters of the Gaussian process.
LENGTHS = (0.5, 1.0)  # length scale, relative to the range of a group
PAIRS = (0.2, 0.5)  # weight of pairs of groups in the kernel
NOISES = (1e-6, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0)  # variance of the noise relative to that of the process
PENALTIES = np.logspace(-3, 3, 13)


@dataclass(frozen=True)
class SurrogateConfig:
    """What was fitted on Channel-Bench-Macro: CIFAR-10, its MobileNet space of 16,384 settings.

    `residual` is the variance of the residual relative to that of the trend, `least_factor` the minimum
    factor of the residual: some widths really are too narrow for a task (decision 10). `by_loss` is the
    weight of a calibrated loss in a score (decision 12); `by_other` that of an uncalibrated one, or beside
    another metric than accuracy, with which it may disagree.
    """

    residual: float = 0.02
    least_factor: float = 0.1
    by_loss: float = 0.75
    by_other: float = 0.5


FITTED = SurrogateConfig()


def places_of(widths: ArrayLike, choices: Sequence[Sequence[int]]) -> np.ndarray:
    """Positions (N, groups), 0 to 1, of widths (N, groups) in the range of the ascending choices.

    On a scale of 1 / sqrt(width), in which the accuracy of networks trained from scratch is nearly linear:
    from one channel to two is a larger step than from two to three.
    """
    low, high = (-1 / np.sqrt([own[end] for own in choices]) for end in (0, -1))
    result: np.ndarray = (-1 / np.sqrt(widths) - low) / np.where(high > low, high - low, 1.0)
    return result


@dataclass(frozen=True)
class Surrogate:
    """Estimates denoised scores of any widths from all scores.

    The best of many noisy scores is too high (the winner's curse), and in a supernet some widths score better
    or worse than they would alone, because they share weights. Therefore a score is modelled as a linear
    trend with one slope per group, a residual (smooth functions of single widths and of pairs), and noise.
    Networks trained from scratch have a small residual; a larger one is shrunk by the ratio of the two, as
    far as the configuration allows. Scores without noise and with a small residual are left unchanged.
    """

    trend: "Ridge"
    residual: "_GaussianProcess | None"
    shrinkage: float  # factor of the residual, 0 to 1
    residual_mean: float  # mean of the residual over the scores
    mean: float
    deviation: float

    @classmethod
    def of(
        cls, places: np.ndarray, scores: np.ndarray, config: SurrogateConfig = FITTED
    ) -> "Surrogate | None":
        """Fitted to scores (N,) at positions (N, groups) from `places_of`.

        None if the scores are too few, all equal, or not finite.
        """
        deviation = float(scores.std()) if len(scores) >= FEWEST else 0.0
        if deviation == 0 or not np.isfinite(deviation):
            return None
        mean = float(scores.mean())
        values = (scores - mean) / deviation
        features = features_of(places)
        trend = Ridge.of(features, values, free=1)
        linear = trend.at(features)
        residual = _GaussianProcess.of(places, values - linear, values)
        rest = residual.at(places) if residual else np.zeros(1)
        ratio = config.residual * float(linear.var()) / max(float(rest.var()), 1e-12)
        shrinkage = max(config.least_factor, min(1.0, ratio))
        return cls(trend, residual, shrinkage, float(rest.mean()), mean, deviation)

    def at(self, places: np.ndarray, shrunk: bool = True) -> np.ndarray:
        """Denoised scores (M,) at positions (M, groups); without `shrunk`, those in the supernet."""
        linear = self.trend.at(features_of(places))
        rest = self.residual.at(places) - self.residual_mean if self.residual else 0.0
        factor = self.shrinkage if shrunk else 1.0
        return np.asarray((linear + factor * rest) * self.deviation + self.mean)


def with_losses(accuracies: np.ndarray, losses: np.ndarray, by_loss: float = FITTED.by_loss) -> np.ndarray:
    """Accuracies (N,), averaged with those of the same rank as their losses (N,), with weight `by_loss`.

    A loss is more informative than an accuracy, especially on few images. Losses that are all equal, or not
    finite, are ignored.
    """
    if not np.isfinite(losses).all() or np.ptp(losses) == 0:
        return accuracies
    of_rank = np.empty_like(accuracies)
    of_rank[np.argsort(losses, kind="stable")] = np.sort(accuracies)[::-1]
    return np.asarray((1 - by_loss) * accuracies + by_loss * of_rank)


def denoised_scores(places: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The scores (N,), denoised by a surrogate; unchanged if none can be fitted."""
    surrogate = Surrogate.of(places, scores)
    return scores if surrogate is None else surrogate.at(places)


def features_of(places: np.ndarray) -> np.ndarray:
    """Features (N, 1 + groups) of a trend; the first, a common slope of all groups, is not penalised."""
    return np.column_stack([places.sum(1), places])


@dataclass(frozen=True)
class Ridge:
    """A ridge regression: `mean` (F,) of the features, `level` of the values, `slopes` (F,)."""

    mean: np.ndarray
    level: float
    slopes: np.ndarray

    @classmethod
    def of(cls, known: np.ndarray, values: np.ndarray, free: int) -> "Ridge":
        """Fitted to values (N,) at features (N, F), centred, not scaled; the first `free` are not penalised.

        The penalty has the smallest leave-one-out error (Hastie, Tibshirani and Friedman, "The elements of
        statistical learning", 2009, sections 3.4.1 and 7.10).
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
    """The mean of a Gaussian process: smooth functions of single positions and of pairs.

    `seen` (N, groups) are the positions of the data, `weights` (N,) their weights.
    """

    seen: np.ndarray
    weights: np.ndarray
    level: float
    length: float
    pairs: float  # the weight of pairs in the kernel; the rest is that of single groups
    deviation: float

    @classmethod
    def of(cls, places: np.ndarray, values: np.ndarray, scores: np.ndarray) -> "_GaussianProcess | None":
        """Fitted to the values (N,) with the best scores (N,); None if all values are equal.

        Hyperparameters maximise the marginal likelihood (Rasmussen and Williams, "Gaussian processes for
        machine learning", 2006, section 5.4.1).
        """
        best = np.argsort(-scores, kind="stable")[:MOST]
        seen, deviation = places[best], float(values[best].std())
        if deviation == 0:
            return None
        values = values[best] / deviation
        some = slice(None, None, -(-len(best) // SOME))
        length, pairs, noise = _most_likely(seen[some], values[some])
        kernel = _kernel(seen, seen, length, pairs) + noise * np.eye(len(seen))
        of_values, of_ones = np.linalg.solve(kernel, np.stack([values, np.ones(len(seen))], axis=1)).T
        level = float(of_values.sum() / of_ones.sum())
        return cls(seen, of_values - level * of_ones, level, length, pairs, deviation)

    def at(self, places: np.ndarray) -> np.ndarray:
        """The mean (M,) at positions (M, groups)."""
        kernel = _kernel(places, self.seen, self.length, self.pairs)
        return np.asarray((kernel @ self.weights + self.level) * self.deviation)


def _most_likely(seen: np.ndarray, values: np.ndarray) -> tuple[float, float, float]:
    """The length scale, weight of pairs and noise with the highest marginal likelihood of the values."""
    best, chosen = -np.inf, (LENGTHS[0], PAIRS[0], NOISES[-1])
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
                if likelihood > best:
                    best, chosen = likelihood, (length, pairs, noise)
    return chosen


def _kernel(one: np.ndarray, other: np.ndarray, length: float, pairs: float) -> np.ndarray:
    """The kernel (N, M) of positions: the mean over single groups and, with weight `pairs`, over pairs."""
    total, squares = np.zeros((len(one), len(other))), np.zeros((len(one), len(other)))
    for group in range(one.shape[1]):
        similarity = np.exp(-((one[:, group, None] - other[:, group]) ** 2) / (2 * length * length))
        total += similarity
        squares += similarity * similarity
    groups = one.shape[1]
    of_pairs = (total * total - squares) / max(1, groups * (groups - 1))
    return np.asarray((1 - pairs) * total / groups + pairs * of_pairs)
