"""Does a supernet rank the widths of your own network? Random networks, trained from scratch, are the truth.

    python benchmarks/rank_own.py --config bcnet.toml --networks 60 --epochs 20 --passes 24

`--methods` are values of train.method, or presets: these bring their own steps and their own choices, which
begin at the narrowest width of the configuration where that is narrower.

In an empty folder: trains supernets of so many passes over the training images, of each method and seed,
scores random networks in them, trains each of these from scratch for so many epochs, tests it, and prints
Kendall's tau with the accuracy from scratch: of accuracy and loss on all images, as they are and as expected
scores, of the accuracy that a search takes (the sides share the images out), and of what takes no training.
One training each is a noisy truth, the same for all. Writes rank_own.json; stopped, the same line goes on,
from the network or the supernet that it was at.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bcnet.bench.channel_bench_macro import ranking
from bcnet.config import Config, load_config
from bcnet.config.presets import PRESETS
from bcnet.pipeline.finished import trained_supernets
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.search_inputs import by_loss_of, scoring
from bcnet.pipeline.train import run as train
from bcnet.pipeline.train import stage_inputs
from bcnet.progress import say
from bcnet.registry import SUPERNETS
from bcnet.runs import Run, digest, json_bytes, write_file
from bcnet.space.supernet import cut
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.training.loop import fit_network
from bcnet.training.recipe import Recipe
from bcnet.training.step_plan import StepPlan
from bcnet.width_search.scorer import Scorer, evaluate_network
from bcnet.width_search.surrogate import denoised_scores, places_of, with_losses

RESULT = Path("rank_own.json")


def networks(space: WidthSpace, count: int, seed: int = 0, without: Sequence[Widths] = ()) -> list[Widths]:
    """Random widths, none twice, and none of some others."""
    rng = np.random.default_rng(seed)
    drawn: dict[Widths, None] = {}
    for _ in range(100 * count):
        if (widths := space.random(rng)) not in without:
            drawn[widths] = None
        if len(drawn) == count:
            return list(drawn)
    raise SystemExit(f"there are hardly more than {len(drawn)} networks in this space: lower their number")


def from_scratch(config: Config, wanted: list[Widths], epochs: int, found: dict[str, Any]) -> None:
    """Adds [test accuracy, test loss] of each network that is not there yet."""
    problem = open_problem(config)
    recipe = Recipe.of(config, epochs, config.train.learning_rate)
    for number, widths in enumerate(wanted, 1):
        if key(widths) in found["scratch"]:
            continue
        network = cut(problem.fresh_model(), problem.space, widths)
        fit_network(network, problem.data, recipe, f"network {number}")
        tested = evaluate_network(network, problem.data, problem.data.test, problem.task)
        found["scratch"][key(widths)] = [tested.accuracy, round(tested.loss, 5)]
        write_file(RESULT, json_bytes(found))
        say(f"network {number} of {len(wanted)}, {key(widths)}: {tested.accuracy:.4f}")


def in_supernet(config: Config, name: str, wanted: list[Widths]) -> dict[str, list[float]]:
    """Each network's accuracy, calibrated loss, and accuracy as in a search; trains the supernet first."""
    run, problem = Run.named(name), open_problem(config)
    if run.stage("train").outdated(stage_inputs(run, problem)) is not None:
        train(run, problem)
    supernets, images = trained_supernets(run, problem), config.search.recalibration_images
    every = Scorer(supernets, problem.data, images, problem.task)
    found, quick = {}, scoring(problem, supernets)
    for widths in wanted:
        whole = every(widths)
        found[key(widths)] = [whole.accuracy, whole.loss, quick(widths).accuracy]
    return found


def sections(config: Config, name: str, passes: int, seed: int) -> dict[str, dict[str, Any]]:
    """What a supernet of that method or preset is trained with: as many epochs as fit into the passes."""
    preset = PRESETS.get(name, {})
    training = {"method": name, **preset.get("train", {})}
    space = dict(preset.get("space", {}))
    if space and config.space.min_width < space["min_width"]:
        step = (1 - space["min_width"]) / (space["bins"] - 1)
        space["bins"] = round((1 - config.space.min_width) / step) + 1
        space["min_width"] = config.space.min_width
    own = config.train.model_copy(update=training)
    an_epoch = StepPlan.of(own).passes(len(SUPERNETS[own.method].sides)) * own.supernets
    epochs = max(1, round(passes / an_epoch))
    return {"": {"seed": seed}, "train": {**training, "epochs": epochs}, "space": space}


def offered(config: Config, wanted: Sequence[Widths]) -> bool:
    """Whether all these widths are choices of the configured space."""
    choices = open_problem(config, pixels=False).choices
    return all(own in group for widths in wanted for own, group in zip(widths, choices, strict=True))


def key(widths: Widths) -> str:
    return "-".join(map(str, widths))


def report(config: Config, wanted: list[Widths], found: dict[str, Any]) -> str:
    """Taus, with 95 % intervals over resampled networks, as markdown."""
    problem = open_problem(config)
    space, by_loss = problem.space, by_loss_of(problem)
    truth = np.array([found["scratch"][key(widths)][0] for widths in wanted])
    places = places_of(wanted, problem.choices)
    lines = [
        f"{len(wanted)} networks, accuracies {truth.min():.2%} to {truth.max():.2%}",
        "",
        "| supernet | accuracy | calibrated loss | accuracy, expected | both, expected | as in a search |",
        "|---|---|---|---|---|---|",
    ]

    def tau(scores: np.ndarray) -> str:
        own = ranking(scores, truth)
        return f"{own['kendall']:.3f} ({own['interval'][0]:.3f} to {own['interval'][1]:.3f})"

    for name, scores in found["supernets"].items():
        accuracy, loss, quick = np.array([scores[key(widths)] for widths in wanted]).T
        alone = denoised_scores(places, accuracy)
        both = denoised_scores(places, with_losses(accuracy, loss, by_loss))
        cells = [tau(values) for values in (accuracy, -loss, alone, both, quick)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    macs = np.array([space.macs(widths) for widths in wanted], dtype=float)
    lines += [
        f"| *multiply-accumulates* | {tau(macs)} | | | | |",
        f"| *sum of the widths' logarithms* | {tau(np.log(wanted).sum(1))} | | | | |",
        f"| *the truth, expected* | | | {tau(denoised_scores(places, truth))} | | |",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, help="bcnet.toml if not given")
    parser.add_argument("--networks", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=20, help="of each network from scratch")
    parser.add_argument("--passes", type=int, default=24, help="of all supernets of a run, each path counted")
    parser.add_argument("--methods", nargs="+", default=["unilateral", "bcnet"])
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    config = load_config(options.config)
    asked = {"networks": options.networks, "epochs": options.epochs, "passes": options.passes}
    asked["config"] = digest(["calibrated", config.model_dump(), open_problem(config).inputs()])
    new: dict[str, Any] = {"asked": asked, "scratch": {}, "supernets": {}}
    found = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else new
    if found["asked"] != asked:
        raise SystemExit(f"{RESULT} is of other settings, {found['asked']}: work in another folder")
    wanted = networks(open_problem(config).space, options.networks)
    for seed in range(options.seeds):
        for method in options.methods:
            name = f"{method}-{seed}"
            own = load_config(options.config, sections(config, method, options.passes, seed))
            if not offered(own, wanted):
                raise SystemExit(f"{method} does not offer the networks' widths: leave it out of --methods")
            if name not in found["supernets"]:
                found["supernets"][name] = in_supernet(own, name, wanted)
                write_file(RESULT, json_bytes(found))
    from_scratch(config, wanted, options.epochs, found)
    print(report(config, wanted, found))


if __name__ == "__main__":
    main()
