"""Channel-Bench-Macro (BCNetV2, arXiv 2203.13714): 16,384 width settings, each trained three times.

In: the authors' table, a JSON file. Out: settings with their accuracies, and how well any scores rank them
and choose among them. The accuracies are noisy, so regrets are taken against a denoised truth.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from bcnet.errors import ArtifactError
from bcnet.models.channel_bench_macro import MOBILENET_WIDTHS, RESNET_WIDTHS
from bcnet.runs import read_json
from bcnet.width_search.surrogate import places_of

MAXIMA = {"mobilenet": MOBILENET_WIDTHS, "resnet": RESNET_WIDTHS}
QUARTERS = 4  # a setting's digits are its widths in quarters of the maxima
SETTINGS = QUARTERS ** len(MOBILENET_WIDTHS)
BUDGETS = (0.10, 0.25, 0.50, 0.75)  # quantiles of the settings' multiply-accumulates
RESAMPLES = 1000
# Kendall's tau of the supernet scores that the benchmark's authors published with the table.
PUBLISHED = {
    "mobilenet": {"unilateral (published)": 0.661, "bcnet (published, best of three)": 0.539},
    "resnet": {"unilateral (published)": 0.656, "bcnet (published, best of three)": 0.552},
}


@dataclass(frozen=True)
class BenchTable:
    """The table of one space, settings in ascending order of their digits.

    `settings` (N, 7) are the digits 1 to 4; `accuracy` (N,) is the mean test accuracy in percent of the runs,
    `spread` (N,) their standard deviation; `macs` and `params` (N,) are the authors' counts.
    """

    space: str
    settings: np.ndarray
    accuracy: np.ndarray
    spread: np.ndarray
    macs: np.ndarray
    params: np.ndarray

    @classmethod
    def load(cls, path: Path, space: str) -> "BenchTable":
        """The table in the authors' JSON file. Raises ArtifactError where it is something else."""
        found = read_json(path, "another --table")
        try:
            rows = [
                [*map(int, key), row["mean"], row["std"], row["flops"], row["params"]]
                for key, row in sorted(found.items())
            ]
            values = np.array(rows, dtype=np.float64)
            settings = values[:, :7].astype(np.int64)
            whole = np.array(list(itertools.product(range(1, QUARTERS + 1), repeat=7)))
            if not np.array_equal(settings, whole) or not np.isfinite(values).all():
                raise ValueError(f"{len(rows)} settings")
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as cause:
            raise ArtifactError(
                f"{path} is not a table of Channel-Bench-Macro ({cause}): expected {SETTINGS} settings as "
                '{"1234123": {"mean": ..., "std": ..., "flops": ..., "params": ...}}'
            ) from None
        return cls(space, settings, *values[:, 7:].T)

    def __len__(self) -> int:
        return len(self.settings)

    def key(self, index: int) -> str:
        """A setting's digits as the table writes them."""
        return "".join(map(str, self.settings[index]))

    def widths(self, index: int, maxima: Sequence[int]) -> tuple[int, ...]:
        """A setting's channel counts c0 to c6 in a network of these maxima."""
        return tuple(
            int(m * digit) // QUARTERS for m, digit in zip(maxima, self.settings[index], strict=True)
        )

    @cached_property
    def denoised(self) -> np.ndarray:
        """Accuracies (N,) in percent by least squares on indicators of each width and each pair of widths.

        The mean of three runs has an error of 0.1 points, so the best of thousands of means is too high. The
        residual of these 211 terms equals the noise of the means.
        """
        codes = self.settings - 1
        columns = [np.ones(len(self))]
        single = [[codes[:, i] == k for k in range(1, QUARTERS)] for i in range(codes.shape[1])]
        columns += [column for own in single for column in own]
        for first, second in itertools.combinations(single, 2):
            columns += [a & b for a, b in itertools.product(first, second)]
        design = np.stack(columns, 1).astype(np.float64)
        solution, *_ = np.linalg.lstsq(design, self.accuracy, rcond=None)
        fitted: np.ndarray = design @ solution
        return fitted

    @cached_property
    def log_widths(self) -> np.ndarray:
        """The sum of the widths' logarithms (N,): a score without any training."""
        total: np.ndarray = np.log(self.settings).sum(1)
        return total

    def places(self, index: Sequence[int]) -> np.ndarray:
        """The positions (N, 7) of settings' widths, as `denoised_scores` takes them."""
        quarters = range(1, QUARTERS + 1)
        return places_of(self.settings[index], [quarters] * self.settings.shape[1])

    def budgets(self) -> np.ndarray:
        """Budgets in multiply-accumulates: the 10, 25, 50 and 75 % quantiles of all settings."""
        quantiles: np.ndarray = np.quantile(self.macs, BUDGETS)
        return quantiles

    def sample(self, count: int, seed: int, without: Sequence[int] = ()) -> list[int]:
        """Indices of `count` settings, one drawn from each of as many equal strata of their sizes (macs).

        All settings where there are fewer.
        """
        order = np.argsort(self.macs, kind="stable")
        order = order[~np.isin(order, without)]
        rng = np.random.default_rng(seed)
        edges = np.linspace(0, len(order), min(count, len(order)) + 1).round().astype(int)
        return sorted(int(order[rng.integers(low, high)]) for low, high in itertools.pairwise(edges))

    def regret(self, scores: np.ndarray, index: Sequence[int]) -> list[float]:
        """Points of denoised accuracy lost at each of the budgets by taking the best score inside it.

        Against the best of the same settings `index`, whose scores are given.
        """
        truth, macs = self.denoised[list(index)], self.macs[list(index)]
        lost = []
        for budget in self.budgets():
            inside = macs <= budget
            picked = int(np.argmax(np.where(inside, scores, -np.inf)))
            lost.append(float(truth[inside].max() - truth[picked]))
        return lost


def ranking(scores: np.ndarray, truth: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Kendall's tau with its 95 % interval over resampled settings (bootstrap), Spearman and Pearson."""
    return {
        "kendall": _tau(scores, truth),
        "interval": _interval([_tau(scores[i], truth[i]) for i in _resamples(len(truth), seed)]),
        "spearman": _correlation(stats.spearmanr, scores, truth),
        "pearson": _correlation(stats.pearsonr, scores, truth),
    }


def difference(first: np.ndarray, second: np.ndarray, truth: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """How much higher the first scores' tau is, with a 95 % interval, over the same resampled settings."""
    found = [_tau(first[i], truth[i]) - _tau(second[i], truth[i]) for i in _resamples(len(truth), seed)]
    return {"kendall": round(_tau(first, truth) - _tau(second, truth), 4), "interval": _interval(found)}


def _resamples(count: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(count, size=count) for _ in range(RESAMPLES if count <= 2000 else RESAMPLES // 10)]


def _interval(found: Sequence[float]) -> list[float]:
    return [round(float(bound), 4) for bound in np.quantile(found, (0.025, 0.975))]


def _tau(scores: np.ndarray, truth: np.ndarray) -> float:
    return _correlation(stats.kendalltau, scores, truth)


def _correlation(of: Callable[..., Any], scores: np.ndarray, truth: np.ndarray) -> float:
    """A rounded correlation; 0 where all scores are equal and it is undefined."""
    if np.ptp(scores) == 0 or np.ptp(truth) == 0:
        return 0.0
    return round(float(of(scores, truth).statistic), 4)


def compared(table: BenchTable, index: Sequence[int], scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Ranking and regret of each of the scores, and of those without training, on the settings `index`."""
    untrained = {
        "multiply-accumulates": table.macs[index],
        "parameters": table.params[index],
        "sum of the widths' logarithms": table.log_widths[index],
    }
    return {
        name: {
            **ranking(values, table.accuracy[index]),
            "regret": [round(lost, 4) for lost in table.regret(values, index)],
        }
        for name, values in {**scores, **untrained}.items()
    }
