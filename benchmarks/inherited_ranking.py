"""Does a trained network, recalibrated, rank narrower ones as well as a supernet that is trained from it?

    python benchmarks/inherited_ranking.py --config bcnet.toml --records arena.json... [--supernets FOLDER]

In: the configuration of an arena, the records of its budgets (all of one original), and the folder with its
finished supernets (`runs/NAME/bench/arena/supernets`). The truth is the test accuracy of networks that
inherited channels of the original and were fine-tuned, the mean of those with equal widths. They are scored
in the trained network as a search does (channels by the criterion that is best for the budget's uniform
network), also by the best criterion for each, and in every supernet (mean of its sides). Prints Kendall's tau
of the calibrated validation loss over pairs of one budget, with 95 % intervals over resampled networks, and
the difference to the trained network. Writes inherited_ranking.json after each kind of score; stopped, the
same line goes on.
"""

import argparse
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from recorded import how_made

from bcnet.bench.arena_rows import ORIGINAL, outside
from bcnet.bench.arena_search import supernet_config
from bcnet.bench.arena_starts import percent
from bcnet.bench.scored_settings import Settings
from bcnet.config import load_config
from bcnet.pipeline.finished import trained_supernets
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.original import given_network
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.search_inputs import scoring
from bcnet.pipeline.trained_scores import TrainedScores
from bcnet.runs import Run, digest, json_bytes, read_json, write_file
from bcnet.space.extract import tensors_of
from bcnet.space.importance import CRITERIA
from bcnet.space.width_space import Widths
from bcnet.width_search.inherit import ITERATIVE
from bcnet.width_search.scorer import loss_of

RESULT, SCORES = Path("inherited_ranking.json"), Path("inherited_scores.jsonl")
RESAMPLES = 2000
TRAINED, BEST, MACS = "trained network", "trained network, best criterion for each", "multiply-accumulates"
Losses = dict[str, float]  # by the widths of a network, such as "16-16-32"


@dataclass(frozen=True)
class Networks:
    """Distinct networks of an arena: widths, budget (N,), accuracy after fine-tuning (N,), MACs (N,)."""

    widths: list[Widths]
    budgets: np.ndarray
    accuracy: np.ndarray
    macs: np.ndarray

    @classmethod
    def of(cls, cells: Sequence[dict[str, Any]], libraries: bool) -> "Networks":
        """The networks that inherited the original's channels; also by pruning `libraries`, if wanted."""
        found: dict[tuple[float, Widths], dict[str, dict[str, Any]]] = {}
        for cell in cells:
            own = cell["source"] in (*CRITERIA, ITERATIVE)
            if cell["widths"] and cell["distilled"] and (own or (libraries and outside(cell["row"]))):
                # Rows may share one network, which counts once.
                found.setdefault((cell["budget"], Widths(cell["widths"])), {})[cell["digest"]] = cell
        return cls(
            [widths for _, widths in found],
            np.array([budget for budget, _ in found]),
            np.array([np.mean([own["accuracy"] for own in each.values()]) for each in found.values()]),
            np.array([next(iter(each.values()))["macs"] for each in found.values()]),
        )


def cells_of(records: Sequence[Path]) -> list[dict[str, Any]]:
    """The cells of all records. Exits where these are of several originals."""
    cells, originals = list[dict[str, Any]](), set[str]()
    for path in records:
        for cell in read_json(path, "another record")["cells"]:
            if cell["row"] == ORIGINAL:
                originals.add(cell["correct"])
            else:
                cells.append(cell)
    if len(originals) != 1:
        raise SystemExit("the records are of several originals: name those of one")
    return cells


def of_trained(
    problem: Problem, networks: Networks, uniform: dict[float, Widths]
) -> tuple[dict[str, Losses], dict[str, str]]:
    """Losses in the trained network, by the budget's criterion and the best for each; these criteria."""
    network = given_network(problem)
    if network is None:
        raise SystemExit("the configuration names no trained weights (model.weights)")
    scores = TrainedScores(problem, tensors_of(network), SCORES, problem.inputs())
    images, by_budget, best, chosen = len(problem.data.val), Losses(), Losses(), dict[str, str]()
    for budget, typical in uniform.items():
        scores.choose_criterion(typical)
        chosen[percent(budget)] = scores.criterion
        for widths in (
            own for own, of in zip(networks.widths, networks.budgets, strict=True) if of == budget
        ):
            keys = [(criterion, images, widths) for criterion in CRITERIA]
            losses = dict(zip(CRITERIA, map(loss_of, scores.kept(keys, scores.computed)), strict=True))
            by_budget[str(widths)], best[str(widths)] = losses[scores.criterion], min(losses.values())
    return {TRAINED: by_budget, BEST: best}, chosen


def of_supernet(problem: Problem, folder: Path, budget: float, networks: Networks) -> Losses:
    """Calibrated losses in a supernet of the arena, whose method is the folder's name: means of its sides."""
    config, _ = supernet_config(problem.config, folder.name, percent(budget))
    own = replace(open_problem(config, pixels=False), data=problem.data)
    settings = Settings(scoring(own, trained_supernets(Run(folder), own), shared=False))
    return {
        str(widths): round(float(np.mean([side[2] for side in settings.scores(widths).values()])), 5)
        for widths in dict.fromkeys(networks.widths)
    }


def tau(scores: np.ndarray, truth: np.ndarray, budgets: np.ndarray) -> float:
    """Kendall's tau-b over the pairs of networks of one budget; 0 where none can be ordered."""
    first, second = np.triu_indices(len(truth), 1)
    pairs = budgets[first] == budgets[second]
    own, wanted = (np.sign(of[first] - of[second])[pairs] for of in (scores, truth))
    count = np.sqrt(np.count_nonzero(own) * np.count_nonzero(wanted))
    return float(np.sum(own * wanted) / count) if count else 0.0


def ranked(networks: Networks, scores: dict[str, np.ndarray]) -> dict[str, Any]:
    """Each score's tau and its gain over the trained network's, with intervals over resampled networks."""
    truth, budgets, rng = networks.accuracy, networks.budgets, np.random.default_rng(0)
    places = [np.flatnonzero(budgets == budget) for budget in np.unique(budgets)]
    resampled = [np.concatenate([rng.choice(own, len(own)) for own in places]) for _ in range(RESAMPLES)]
    drawn = {
        name: np.array([tau(own[at], truth[at], budgets[at]) for at in resampled])
        for name, own in scores.items()
    }
    base = tau(scores[TRAINED], truth, budgets)
    return {
        name: {
            "kendall": round(own := tau(values, truth, budgets), 4),
            "interval": _interval(drawn[name]),
            "gain": round(own - base, 4),
            "gain interval": _interval(drawn[name] - drawn[TRAINED]),
        }
        for name, values in scores.items()
    }


def _interval(values: np.ndarray) -> list[float]:
    return [round(float(bound), 4) for bound in np.quantile(values, (0.025, 0.975))]


def figures(cells: Sequence[dict[str, Any]], losses: dict[str, Losses]) -> dict[str, Any]:
    """How each score ranks the networks of this package, and these with those of pruning libraries."""
    found = dict[str, Any]()
    for name, libraries in (("own", False), ("with libraries", True)):
        networks = Networks.of(cells, libraries)
        scores = {
            kind: np.array([-own[str(widths)] for widths in networks.widths]) for kind, own in losses.items()
        }
        found[name] = {
            "networks": {
                percent(own): int(n)
                for own, n in zip(*np.unique(networks.budgets, return_counts=True), strict=True)
            },
            "ranking": ranked(networks, {**scores, MACS: networks.macs}),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, help="bcnet.toml if not given")
    parser.add_argument("--records", type=Path, nargs="+", required=True, help="arena.json of each budget")
    parser.add_argument("--supernets", type=Path, help="a folder with a folder for each method")
    options = parser.parse_args()
    cells = cells_of(options.records)
    networks, problem = Networks.of(cells, libraries=True), open_problem(load_config(options.config))
    uniform = {cell["budget"]: Widths(cell["widths"]) for cell in cells if cell["row"] == "uniform"}
    missing = {percent(own) for own in networks.budgets} - {percent(own) for own in uniform}
    if missing:
        raise SystemExit(
            f"no row 'uniform' at {', '.join(sorted(missing))}: its network chooses the criterion"
        )
    asked = {"networks": digest([list(map(str, networks.widths)), problem.inputs()])}
    new: dict[str, Any] = {"asked": asked, "losses": {}, "load": {}}
    found = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else new
    if found["asked"] != asked:
        raise SystemExit(f"{RESULT} is of other networks or settings: work in another folder")
    found |= how_made() | {"machine": f"{platform.machine()}, {os.cpu_count()} cores"}

    def kept(losses: dict[str, Losses]) -> None:
        found["losses"] |= losses
        found["load"] |= {name: round(os.getloadavg()[0], 1) for name in losses}
        found["figures"] = figures(cells, found["losses"])
        write_file(RESULT, json_bytes(found))

    if TRAINED not in found["losses"]:
        losses, found["criteria"] = of_trained(problem, networks, uniform)
        kept(losses)
    for folder in sorted(options.supernets.iterdir()) if options.supernets else ():
        name = f"supernet, {folder.name}"
        if name not in found["losses"]:
            kept({name: of_supernet(problem, folder, float(networks.budgets[0]), networks)})
    write_file(RESULT, json_bytes(found))  # with the command that ran last
    print(json.dumps(found["figures"], indent=1))


if __name__ == "__main__":
    main()
