"""Figures of supernets on Channel-Bench-Macro, from the scores in their reports, also of several together.

    python benchmarks/rankings.py --table Results_MobileNet.json benchmarks/results/channel_bench_macro/*.json

Calculates every figure again from the scores that each report holds, so that a change of the statistics
needs no training. Prints a row a report, all on the settings that the reports share: Kendall's tau
of accuracy, of loss, of what is expected by accuracy alone and by both (what a search ranks by) with its 95 %
interval, and the regret of the last. What is expected goes for three quarters by calibrated losses; older
reports have none, and theirs goes half by losses as they are. With --together, one more row for the means of
their accuracies and losses, as in a run of several supernets. With --against REPORT, by how much the tau of
what is expected is above that report's, settings resampled for both alike.
"""

import argparse
from pathlib import Path

import numpy as np

from bcnet.bench.channel_bench_macro import BenchTable, difference, ranking
from bcnet.runs import read_json
from bcnet.width_search.surrogate import FITTED, denoised_scores, with_losses


class Rows:
    """Rows of a markdown table, all on the same settings."""

    def __init__(self, table: BenchTable, keys: list[str]) -> None:
        everything = {table.key(i): i for i in range(len(table))}
        self.table, self.index = table, [everything[key] for key in keys]
        self.places = table.places(self.index)

    def expected(self, values: np.ndarray) -> np.ndarray:
        """What is expected by both, of accuracies, losses and, in newer reports, calibrated ones."""
        by_loss = FITTED.by_loss if len(values) == 3 else FITTED.by_other
        return denoised_scores(self.places, with_losses(values[0], values[-1], by_loss))

    def row(self, name: str, values: np.ndarray, against: np.ndarray | None) -> str:
        accuracy, loss = values[:2]
        truth, expected = self.table.accuracy[self.index], self.expected(values)
        own = ranking(expected, truth)
        low, high = own["interval"]
        cells = [
            name,
            f"{ranking(accuracy, truth)['kendall']:.3f}",
            f"{ranking(-loss, truth)['kendall']:.3f}",
            f"{ranking(denoised_scores(self.places, accuracy), truth)['kendall']:.3f}",
            f"{own['kendall']:.3f} ({low:.3f} to {high:.3f})",
            " / ".join(f"{lost:.2f}" for lost in self.table.regret(expected, self.index)),
        ]
        if against is not None:
            found = difference(expected, against, truth)
            low, high = found["interval"]
            cells.append(f"{found['kendall']:+.3f} ({low:+.3f} to {high:+.3f})")
        return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=Path, required=True, help="the authors' JSON file")
    parser.add_argument("--together", action="store_true", help="one more row, for the mean of all")
    parser.add_argument("--against", type=Path, help="a report to compare all others with")
    parser.add_argument("reports", type=Path, nargs="+")
    options = parser.parse_args()
    paths = list(dict.fromkeys([*options.reports, *([options.against] if options.against else [])]))
    found = {path: read_json(path, "another report") for path in paths}
    spaces = {report["space"] for report in found.values()}
    if len(spaces) > 1:
        raise SystemExit(f"the reports are of several spaces: {', '.join(sorted(spaces))}")
    shared = sorted(set.intersection(*(set(report["scores"]) for report in found.values())))
    rows = Rows(BenchTable.load(options.table, spaces.pop()), shared)

    def means(path: Path) -> np.ndarray:
        """Accuracy, loss and, in newer reports, calibrated loss (2 or 3, N), means of the sides."""
        scores = [list(found[path]["scores"][key].values()) for key in shared]
        result: np.ndarray = np.array(scores).mean(1).T
        return result

    against = rows.expected(means(options.against)) if options.against else None
    print(f"{len(shared)} settings\n")
    print(
        "| report | accuracy | loss | accuracy, expected | expected | regret of that |"
        + " |" * (against is not None)
    )
    print("|---|---|---|---|---|---|" + "---|" * (against is not None))
    every = [means(path) for path in options.reports]
    for path, values in zip(options.reports, every, strict=True):
        print(rows.row(path.stem, values, against))
    if options.together:
        least = min(map(len, every))
        print(rows.row(f"these {len(every)} together", np.mean([own[:least] for own in every], 0), against))


if __name__ == "__main__":
    main()
