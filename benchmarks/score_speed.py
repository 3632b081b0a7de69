"""How many candidates a minute are scored, and whether the faster scores rank networks as well.

    bcnet train                                            # in an empty folder, or with a bcnet.toml
    taskset -c 0 python benchmarks/score_speed.py --folder runs/score_speed

Random widths of the trained supernet are scored in several ways, in turn, in one process on one thread; the
order turns with each network, and the first network is scored once before the clock runs. The straightforward
way is `score`: recalibrate, then evaluate, side by side, reading and normalising images each time. What
`Scorer` does otherwise is added one idea at a time. Seconds are the processor's, so that others on the
machine disturb them less. Two ideas that were tried and not kept are there, too: `OnePass`, `Rejecting`.

Which way ranks best is measured by a reference that costs too much for a search: statistics from many
training images, both sides on the test images, which none of the ways sees. Kendall's tau of each way with
it, and its difference from the straightforward way's, also by loss alone, have 95 % intervals: a bootstrap
over the networks, the same draws for all ways. The reference is kept in the folder.
"""

import argparse
import json
import math
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before PyTorch is loaded

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau
from train_step import _processor

from bcnet.config import load_config
from bcnet.data.kept_batches import KeptBatches
from bcnet.pipeline.finished import trained_supernets
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.problem import Problem
from bcnet.progress import progress_bar
from bcnet.runs import Run, digest, json_bytes, write_file
from bcnet.space.recalibration import tracking_norms
from bcnet.space.subnet import Subnet
from bcnet.space.supernet import NarrowNetwork, Supernet
from bcnet.space.width_space import Widths
from bcnet.training.recipe import Recipe
from bcnet.width_search.scorer import (
    Score,
    Scorer,
    Validation,
    _mean,
    evaluate,
    predictions_of,
    score,
    score_of,
)

GOAL = 3.0
DRAWS = 2000
Way = Callable[[Widths], Score]
STRAIGHT = "one by one"
ALL = "and images shared out between the sides"


def main() -> None:
    """Parse, score, print."""
    options = _options()
    torch.set_num_threads(1)
    config = load_config(options.config)
    problem = open_problem(config)
    supernet = trained_supernets(Run.named(options.run), problem)[0]
    networks = drawn(problem, options.networks)
    amp = Recipe.of(config, 1, 1.0).amp
    truth = reference(problem, supernet, networks, options, amp)
    compared = ways(problem, supernet, amp)
    if options.quick:
        compared = {name: compared[name] for name in (STRAIGHT, ALL)}
    found = timed(compared, networks)
    data = problem.data
    machine = f"{_processor()}, one thread, torch {torch.__version__}, Python {platform.python_version()}"
    print(
        f"{machine}\n{config.model.name} on {config.data.name}, {config.train.method}, "
        f"{config.train.epochs} epochs on {len(data.train)} images; {len(data.val)} validation images, "
        f"{config.search.recalibration_images} for statistics; {len(networks)} random widths\n"
        f"reference: {options.statistics or len(data.train)} images for statistics, "
        f"{options.test or len(data.test)} test images; accuracies "
        f"{min(s.accuracy for s in truth):.3f} to {max(s.accuracy for s in truth):.3f}\n"
    )
    rows = report(found, truth)
    print("| way | candidates a minute | times | tau with the reference | difference | if ranked by loss |")
    print("|---|---|---|---|---|---|")
    for name, row in rows.items():
        print(
            f"| {name} | {row['a_minute']:.0f} | {_interval(row['times'])} | {_interval(row['tau'])} "
            f"| {_interval(row['difference'])} | {_interval(row['by_loss'])} |"
        )
    for way in compared.values():
        if isinstance(way, Rejecting):
            print(f"\nrejected early: {len(way.rejected)} of {len(networks)}")
    print(f"\ntimes: medians and quartiles of single networks; goal: {GOAL:.0f} at an equal tau")
    if options.json:
        settings = {key: str(value) for key, value in vars(options).items() if key != "json"}
        write_file(options.json, json_bytes({"machine": machine, "settings": settings, "ways": rows}))


def ways(problem: Problem, supernet: Supernet, amp: bool) -> dict[str, Way]:
    """The straightforward way, and `Scorer` with one idea more each time."""
    images = problem.config.search.recalibration_images
    given = [supernet], problem.data, images, problem.task

    def straightforward(widths: Widths) -> Score:
        return score(supernet, widths, problem.data, images, problem.task)

    return {
        STRAIGHT: straightforward,
        "images kept in memory": Scorer(*given),
        "and bfloat16": Scorer(*given, amp=amp),
        ALL: Scorer(*given, amp=amp, shared=True),
        "not kept: and statistics of evaluated images": OnePass(Scorer(*given, amp=amp, shared=True), amp),
        "not kept: and early rejection": Rejecting(Scorer(*given, amp=amp, shared=True), amp),
    }


@dataclass
class OnePass:
    """Batch norm takes the statistics of the validation batch itself: no pass over training images.

    No label is used, but scores are then those of networks that see all images before they answer.
    """

    scorer: Scorer
    amp: bool

    def __call__(self, widths: Widths) -> Score:
        """The mean of both sides, each on its half."""
        norms = tracking_norms(self.scorer.model).values()
        found = []
        for side in self.scorer.sides:
            fresh = side.supernet.recalibrate(Subnet.at(self.scorer.space, widths, side.name), [])
            for norm in norms:
                norm.train()
            found.append(_score(_rounded(fresh, self.amp), side.val))
            for norm in norms:
                norm.eval()
        return _mean(found)


class Rejecting:
    """A quarter of the validation images first; the others only where the candidate may still matter.

    It does not where its accuracy lies below the eighth best so far (half a population: the next parents)
    by more than two standard errors of what a quarter tells of all. It then keeps the quarter's score.
    """

    def __init__(self, scorer: Scorer, amp: bool) -> None:
        self.scorer, self.amp = scorer, amp
        self.rejected: set[Widths] = set()
        self.seen: dict[Widths, Score] = {}
        self.parts = {}
        for side in scorer.sides:
            part, count = side.val._part, len(side.val._part)
            first, rest = torch.arange(count).tensor_split([count // 4])
            data = scorer.data
            self.parts[side.name] = side, [KeptBatches(data, part.take(index)) for index in (first, rest)]
        self.count = sum(len(side.val._part) for side in scorer.sides)

    def __call__(self, widths: Widths) -> Score:
        """The score of a quarter, or of all."""
        scorer = self.scorer
        runs, firsts = {}, []
        for name, (side, (first, _)) in self.parts.items():
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.amp):
                subnet = Subnet.at(scorer.space, widths, name)
                fresh = side.supernet.recalibrate(subnet, side.train)
            runs[name] = _rounded(fresh, self.amp)
            firsts.append(_score(runs[name], first))
        quarter = _mean(firsts)
        error = math.sqrt(quarter.accuracy * (1 - quarter.accuracy) / (self.count / 4) * 0.75)
        best = sorted(self.seen.values(), reverse=True)
        bar = best[7].accuracy if len(best) > 7 else 0.0
        if quarter.accuracy + 2 * error < bar:
            self.rejected.add(widths)
            self.seen[widths] = quarter
            return quarter
        rest = _mean([_score(runs[side], rest) for side, (_, (_, rest)) in self.parts.items()])
        whole = Score(
            (quarter.accuracy + 3 * rest.accuracy) / 4, (quarter.negative_loss + 3 * rest.negative_loss) / 4
        )
        self.seen[widths] = whole
        return whole


def _score(run: Callable[[Any], Any], images: KeptBatches) -> Score:
    return score_of(predictions_of(run, images, torch.device("cpu")))


def _rounded(network: NarrowNetwork, amp: bool) -> Callable[[Any], Any]:
    def run(inputs: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
            return network.run(inputs).float()

    return run


def drawn(problem: Problem, count: int) -> list[Widths]:
    """Distinct random widths."""
    rng, found = np.random.default_rng(7), dict[Widths, None]()
    for _ in range(100 * count):
        if len(found) < count:
            found[problem.space.random(rng)] = None
    return list(found)


def reference(
    problem: Problem,
    supernet: Supernet,
    networks: Sequence[Widths],
    options: argparse.Namespace,
    amp: bool,
) -> list[Score]:
    """Both sides' mean on test images, with statistics from many training images; kept in the folder.

    With `amp` it is computed in bfloat16: rounding moves a network's score on thousands of images far less
    than the choice of the images does.
    """
    data, path = problem.data, options.folder / "reference.json"
    count = min(options.test or len(data.test), len(data.test))
    # Evenly spaced: a folder's images lie class by class.
    test = data.test.take(torch.linspace(0, len(data.test) - 1, count).round().long())
    images = options.statistics or len(data.train)
    weights = str(sum(float(t.double().sum()) for t in supernet.state.values()))
    key = digest(["calibrated", problem.inputs(), weights, images, len(test), amp])
    known = json.loads(path.read_text()) if path.exists() else {}
    known = known if known.get("key") == key else {"key": key}
    options.folder.mkdir(parents=True, exist_ok=True)
    waiting = [widths for widths in networks if str(widths) not in known]
    by = Validation(data, images)
    with progress_bar("reference", len(waiting)) as advance:
        for widths in waiting:
            sides = []
            for side in problem.space.rule.sides:
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
                    fresh = by.recalibrated(supernet, Subnet.at(problem.space, widths, side))
                    sides.append(evaluate(fresh, data, test, problem.task))
            means = np.mean([[side.accuracy, side.negative_loss] for side in sides], axis=0)
            known[str(widths)] = means.tolist()
            write_file(path, json_bytes(known))
            advance("")
    return [Score(*known[str(widths)]) for widths in networks]


def timed(ways: Mapping[str, Way], networks: Sequence[Widths]) -> dict[str, dict[str, list[Any]]]:
    """Scores and seconds of every network in every way."""
    found: dict[str, dict[str, list[Any]]] = {name: {"scores": [], "seconds": []} for name in ways}
    for way in ways.values():
        way(networks[-1])
    with progress_bar("scoring", len(networks)) as advance:
        for number, widths in enumerate(networks):
            order = list(ways)
            turned = number % len(order)
            for name in order[turned:] + order[:turned]:
                start = time.process_time()
                found[name]["scores"].append(ways[name](widths))
                found[name]["seconds"].append(time.process_time() - start)
            advance("")
    return found


def report(found: Mapping[str, Mapping[str, list[Any]]], truth: Sequence[Score]) -> dict[str, dict[str, Any]]:
    """Speed and rank correlation of each way, with intervals (low, middle, high)."""
    ranks = {name: _ranks(entry["scores"]) for name, entry in found.items()}
    true, rng = _ranks(truth), np.random.default_rng(0)
    draws = [rng.integers(len(truth), size=len(truth)) for _ in range(DRAWS)]
    straight = np.array(found[STRAIGHT]["seconds"])
    resampled = {name: [_tau(own[draw], true[draw]) for draw in draws] for name, own in ranks.items()}
    rows = {}
    for name, entry in found.items():
        losses = np.array([score.negative_loss for score in entry["scores"]])
        by_loss = np.subtract([_tau(losses[draw], true[draw]) for draw in draws], resampled[STRAIGHT])
        tau, difference = _tau(ranks[name], true), np.subtract(resampled[name], resampled[STRAIGHT])
        low, middle, high = np.quantile(straight / np.array(entry["seconds"]), [0.25, 0.5, 0.75]).tolist()
        rows[name] = {
            "a_minute": 60 * len(truth) / sum(entry["seconds"]),
            "times": (low, middle, high),
            "tau": _around(tau, resampled[name]),
            "difference": _around(tau - _tau(ranks[STRAIGHT], true), difference),
            "by_loss": _around(_tau(losses, true) - _tau(ranks[STRAIGHT], true), by_loss),
            "seconds": entry["seconds"],
            "scores": [[s.accuracy, s.negative_loss] for s in entry["scores"]],
        }
    return rows


def _ranks(scores: Sequence[Score]) -> np.ndarray:
    order = {score: place for place, score in enumerate(sorted(set(scores)))}
    return np.array([order[score] for score in scores])


def _tau(a: np.ndarray, b: np.ndarray) -> float:
    return float(kendalltau(a, b).statistic)


def _around(middle: float, resampled: Any) -> tuple[float, float, float]:
    low, high = np.quantile(resampled, [0.025, 0.975]).tolist()
    return low, middle, high


def _interval(values: tuple[float, float, float]) -> str:
    low, middle, high = values
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the reference is kept")
    parser.add_argument("--config", type=Path, help="bcnet.toml of the supernet's run")
    parser.add_argument("--run", default="default", help="name of the supernet's run")
    parser.add_argument("--networks", type=int, default=60)
    parser.add_argument("--statistics", type=int, help="training images of the reference; all if not given")
    parser.add_argument("--test", type=int, help="test images of the reference; all if not given")
    parser.add_argument("--quick", action="store_true", help="only the straightforward way and all ideas")
    parser.add_argument("--json", type=Path, help="write everything there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
