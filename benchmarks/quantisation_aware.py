"""Compare training through integers at INT8 with quantising after training.

    python benchmarks/quantisation_aware.py --record benchmarks/results/quantisation_aware.json
    python benchmarks/quantisation_aware.py --config cifar10-residual.toml --ratio 0.5 --record FILE

In: a configuration with trained weights (the built-in example, if none is named). Out: for each seed, the
network narrowed uniformly, fine-tuned, and then continued in three ways: not at all; for a few passes in
floating point, at the rate of the training through integers; through integers, as `bcnet slice` does at INT8.
Each is evaluated on the test images through its INT8 file. An existing record gets a further row, one for
each configuration.
"""

import argparse
import copy
import json
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from recorded import how_made
from torch import nn

from bcnet.config import EXAMPLE, Config
from bcnet.onnx_export.onnx_supernet import to_onnx
from bcnet.pipeline.file_outputs import file_metric
from bcnet.pipeline.fine_tuning import FineTuning
from bcnet.pipeline.inherit import ranked_sources, trained_for
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.original import given_network
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.quantisation import RATE, QuantisationAware, aware_passes
from bcnet.pipeline.route import fine_tuning_rate
from bcnet.pipeline.teacher import objective_for
from bcnet.pipeline.verify import on_this_processor
from bcnet.runtimes import runtime_here
from bcnet.space.extract import with_state
from bcnet.training.loop import fit_network
from bcnet.training.recipe import Recipe
from bcnet.width_search.scorer import Validation, evaluate_network

THROUGH = "int8_through_integers"


def problem_of(config: Path | None, seed: int, passes: int) -> Problem:
    """The configured problem at INT8 on the CPU."""
    values: dict[str, Any] = tomllib.loads(config.read_text()) if config else copy.deepcopy(dict(EXAMPLE))
    own = {"epochs": passes, "inherit": "l1", "quantization_aware": True}
    values["slice"] = {**values.get("slice", {}), **own}
    return open_problem(Config.model_validate({**values, "precision": "int8", "seed": seed}))


def int8_accuracy(problem: Problem, network: nn.Module) -> float:
    """The accuracy of a network's INT8 file on the test images, in ONNX Runtime."""
    proto = problem.at_precision(to_onnx(network, problem.data.example(problem.profile.batch)))
    profile = on_this_processor(problem.profile)
    return file_metric(proto.SerializeToString(), network, problem.data, profile, problem.task)


def accuracies(problem: Problem, ratio: float) -> dict[str, float]:
    """A narrowed network's accuracies on the test images: in floats, and at INT8 after each continuation."""
    config, data = problem.config, problem.data
    original, passes = given_network(problem), config.slice.epochs
    assert original is not None, "the weights have to be trained"
    widths = problem.space.uniform(ratio)
    by = Validation(data, config.search.recalibration_images, problem.task)
    (begun,) = ranked_sources((), widths, trained_for(problem, original), by)
    small = with_state(problem.model, problem.space, begun.state)
    recipe = Recipe.of(config, passes, fine_tuning_rate(problem))
    objective = objective_for(problem, original, small, recipe)
    tune = FineTuning(data, recipe, config.search.recalibration_images, objective)
    tuned = tune(small, "fine-tuning").network
    further = aware_passes(problem, passes)
    slower = replace(recipe, epochs=further, learning_rate=RATE * recipe.learning_rate)
    floats = copy.deepcopy(tuned)
    fit_network(floats, data, slower, "further in floats", objective=objective)
    integers = QuantisationAware(problem, original)(tuned, "through integers", further)
    return {
        "floats": evaluate_network(tuned, data, data.test, problem.task).accuracy,
        "int8": int8_accuracy(problem, tuned),
        "int8_further_floats": int8_accuracy(problem, floats),
        THROUGH: int8_accuracy(problem, integers.network),
        "kept": float(bool(integers.passes)),
    }


def gained(rows: Sequence[dict[str, float]], own: str, other: str) -> dict[str, float]:
    """How much more accurate `own` is than `other`, in points: mean over seeds and standard error."""
    points = np.array([100 * (row[own] - row[other]) for row in rows])
    error = float(points.std(ddof=1) / np.sqrt(len(points))) if len(points) > 1 else float("nan")
    return {"points": round(float(points.mean()), 3), "standard_error": round(error, 3)}


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--ratio", type=float, default=0.5, help="share of the channels that are kept")
    parser.add_argument("--passes", type=int, default=4, help="of fine-tuning")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    rows = []
    for seed in given.seeds:
        problem = problem_of(given.config, seed, given.passes)
        rows.append({"seed": seed, **accuracies(problem, given.ratio)})
        print(rows[-1], flush=True)
    found = {
        "network": given.config.stem if given.config else "digit-scenes",
        **how_made(),
        "machine": runtime_here("onnxruntime").fingerprint()["processor"],
        "ratio": given.ratio,
        "passes": given.passes,
        "through_integers": aware_passes(problem, given.passes),
        "training_images": len(problem.data.train),
        "test_images": len(problem.data.test),
        "int8_over_floats": gained(rows, "int8", "floats"),
        "through_integers_over_int8": gained(rows, THROUGH, "int8"),
        "through_integers_over_further_floats": gained(rows, THROUGH, "int8_further_floats"),
        "seeds": rows,
    }
    print(json.dumps({key: value for key, value in found.items() if key != "seeds"}, indent=2))
    if given.record:
        known = json.loads(given.record.read_text())["rows"] if given.record.exists() else []
        known = [own for own in known if own["network"] != found["network"]]
        about = {"date": found["date"], "rows": [*known, found]}
        given.record.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
