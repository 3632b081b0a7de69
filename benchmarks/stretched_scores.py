"""Does a trend rank better that is fitted to stretched scores? On the scores of recorded supernets.

    python benchmarks/stretched_scores.py --table Results_MobileNet.json --record rank_own.json... REPORT...

In: the table of Channel-Bench-Macro and reports of supernets that scored its networks; records of
rank_own.py, the first with accuracies from scratch. Scores z, standardised, are denoised as exp(k z):
differences between good networks then count for more, those between bad ones for less; k = 0 is what a search
does. Writes Kendall's tau for each k to stretched_scores.json: means over single supernets and over draws of
three, the difference to k = 0 with its standard error over single supernets, each run of several supernets
with its regret, and the accuracies from scratch, denoised alike.
"""

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from corrected_rankings import DRAWS, Known, scored, tau
from recorded import how_made

from bcnet.bench.channel_bench_macro import MAXIMA, BenchTable, difference, ranking
from bcnet.runs import json_bytes, read_json, write_file
from bcnet.width_search.surrogate import denoised_scores, places_of

RESULT = Path("stretched_scores.json")
STRETCHES = (0.0, 0.25, 0.5, 0.75, 1.0)


def stretched(places: np.ndarray, scores: np.ndarray, k: float) -> np.ndarray:
    """Denoised scores (N,), up to a monotonic function, by which no ranking changes."""
    z = (scores - scores.mean()) / scores.std()
    return denoised_scores(places, np.exp(k * z) if k else z)


def compared(known: Known, places: np.ndarray) -> list[dict[str, Any]]:
    """A row for each k: mean taus of single supernets and of three together."""
    threes = list(itertools.combinations(range(len(known.supernets)), 3))
    some = [threes[i] for i in np.random.default_rng(0).permutation(len(threes))[:DRAWS]]
    drawn = {"one": [(i,) for i in range(len(known.supernets))], "three": some}
    taus = {name: np.array([taus_of(known, places, draw) for draw in draws]) for name, draws in drawn.items()}
    gains = taus["one"] - taus["one"][:, :1]
    errors = gains.std(0, ddof=1) / np.sqrt(len(gains))
    return [
        {
            "k": k,
            "one": round(float(taus["one"][:, place].mean()), 4),
            "three": round(float(taus["three"][:, place].mean()), 4),
            "gain of one": round(float(gains[:, place].mean()), 4),
            "standard error": round(float(errors[place]), 4),
            "better": int((gains[:, place] > 0).sum()),
            "of": len(gains),
        }
        for place, k in enumerate(STRETCHES)
    ]


def taus_of(known: Known, places: np.ndarray, draw: Sequence[int]) -> list[float]:
    """Kendall's tau for each k of the mean of some supernets."""
    scores = scored(np.mean([known.supernets[i] for i in draw], 0))
    return [tau(stretched(places, scores, k), known) for k in STRETCHES]


def together(known: Known, places: np.ndarray, values: np.ndarray) -> list[dict[str, Any]]:
    """A row for each k, with intervals over resampled networks, of several supernets together."""
    scores = scored(values)
    plain, found = stretched(places, scores, 0.0), []
    for k in STRETCHES:
        own = stretched(places, scores, k)
        row = {"k": k, **ranking(own, known.accuracy), "difference": difference(own, plain, known.accuracy)}
        if known.table is not None:
            row["regret"] = [round(lost, 4) for lost in known.table.regret(own, known.index)]
        found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=Path, required=True, help="the authors' JSON file")
    parser.add_argument("--space", choices=tuple(MAXIMA), default="mobilenet")
    parser.add_argument("--record", type=Path, nargs="+", required=True, help="records of rank_own.py")
    parser.add_argument("reports", type=Path, nargs="+")
    options = parser.parse_args()
    table = BenchTable.load(options.table, options.space)
    found: dict[str, Any] = {**how_made(), "together": {}}
    calibrated: dict[bool, list[Path]] = {True: [], False: []}
    for path in options.reports:
        first = next(iter(read_json(path, "another report")["scores"].values()))
        calibrated[len(next(iter(first.values()))) == 3].append(path)
    for kind, name in ((True, "by calibrated losses"), (False, "by losses")):
        if not calibrated[kind]:
            continue
        known = Known.of_table(table, MAXIMA[options.space], calibrated[kind])
        places = table.places(known.index)
        found[f"{options.space}, {name}"] = compared(known, places)
        for path in calibrated[kind]:
            own = Known.of_table(table, MAXIMA[options.space], [path]).supernets
            if len(own) > 1:
                found["together"][f"{path.parent.name}/{path.stem}"] = together(
                    known, places, np.mean(own, 0)
                )
    known = Known.of_record(options.record[0], options.record)
    places = places_of(known.widths, [sorted(set(own)) for own in zip(*known.widths, strict=True)])
    found["own networks, by losses"] = compared(known, places)
    found["together"]["own networks"] = together(known, places, np.mean(known.supernets, 0))
    found["own networks, their accuracies from scratch"] = [
        {"k": k, "kendall": round(tau(stretched(places, known.accuracy, k), known), 4)} for k in STRETCHES
    ]
    write_file(RESULT, json_bytes(found))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
