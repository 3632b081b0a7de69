"""How good the search is where every network's accuracy is known: Channel-Bench-Macro, no training.

    python benchmarks/search_quality.py --table Results_MobileNet.json

The score is the table's mean of three trainings, which is noisy; regrets are taken against the denoised truth
(`bcnet/bench/channel_bench_macro.py`), in points. Cost is multiply-accumulates; budgets are their 10, 25, 50
and 75 % quantiles. First the search against random search and brute force, for both forms of the fitness and
as one front, then the prior initial population against a random one. Takes some ten minutes on one core.
Writes search_quality.jsonl and .md into --folder; stopped, the same line goes on. Delete the .jsonl to begin
again, after a change to the search.
"""

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bcnet.bench.channel_bench_macro import BUDGETS, MAXIMA, BenchTable
from bcnet.models.channel_bench_macro import mobilenet, resnet
from bcnet.pipeline.search_evolved import search
from bcnet.runs import write_file
from bcnet.space.discover import discover_space
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.width_search.budget import Budget
from bcnet.width_search.constraints import Cost, multiply_accumulates
from bcnet.width_search.evolution import SearchSettings
from bcnet.width_search.initial_population import Limit, potential_losses, prior
from bcnet.width_search.surrogate import denoised_scores

BAR = 0.05  # points of regret, at each budget
DEFAULT = {"population": 16, "generations": 4}  # bcnet's own: 80 candidates
LARGE = {"population": 20, "generations": 24}  # 500 candidates
FRONT = "**one front** for all four budgets"
EXPONENTS = (-0.007, -0.07)  # one that fits how little accuracy costs here, and MnasNet's
RECORDS = 3000  # training steps, of which the prior takes the second half
NOISES = (0.01, 0.05)  # standard deviation of a record's loss around minus the accuracy
STEPS = (1, 5, 10, 20)  # generations
MILLION = 1e6


@dataclass(frozen=True)
class Bench:
    """The table, and the benchmark's network as a space whose widths are the table's."""

    table: BenchTable
    space: WidthSpace
    macs: Cost

    @classmethod
    def load(cls, path: Path, name: str) -> "Bench":
        """Raises AssertionError where the space counts other multiply-accumulates than the table."""
        table = BenchTable.load(path, name)
        model = (mobilenet if name == "mobilenet" else resnet)()
        found = discover_space(model, torch.zeros(1, 3, 32, 32), method="unilateral")
        groups = tuple(
            replace(g, choices=tuple(g.channels * q // 4 for q in (1, 2, 3, 4))) for g in found.groups
        )
        assert tuple(group.channels for group in groups) == MAXIMA[name]
        space = replace(found, groups=groups)
        macs = multiply_accumulates(space)
        widths = np.array([table.widths(index, MAXIMA[name]) for index in range(len(table))])
        assert np.array_equal(macs.price_many(widths), table.macs)
        return cls(table, space, macs)

    @cached_property
    def index(self) -> dict[Widths, int]:
        """Where a network stands in the table."""
        maxima = [group.channels for group in self.space.groups]
        return {Widths(self.table.widths(i, maxima)): i for i in range(len(self.table))}

    def cost(self, widths: Widths) -> float:
        """Millions of multiply-accumulates, in the place of milliseconds."""
        return float(self.table.macs[self.index[widths]] / MILLION)

    def score(self, widths: Widths) -> float:
        """The noisy accuracy, 0 to 1."""
        return float(self.table.accuracy[self.index[widths]] / 100)

    def inside(self, budget: float) -> np.ndarray:
        """Indices of all settings within a budget in millions."""
        return np.flatnonzero(self.table.macs <= budget * MILLION)

    def fitness(self, budget: float, exponent: float, accuracy: np.ndarray) -> np.ndarray:
        """MnasNet's fitness, in points."""
        return np.asarray(accuracy * (self.table.macs / MILLION / budget) ** exponent)

    def searched(self, budget: float, seed: int, **settings: Any) -> int:
        """Where the winner of a search stands."""
        found = search(
            self.space, self.cost, self.score, SearchSettings(budget=Budget(budget), seed=seed, **settings)
        )
        allowed = (settings["generations"] + 1) * settings["population"]
        assert len(found.history) <= allowed + 5
        assert found.best.predicted_ms <= budget
        return self.index[found.best.widths]

    def at_random(self, budget: float, seed: int, count: int, smooth: bool) -> int:
        """Where the best of `count` settings stands that are drawn evenly from all inside the budget."""
        drawn = np.random.default_rng(seed).choice(self.inside(budget), count, replace=False)
        scores = self.table.accuracy[drawn] / 100
        if smooth:
            scores = denoised_scores(self.table.places(drawn), scores)
        return int(drawn[scores.argmax()])


def regrets(bench: Bench, seeds: int, done: "Done") -> None:
    """Mean regret of each way at each budget, with the standard error over seeds."""
    truth, noisy = bench.table.denoised, bench.table.accuracy

    def soft(exponent: float, size: dict[str, int]) -> Callable[[float, int], int]:
        return lambda budget, seed: bench.searched(
            budget, seed, fitness="soft", latency_exponent=exponent, **size
        )

    def brute(budget: float, seed: int) -> int:
        inside = bench.inside(budget)
        return int(inside[noisy[inside].argmax()])

    def brute_soft(exponent: float) -> Callable[[float, int], int]:
        def pick(budget: float, seed: int) -> int:
            inside = bench.inside(budget)
            return int(inside[bench.fitness(budget, exponent, noisy)[inside].argmax()])

        return pick

    ways: list[tuple[str, int, float, Callable[[float, int], int]]] = [
        ("brute force over the noisy means", len(bench.table), 0.0, brute),
        ("random search", 500, 0.0, lambda b, s: bench.at_random(b, s, 500, False)),
        ("random search, by expected scores", 500, 0.0, lambda b, s: bench.at_random(b, s, 500, True)),
        ("evolution, by its own scores", 500, 0.0, lambda b, s: bench.searched(b, s, smooth=False, **LARGE)),
        ("**evolution** (hard budget)", 500, 0.0, lambda b, s: bench.searched(b, s, **LARGE)),
        ("random search", 80, 0.0, lambda b, s: bench.at_random(b, s, 80, False)),
        ("random search, by expected scores", 80, 0.0, lambda b, s: bench.at_random(b, s, 80, True)),
        ("evolution, by its own scores", 80, 0.0, lambda b, s: bench.searched(b, s, smooth=False, **DEFAULT)),
        ("**evolution** (bcnet's default)", 80, 0.0, lambda b, s: bench.searched(b, s, **DEFAULT)),
    ]
    for w in EXPONENTS:
        ways.append((f"brute force, soft fitness, w = {w}", len(bench.table), w, brute_soft(w)))
        ways.append((f"**evolution**, soft fitness, w = {w}", 500, w, soft(w, LARGE)))
        ways.append((f"**evolution**, soft fitness, w = {w}", 80, w, soft(w, DEFAULT)))
    for name, scored, exponent, pick in ways:
        if done.has(way=name, scored=scored):
            continue
        start, entry = time.perf_counter(), {"way": name, "scored": scored, "exponent": exponent}
        lost, unfit = [], []
        for budget in bench.table.budgets() / MILLION:
            inside = bench.inside(budget)
            picks = [pick(budget, seed) for seed in range(1 if name.startswith("brute") else seeds)]
            fitness = bench.fitness(budget, exponent, truth)
            lost.append(truth[inside].max() - truth[picks])
            unfit.append(fitness[inside].max() - fitness[picks])
        entry |= {"regret": _means(lost), "regret_of_fitness": _means(unfit), "error": _errors(lost)}
        entry["seconds"] = round(time.perf_counter() - start, 1)
        done.add(entry)


def of_one_front(bench: Bench, seeds: int, done: "Done") -> None:
    """Mean regret at each budget of the most accurate point inside it, of the front of one search for all."""
    truth = bench.table.denoised
    for scored, size in ((500, LARGE), (80, DEFAULT)):
        if done.has(way=FRONT, scored=scored):
            continue
        lost: list[list[float]] = [[] for _ in BUDGETS]
        points = []
        for seed in range(seeds):
            whole = SearchSettings(
                budget=Budget(bench.cost(bench.space.largest())), pareto=True, seed=seed, **size
            )
            front = search(bench.space, bench.cost, bench.score, whole).pareto
            points.append(len(front))
            for place, budget in enumerate(bench.table.budgets() / MILLION):
                best = [c for c in front if c.predicted_ms <= budget][-1]  # the front ascends in both
                lost[place].append(float(truth[bench.inside(budget)].max() - truth[bench.index[best.widths]]))
        entry = {"way": FRONT, "scored": scored, "exponent": 0.0}
        entry |= {"regret": _means(lost), "error": _errors(lost), "points": float(np.mean(points))}
        done.add(entry)


def records_of(bench: Bench, noise: float, seed: int, changed: str = "") -> list[tuple[Widths, float]]:
    """Loss records as a training leaves them: random settings, minus their accuracy, and noise.

    As controls, losses that are "permuted", or "all equal": then the prior knows nothing but the budget.
    """
    rng = np.random.default_rng((seed, 77))
    widths = [bench.space.random(rng) for _ in range(RECORDS)]
    losses = np.array([-bench.score(w) for w in widths]) + rng.normal(0, noise, RECORDS)
    if changed:
        losses = rng.permutation(losses) if changed == "permuted" else np.zeros(RECORDS)
    return list(zip(widths, losses.tolist(), strict=True))


def of_the_prior(
    bench: Bench,
    seeds: int,
    done: "Done",
    steps: Sequence[int] = STEPS,
    noises: Sequence[float] = NOISES,
) -> None:
    """The best score, noisy and denoised, in points, after some generations: means over budgets and seeds."""
    choices = [group.choices for group in bench.space.groups]
    starts: list[tuple[str, float, str | None]] = [
        ("random", 0.0, None),
        ("prior, losses all equal", 0.0, "all equal"),
    ]
    for noise in noises:
        starts += [("prior", noise, ""), ("prior, losses permuted", noise, "permuted")]
    for name, noise, changed in starts:
        if done.has(start=name, noise=noise):
            continue
        best, true = np.zeros((2, len(BUDGETS), seeds, len(steps)))
        for place, budget in enumerate(bench.table.budgets() / MILLION):
            for seed in range(seeds):
                own = []
                if changed is not None:
                    losses = potential_losses(records_of(bench, noise, seed, changed), choices)
                    own = [prior(losses, [Limit(*bench.macs.pairwise(choices), budget * MILLION)])]
                settings = SearchSettings(
                    budget=Budget(budget), seed=seed, population=16, generations=steps[-1] - 1
                )
                history = search(bench.space, bench.cost, bench.score, settings, priors=own).history
                for step, generations in enumerate(steps):
                    kept = [bench.index[c.widths] for c in history if c.generation < generations]
                    best[place, seed, step] = bench.table.accuracy[kept].max()
                    true[place, seed, step] = bench.table.denoised[kept].max()
        known = [np.array(entry["runs"]) for entry in done.entries if entry.get("start") == "random"]
        gain = best - (known[0] if known else best)
        entry = {
            "start": name,
            "noise": noise,
            "best": [round(float(v), 3) for v in best.mean((0, 1))],
            "denoised": [round(float(v), 3) for v in true.mean((0, 1))],
            "gain": [round(float(v), 3) for v in gain.mean((0, 1))],
            "error": [round(float(v), 3) for v in gain.std((0, 1)) / np.sqrt(gain[..., 0].size)],
            "best_at_budgets": best.mean(1).round(3).tolist(),
            "runs": best.round(4).tolist(),
        }
        done.add(entry)


def of_exchanges(bench: Bench, seeds: int, share: float) -> str:
    """What a share of exchanges among the mutations changes, paired by seed: mean regret over the budgets."""
    truth = bench.table.denoised
    lost = np.zeros((2, len(BUDGETS), seeds))
    for place, budget in enumerate(bench.table.budgets() / MILLION):
        best = truth[bench.inside(budget)].max()
        for seed in range(seeds):
            picks = [bench.searched(budget, seed, exchange=own, **DEFAULT) for own in (0.0, share)]
            lost[:, place, seed] = best - truth[picks]
    gain = (lost[0] - lost[1]).mean(0)  # of each seed
    return (
        f"regret {lost[0].mean():.4f} without, {lost[1].mean():.4f} with exchanges; "
        f"gain {gain.mean():+.4f} \u00b1 {gain.std(ddof=1) / np.sqrt(seeds):.4f} points"
    )


def _means(values: Sequence[Any]) -> list[float]:
    return [round(float(np.mean(own)), 4) for own in values]


def _errors(values: Sequence[Any]) -> list[float]:
    return [round(float(np.std(own) / np.sqrt(len(own))), 4) for own in values]


class Done:
    """What was measured, a JSON line each, in a file that a stopped run continues."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.entries: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def has(self, **keys: object) -> bool:
        """Whether there is an entry with these values."""
        return any(all(entry.get(k) == v for k, v in keys.items()) for entry in self.entries)

    def add(self, entry: dict[str, Any]) -> None:
        """Keep an entry, with the commit that it was measured at."""
        self.entries.append({**entry, "commit": _commit()})
        text = "".join(json.dumps(own) + "\n" for own in self.entries)
        write_file(self.path, text.encode())
        print(json.dumps(entry), flush=True)


def as_text(entries: Sequence[dict[str, Any]]) -> str:
    """The figures as markdown."""

    def row(*cells: object) -> str:
        return "| " + " | ".join(map(str, cells)) + " |"

    lines = [row("picked by", "scored", *(f"{b:.0%} budget" for b in BUDGETS)), row(*["---"] * 6)]
    for entry in [e for e in entries if "way" in e]:
        shown = (
            entry["regret"]
            if not entry["exponent"]
            else zip(entry["regret_of_fitness"], entry["regret"], strict=True)
        )
        cells = [f"{v:.3f}" if isinstance(v, float) else f"{v[0]:.3f} ({v[1]:.3f})" for v in shown]
        lines.append(row(entry["way"], f"{entry['scored']:,}", *cells))
    lines += ["", row("start", "noise of a record", *(f"after {n}" for n in STEPS)), row(*["---"] * 6)]
    for entry in [e for e in entries if "start" in e]:
        cells = [
            f"{best:.3f} ({gain:+.3f} ± {error:.3f})" if entry["start"] != "random" else f"{best:.3f}"
            for best, gain, error in zip(entry["best"], entry["gain"], entry["error"], strict=True)
        ]
        noise = f"{100 * entry['noise']:g} points" if entry["noise"] else "none used"
        lines.append(row(entry["start"], noise, *cells))
    return "\n".join(lines) + "\n"


def main() -> int:
    """Parse, measure, report. The exit code is 1 where the bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=Path, required=True, help="the authors' JSON file")
    parser.add_argument("--space", choices=("mobilenet", "resnet"), default="mobilenet")
    parser.add_argument("--seeds", type=int, default=20, help="searches a way and budget (default: 20)")
    parser.add_argument("--exchange", type=float, help="only compare this share of exchanges with none")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench.load(options.table, options.space)
    if options.exchange is not None:
        print(of_exchanges(bench, options.seeds, options.exchange))
        return 0
    name = "search_quality" if options.space == "mobilenet" else f"search_quality_{options.space}"
    done = Done(options.folder / f"{name}.jsonl")
    of_one_front(bench, options.seeds, done)
    of_the_prior(bench, 5, done)
    regrets(bench, options.seeds, done)
    text = as_text(done.entries)
    write_file(options.folder / f"{name}.md", text.encode())
    print(text)
    held = [e for e in done.entries if e.get("scored") == 500 and e["way"].startswith("**evolution**")]
    missed = [entry["way"] for entry in held if max(entry["regret_of_fitness"]) > BAR]
    print(f"bar: {BAR} points at all four budgets; {'missed by ' + ', '.join(missed) if missed else 'met'}")
    return 1 if missed else 0


def _commit() -> str:
    shown = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return shown.stdout.strip()


if __name__ == "__main__":
    raise SystemExit(main())
