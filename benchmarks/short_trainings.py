"""Do short trainings of single subnets, from a supernet's weights, correct how it ranks networks?

    python benchmarks/short_trainings.py --config bcnet.toml --truth Results_MobileNet.json --others REPORT...

In: a run's supernet (trained where it is not), networks of known accuracy (the table of Channel-Bench-Macro,
or the record of rank_own.py), and the scores of recorded supernets on the same networks. Scores the networks
in the supernet, trains `--count` other subnets for `--epochs` passes each, starting from its weights, and
scores these. A ridge regression of their scores on the supernet's denoised score and the widths then predicts
the known networks, and is averaged with that score. Prints Kendall's tau without and with it, for the
supernet alone and together with recorded ones. Writes short_trainings.json after each network; stopped, the
same line goes on.
"""

import argparse
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from corrected_rankings import Correction, Known, extremes, figures, scored
from rank_own import networks
from recorded import how_made

from bcnet.bench.channel_bench_macro import BenchTable
from bcnet.bench.scored_settings import Settings
from bcnet.config import load_config
from bcnet.pipeline.finished import trained_supernets
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.search_inputs import scoring
from bcnet.pipeline.train import run as train
from bcnet.pipeline.train import stage_inputs
from bcnet.progress import say
from bcnet.runs import Run, digest, json_bytes, read_json, write_file
from bcnet.space.width_space import Widths
from bcnet.training.loop import fit_network
from bcnet.training.recipe import Recipe
from bcnet.width_search.scorer import Scorer, predictions_of, score_of
from bcnet.width_search.surrogate import places_of

RESULT = Path("short_trainings.json")


def trained_shortly(problem: Problem, scorer: Scorer, widths: Widths, recipe: Recipe) -> list[float]:
    """Accuracy, loss and calibrated loss of a subnet after a training that begins with its weights."""
    side, data = scorer.sides[0], problem.data
    model = scorer.recalibrated(side, scorer.subnet(side, widths)).extract()
    fit_network(model, data, recipe, f"subnet {widths}")
    predictions = list(predictions_of(model, data.batches(data.val, data.evaluated), side.supernet.device))
    plain, own = (score_of(predictions, problem.task, calibrate=calibrate) for calibrate in (False, True))
    return [plain.accuracy, round(plain.loss, 5), round(own.loss, 5)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, help="bcnet.toml if not given")
    parser.add_argument("--run", default="default", help="whose supernet it is")
    parser.add_argument("--truth", type=Path, required=True, help="the table, or a rank_own.json")
    parser.add_argument("--others", type=Path, nargs="*", default=[], help="reports of recorded supernets")
    parser.add_argument(
        "--report", type=Path, help="the run's own report, if it has scored the table already"
    )
    parser.add_argument("--count", type=int, default=48, help="subnets that are trained")
    parser.add_argument("--design", choices=("extremes", "random"), default="extremes")
    parser.add_argument("--epochs", type=int, default=1, help="of each of them")
    parser.add_argument("--rate", type=float, default=0.05, help="learning rate at their start")
    options = parser.parse_args()
    config = load_config(options.config)
    run, problem = Run.named(options.run), open_problem(config)
    maxima, space = problem.space.largest(), config.model.name.removeprefix("cbm-")

    def known_with(reports: Sequence[Path]) -> Known:
        if "scratch" in read_json(options.truth, "another --truth"):
            return Known.of_record(options.truth, reports)
        return Known.of_table(BenchTable.load(options.truth, space), maxima, reports)

    known = known_with(options.others)
    asked = {name: getattr(options, name) for name in ("count", "design", "epochs", "rate")}
    asked["config"] = digest([config.model_dump(), problem.inputs()])
    found = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    if found.get("asked", asked) != asked:
        raise SystemExit(f"{RESULT} is of other settings, {found['asked']}: work in another folder")
    found = {
        **how_made(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "asked": asked,
        "loads": [],
        "known": {},
        "short": {},
    } | found
    if run.stage("train").outdated(stage_inputs(run, problem)) is not None:
        train(run, problem)
    scorer = scoring(problem, trained_supernets(run, problem), shared=False)
    if options.report:
        (values,) = known_with([options.report]).supernets
        found["known"] = {str(w): own.tolist() for w, own in zip(known.widths, values, strict=True)}
    settings = Settings(scorer)
    for widths in known.widths:
        if str(widths) not in found["known"]:
            found["known"][str(widths)] = np.mean(list(settings.scores(widths).values()), 0).tolist()
    write_file(RESULT, json_bytes(found))
    recipe = replace(Recipe.of(config, options.epochs, options.rate), warmup_epochs=0.0)
    some = extremes(problem.choices, options.count)
    if options.design == "random":
        some = networks(problem.space, options.count, seed=1, without=known.widths)
    for number, widths in enumerate(some, 1):
        if str(widths) not in found["short"]:
            found["loads"].append(os.getloadavg()[0])
            found["short"][str(widths)] = trained_shortly(problem, scorer, widths, recipe)
            write_file(RESULT, json_bytes(found))
            say(f"{number} of {len(some)}, {widths}: {found['short'][str(widths)][0]:.3f}")
    columns = known.supernets[0].shape[1] if known.supernets else 3
    base = np.array([found["known"][str(widths)] for widths in known.widths])[:, :columns]
    short = np.array([found["short"][str(widths)] for widths in some])[:, :columns]
    correction = Correction(
        places_of(known.widths, problem.choices), places_of(some, problem.choices), scored(short)
    )
    found["figures"] = figures(known, base, correction)
    write_file(RESULT, json_bytes(found))
    print(json.dumps(found["figures"], indent=1))


if __name__ == "__main__":
    main()
