"""What could a few single trainings add to how supernets rank networks? A simulation on known accuracies.

    python benchmarks/corrected_rankings.py --table Results_MobileNet.json REPORT...

In: the table of Channel-Bench-Macro, and reports of supernets that scored its networks. Accuracies of the
table, with noise added, take the place of `short_trainings.py`'s: a ridge regression of them on the
supernet's denoised score and the widths predicts the scored networks, and is averaged with that score. Prints
mean taus over draws of noise and supernets, without and with it. `short_trainings.py` and
`stretched_scores.py` use its functions.
"""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from bcnet.bench.channel_bench_macro import MAXIMA, QUARTERS, BenchTable, difference, ranking
from bcnet.runs import read_json
from bcnet.space.width_space import Widths
from bcnet.width_search.surrogate import FITTED, Ridge, Surrogate, features_of, places_of, with_losses

NETWORKS = 200  # of the table: those that all reports score
PASSES = 24  # of a supernet
DRAWS = 60  # of recorded supernets, at most
REPEATS = 20  # of a simulation


@dataclass(frozen=True)
class Known:
    """Networks of known accuracy (N,), and their scores (N, columns) in recorded supernets."""

    widths: list[Widths]
    accuracy: np.ndarray
    supernets: list[np.ndarray]
    table: BenchTable | None = None
    index: Sequence[int] = ()

    @classmethod
    def of_table(cls, table: BenchTable, maxima: Sequence[int], reports: Sequence[Path]) -> "Known":
        """Networks of the table; of a run of several supernets, each counts."""
        index, each = table.sample(NETWORKS, 0), list[np.ndarray]()
        for path in reports:
            report = read_json(path, "another report")
            sides = np.array([list(report["scores"][table.key(i)].values()) for i in index])
            each += [own.mean(1) for own in np.split(sides, report.get("supernets", 1), axis=1)]
        widths = [Widths(table.widths(i, maxima)) for i in index]
        return cls(widths, table.accuracy[index], each, table, index)

    @classmethod
    def of_record(cls, truth: Path, records: Sequence[Path]) -> "Known":
        """The networks that `rank_own.py` trained from scratch, and accuracy and loss in its supernets."""
        scratch, each = read_json(truth, "another record")["scratch"], list[np.ndarray]()
        for path in records:
            supernets = read_json(path, "another record")["supernets"].values()
            each += [np.array([own[key][:2] for key in scratch]) for own in supernets]
        widths = [Widths(map(int, key.split("-"))) for key in scratch]
        return cls(widths, np.array([own[0] for own in scratch.values()]), each)


def extremes(choices: Sequence[Sequence[int]], count: int) -> list[Widths]:
    """Up to `count` networks of the narrowest and widest choices, each followed by its complement.

    The choices of any two groups are hardly correlated. What would come twice is left out.
    Slopes have the least variance at two levels (Box, Hunter and Hunter, "Statistics for experimenters",
    2005, chapter 6, fold-over designs).
    """
    rng, least, best = np.random.default_rng(0), np.inf, np.zeros((0, 0))
    for _ in range(5000):
        signs = rng.choice((-1, 1), size=(count // 2, len(choices)))
        products = np.abs(signs.T @ signs - count // 2 * np.eye(len(choices)))
        if products.max() + products.mean() < least:
            least, best = float(products.max() + products.mean()), signs
    folded = np.stack([best, -best], 1).reshape(-1, len(choices))
    ends = -(folded > 0).astype(int)  # the last choice, or the first
    found = (Widths(own[end] for own, end in zip(choices, row, strict=True)) for row in ends)
    return list(dict.fromkeys(found))


def scored(values: np.ndarray) -> np.ndarray:
    """Scores (N,) as a search takes them, of accuracy, loss and, where it was recorded, calibrated loss."""
    by_loss = FITTED.by_loss if values.shape[1] == 3 else FITTED.by_other
    return with_losses(values[:, 0], values[:, -1], by_loss)


@dataclass(frozen=True)
class Correction:
    """What the scores (M,) of trainings at `places` (M, groups) say of networks at `asked` (N, groups)."""

    asked: np.ndarray
    places: np.ndarray
    scores: np.ndarray

    def denoised(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Denoised scores (N,) and (M,), at both places, of a supernet's values (N, columns)."""
        surrogate = Surrogate.of(self.asked, scored(values))
        assert surrogate is not None
        return surrogate.at(self.asked), surrogate.at(self.places)

    def predicted(
        self, before: np.ndarray, own: np.ndarray, some: Sequence[int] | slice = slice(None)
    ) -> np.ndarray:
        """(3, N): denoised scores, the regression on them and the widths, and the mean of both.

        The regression is of `some` of the trainings; the mean is of standardised scores.
        """
        scale = max(float(before.std()), 1e-12)
        known = np.column_stack([own / scale, self.places])[some]
        asked = np.column_stack([before / scale, self.asked])
        found = Ridge.of(known, self.scores[some], free=1).at(asked)
        return np.stack([before, found, before / scale + found / max(float(found.std()), 1e-12)])

    def alone(self) -> np.ndarray:
        """Predictions (N,) by a trend of the trainings alone."""
        return Ridge.of(features_of(self.places), self.scores, free=1).at(features_of(self.asked))


def figures(known: Known, values: np.ndarray, correction: Correction) -> dict[str, Any]:
    """Taus without and with the trainings: of one supernet, and means over draws of others beside it."""
    rng, trainings = np.random.default_rng(0), len(correction.scores)
    before, own_scores = correction.denoised(values)
    _, regression, both = correction.predicted(before, own_scores)
    resampled = (rng.integers(trainings, size=trainings) for _ in range(200))
    taus = [tau(correction.predicted(before, own_scores, some)[-1], known) for some in resampled]
    columns = {
        "supernet": before,
        "trainings alone": correction.alone(),
        "regression": regression,
        "both": both,
    }
    found: dict[str, Any] = {name: ranking(own, known.accuracy) for name, own in columns.items()}
    if known.table is not None:
        for name, own in columns.items():
            found[name]["regret"] = [round(lost, 4) for lost in known.table.regret(own, known.index)]
    found["difference"] = difference(both, before, known.accuracy)
    found["both, trainings resampled"] = [round(float(own), 4) for own in np.quantile(taus, (0.025, 0.975))]
    found["together"] = []
    for count in range(1, min(5, len(known.supernets) + 1)):
        draws = list(itertools.combinations(range(len(known.supernets)), count))
        some = [draws[i] for i in rng.permutation(len(draws))[:DRAWS]]
        means = (np.mean([values, *(known.supernets[i] for i in draw)], 0) for draw in some)
        each = np.array(
            [[tau(own, known) for own in correction.predicted(*correction.denoised(mean))] for mean in means]
        )
        alone, _, corrected = (round(float(own), 4) for own in each.mean(0))
        found["together"].append(
            {
                "supernets": 1 + count,
                "passes": PASSES * (1 + count),
                "draws": len(some),
                "kendall": alone,
                "both": corrected,
                "share of draws in which both is higher": round(float((each[:, 2] > each[:, 0]).mean()), 2),
            }
        )
    return found


def tau(scores: np.ndarray, known: Known) -> float:
    """Kendall's tau between scores and the known accuracies."""
    return float(stats.kendalltau(scores, known.accuracy).statistic)


def simulated(known: Known, table: BenchTable, design: str, count: int, noise: float) -> np.ndarray:
    """Mean taus of the trainings alone, and of one and of three supernets, without and with them."""
    rng, maxima = np.random.default_rng(0), MAXIMA[table.space]
    choices = [[maximum * digit // QUARTERS for digit in range(1, QUARTERS + 1)] for maximum in maxima]
    places, taus = places_of([table.widths(i, maxima) for i in known.index], choices), []
    rows = {Widths(table.widths(i, maxima)): i for i in range(len(table))}
    folded = [rows[widths] for widths in extremes(choices, count)]
    for _ in range(REPEATS):
        index = [int(i) for i in rng.choice(len(table), count, replace=False)]
        if design == "extremes":
            index = folded
        own = places_of([table.widths(i, maxima) for i in index], choices)
        correction = Correction(places, own, table.accuracy[index] + rng.normal(0, noise, len(index)))
        some = rng.permutation(len(known.supernets))
        every = [correction.alone()]
        for number in (1, 3):
            mean = np.mean([known.supernets[i] for i in some[:number]], 0)
            before, _, both = correction.predicted(*correction.denoised(mean))
            every += [before, both]
        taus.append([tau(values, known) for values in every])
    return np.asarray(np.mean(taus, 0))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=Path, required=True, help="the authors' JSON file")
    parser.add_argument("--space", choices=tuple(MAXIMA), default="mobilenet")
    parser.add_argument("reports", type=Path, nargs="+")
    options = parser.parse_args()
    table = BenchTable.load(options.table, options.space)
    known = Known.of_table(table, MAXIMA[options.space], options.reports)
    print("| networks | trainings | noise, points | alone | one supernet | both | three | both |")
    print("|---|---|---|---|---|---|---|---|")
    for design, count, noise in itertools.product(("random", "extremes"), (24, 48), (0.2, 0.5, 1.0)):
        taus = simulated(known, table, design, count, noise)
        print(f"| {design} | {count} | {noise} | {' | '.join(f'{own:.3f}' for own in taus)} |")


if __name__ == "__main__":
    main()
