"""Does a supernet rank better if the whole network is trained first, and it starts from these weights?

    python benchmarks/warm_supernets.py --config bcnet.toml --truth rank_own.json --ways 0+24 8+16 8+16:taylor

In: a configuration, and a record of rank_own.py, whose networks are scored (none is trained again). A way
S+P:ORDER trains the whole network for S passes over the training images, as configured, and then from its
weights a supernet for P passes, with the channels in that order (`train.channel_order`; as they are if none
is given); 0+P is a supernet from fresh weights. Prints Kendall's tau of each way, the difference to the first
way at equal seeds, and the cost: multiply-accumulates, in passes of the whole network. Writes
warm_supernets.json after each supernet; stopped, the same line goes on, from the epoch that it was at.
"""

import argparse
import json
import os
import platform
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corrected_rankings import Known, scored, tau
from recorded import how_made
from safetensors.torch import save

from bcnet.bench.channel_bench_macro import difference, ranking
from bcnet.bench.scored_settings import Settings
from bcnet.config import Config, load_config
from bcnet.pipeline.finished import trained_supernets, training_records
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.search_inputs import scoring
from bcnet.pipeline.train import run as train
from bcnet.pipeline.train import seed_of, stage_inputs
from bcnet.registry import EVOLUTION, SUPERNETS
from bcnet.runs import Run, digest, json_bytes, write_file
from bcnet.space.extract import tensors_of
from bcnet.space.width_space import Widths
from bcnet.training.checkpoints import CheckpointFile
from bcnet.training.loop import fit_network
from bcnet.training.recipe import Recipe
from bcnet.training.step_plan import StepPlan
from bcnet.width_search.scorer import evaluate_network
from bcnet.width_search.surrogate import denoised_scores, places_of

RESULT, STARTS = Path("warm_supernets.json"), Path("starts")
# The columns of a score: accuracy, loss, calibrated loss. The first records do not have the last one.
LOSSES = {"calibrated loss": slice(0, 3), "plain loss": slice(0, 2)}
Values = dict[str, np.ndarray]  # for each seed (N, columns)


@dataclass(frozen=True)
class Way:
    """How many passes train the whole network, how many the supernet, and the order of its channels."""

    start: int
    passes: int
    order: str = "as-is"

    @classmethod
    def of(cls, text: str) -> "Way":
        """S+P or S+P:ORDER. Raises ArgumentTypeError for anything else."""
        found = re.fullmatch(r"(\d+)\+([1-9]\d*)(?::([a-z0-9-]+))?", text)
        if found is None or (found[3] and not int(found[1])):
            raise argparse.ArgumentTypeError(f"'{text}' is not as 8+16 or 8+16:taylor; 0+24 has no order")
        return cls(int(found[1]), int(found[2]), found[3] or "as-is")

    def __str__(self) -> str:
        return f"{self.start}+{self.passes}" + (f":{self.order}" if self.order != "as-is" else "")


def configured(options: argparse.Namespace, way: Way, seed: int) -> Config:
    """The configuration of the way's supernet."""
    flags: dict[str, dict[str, Any]] = {"": {"seed": seed}, "train": {"method": options.method}}
    plan = StepPlan.of(load_config(options.config, flags).train)
    flags["train"]["epochs"] = max(1, round(way.passes / plan.passes(len(SUPERNETS[options.method].sides))))
    if way.start:
        rate = options.rate or load_config(options.config).train.learning_rate
        # No teacher: its forward passes would be further cost, and distillation is not what is asked.
        flags["train"] |= {
            "channel_order": way.order,
            "teacher": "none",
            "learning_rate": rate,
        }
        flags |= {"model": {"weights": str(start_file(way, seed))}, "search": {"method": EVOLUTION}}
    return load_config(options.config, flags)


def start_file(way: Way, seed: int) -> Path:
    return STARTS / f"{way.start}-{seed}.safetensors"


def start(options: argparse.Namespace, way: Way, seed: int) -> dict[str, float]:
    """Trains the whole network, which begins as the supernet from fresh weights does, and saves it."""
    problem = open_problem(load_config(options.config, {"": {"seed": seed}}))
    recipe = Recipe.of(problem.config, way.start, problem.config.train.learning_rate)
    # Of another seed, so that the supernet does not see the same batches once more.
    recipe, model, begun = replace(recipe, seed=seed_of(1, seed)), problem.fresh_model(), time.process_time()
    checkpoint = CheckpointFile(start_file(way, seed).with_suffix(".checkpoint"), problem.inputs())
    what = f"whole network, {way.start} passes, seed {seed}"
    fit_network(model, problem.data, recipe, what, checkpoint=checkpoint)
    seconds = time.process_time() - begun
    write_file(start_file(way, seed), save({n: own.contiguous() for n, own in tensors_of(model).items()}))
    reached = evaluate_network(model, problem.data, problem.data.val, problem.task).accuracy
    return {"accuracy": reached, "processor seconds": round(seconds, 1)}


def supernet(options: argparse.Namespace, way: Way, seed: int, wanted: Sequence[Widths]) -> dict[str, Any]:
    """Accuracy, loss and calibrated loss of each network in the way's supernet, trained if it is not yet."""
    name = f"{way}-{seed}".replace("+", "-").replace(":", "-")
    run, problem = Run.named(name), open_problem(configured(options, way, seed))
    begun = time.process_time()
    if run.stage("train").outdated(stage_inputs(run, problem)) is not None:
        train(run, problem)
    seconds, space = time.process_time() - begun, problem.space
    share = np.mean([space.macs(widths) for widths, _ in training_records(run)])
    settings = Settings(scoring(problem, trained_supernets(run, problem), shared=False))
    return {
        "cost": round(way.start + way.passes * float(share) / space.macs(space.largest()), 2),
        "processor seconds": round(seconds, 1),
        "load": round(os.getloadavg()[0], 1),
        "scores": {
            str(widths): np.mean(list(settings.scores(widths).values()), 0).round(5).tolist()
            for widths in wanted
        },
    }


def figures(known: Known, choices: Sequence[Sequence[int]], found: dict[str, Any]) -> dict[str, Any]:
    """Of each way its cost, its subnets' mean accuracy, and how it ranks, by either loss."""
    places = places_of(known.widths, choices)
    rows: dict[str, dict[str, Any]] = {}
    values = {
        way: {seed: np.array(list(own["scores"].values())) for seed, own in seeds.items()}
        for way, seeds in found.items()
    }
    first = next(iter(values.values()))
    for way, seeds in values.items():
        rows[way] = {
            "cost": round(float(np.mean([own["cost"] for own in found[way].values()])), 2),
            "accuracy": round(float(np.mean([own[:, 0] for own in seeds.values()])), 4),
        }
        for name, columns in LOSSES.items():
            own, other = (
                {seed: each[:, columns] for seed, each in of.items() if seed in seeds}
                for of in (seeds, first)
            )
            rows[way][name] = compared(known, places, own, other)
    return rows


def compared(known: Known, places: np.ndarray, own: Values, other: Values) -> dict[str, Any]:
    """Taus of each seed and of all together, and how much higher they are than the others' at equal seeds."""

    def scores(values: np.ndarray) -> np.ndarray:
        return denoised_scores(places, scored(values))

    taus, others = ({seed: tau(scores(each), known) for seed, each in of.items()} for of in (own, other))
    gains = [taus[seed] - others[seed] for seed in others]
    error = float(np.std(gains, ddof=1)) / len(gains) ** 0.5 if len(gains) > 1 else None
    mine, theirs = (scores(np.mean([of[seed] for seed in others], 0)) for of in (own, other))
    return {
        "kendall": {seed: round(each, 4) for seed, each in taus.items()},
        "mean": round(float(np.mean(list(taus.values()))), 4),
        "gain": round(float(np.mean(gains)), 4),
        "standard error": None if error is None else round(error, 4),
        "together": ranking(mine, known.accuracy),
        "gain together": difference(mine, theirs, known.accuracy),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, help="bcnet.toml if not given")
    parser.add_argument("--truth", type=Path, required=True, help="a record of rank_own.py")
    parser.add_argument("--ways", type=Way.of, nargs="+", required=True, metavar="S+P[:ORDER]")
    parser.add_argument("--rate", type=float, help="of supernets from trained weights; else as configured")
    parser.add_argument("--method", default="unilateral")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    known = Known.of_record(options.truth, [])
    problem = open_problem(load_config(options.config, {"train": {"method": options.method}}))
    asked: dict[str, Any] = {"method": options.method, "rate": options.rate}
    asked["config"] = digest([problem.config.model_dump(), problem.inputs()])
    new: dict[str, Any] = {
        **how_made(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "asked": asked,
        "starts": {},
        "supernets": {str(way): {} for way in options.ways},
    }
    found = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else new
    if found["asked"] != asked:
        raise SystemExit(f"{RESULT} is of other settings, {found['asked']}: work in another folder")
    found |= how_made()  # of what continued it last
    for seed in map(str, range(options.seeds)):
        for way in options.ways:
            own, begun = found["supernets"].setdefault(str(way), {}), f"{way.start}, seed {seed}"
            if way.start and begun not in found["starts"]:
                found["starts"][begun] = start(options, way, int(seed))
                write_file(RESULT, json_bytes(found))
            if seed not in own:
                own[seed] = supernet(options, way, int(seed), known.widths)
                write_file(RESULT, json_bytes(found))
        done = {name: each for name, each in found["supernets"].items() if each}
        found["figures"] = figures(known, problem.choices, done)
        write_file(RESULT, json_bytes(found))
    print(json.dumps(found["figures"], indent=1))


if __name__ == "__main__":
    main()
