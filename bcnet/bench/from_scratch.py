"""Train settings of a benchmark from scratch, on the supernet's images and by its recipe.

In: a benchmark's configuration and table, the settings to train. Out: their accuracies.
"""

import time

import numpy as np

from bcnet.bench.channel_bench_macro import BenchTable
from bcnet.bench.kept import Kept, finite
from bcnet.pipeline.networks import fresh_model
from bcnet.pipeline.problem import Problem
from bcnet.progress import announce, say
from bcnet.runs import Run, digest
from bcnet.training.loop import fit_network
from bcnet.training.recipe import Recipe
from bcnet.width_search.scorer import evaluate_network


def accuracies(run: Run, problem: Problem, table: BenchTable, index: list[int], epochs: int) -> np.ndarray:
    """Validation accuracies (N,), 0 to 1, of the settings `index`, each trained from scratch for `epochs`.

    They are kept in `bench/from_scratch.jsonl`: a stopped run continues, also with another method, for which
    they are the same.
    """
    config = problem.config
    path = run.folder / "bench" / "from_scratch.jsonl"
    recipe = Recipe.of(config, epochs, config.train.learning_rate)
    made_from = {key: value for key, value in problem.inputs().items() if key != "space"}
    settings = {key: value for key, value in vars(recipe).items() if key != "half"}  # which the device has
    inputs = digest([made_from, {**settings, "task": config.task.model_dump()}])
    kept = Kept(path, inputs, lambda accuracy: finite(accuracy, most=1.0))
    waiting = [i for i in index if table.key(i) not in kept.values]
    start = time.perf_counter()
    for number, i in enumerate(waiting, 1):
        widths = list(table.widths(i, config.model.args["widths"]))
        sized = config.model.model_copy(update={"args": {**config.model.args, "widths": widths}})
        model = fresh_model(config.model_copy(update={"model": sized}), problem.data)
        fit_network(model, problem.data, recipe, f"setting {table.key(i)}")
        accuracy = evaluate_network(model, problem.data, problem.data.val, problem.task).accuracy
        kept.add(table.key(i), accuracy)
        if number == 1:
            announce(
                "training settings from scratch", (time.perf_counter() - start) * (len(waiting) - number)
            )
        say(f"{number} of {len(waiting)}: setting {table.key(i)}, accuracy {accuracy:.3f}")
    return np.array([kept.values[table.key(i)] for i in index])
