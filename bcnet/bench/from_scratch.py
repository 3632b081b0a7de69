"""Settings of a benchmark trained from scratch, as the supernet's images and recipe allow.

In: a benchmark's configuration and table, the settings to train. Out: their accuracies.
"""

import time

import numpy as np

from bcnet.artifacts import Run, digest, json_bytes, read_json, write_file
from bcnet.bench.channel_bench_macro import BenchTable
from bcnet.config import Config
from bcnet.progress import announce, say
from bcnet.supernet.fit import Recipe, fit_network
from bcnet.supernet.project import fresh_model, load_project
from bcnet.supernet.score import evaluate_network


def accuracies(run: Run, config: Config, table: BenchTable, index: list[int], epochs: int) -> np.ndarray:
    """Validation accuracies (N,), 0 to 1, of the settings `index`, each trained from scratch for `epochs`.

    By the recipe of the supernet. Kept in `bench/from_scratch.json`: a stopped run goes on, also one of
    another method, which trains the same.
    """
    project = load_project(config)
    path = run.folder / "bench" / "from_scratch.json"
    recipe = Recipe.of(config, epochs, config.train.learning_rate)
    made_from = {key: value for key, value in project.inputs().items() if key != "space"}
    inputs = digest([made_from, {**vars(recipe), "task": config.task.model_dump()}])
    kept = read_json(path, f"rm {path}") if path.exists() else {}
    found: dict[str, float] = kept["accuracy"] if kept.get("inputs") == inputs else {}
    waiting = [i for i in index if table.key(i) not in found]
    start = time.perf_counter()
    for number, i in enumerate(waiting, 1):
        widths = list(table.widths(i, config.model.args["widths"]))
        sized = config.model.model_copy(update={"args": {**config.model.args, "widths": widths}})
        model = fresh_model(config.model_copy(update={"model": sized}), project.data)
        fit_network(model, project.data, recipe, f"setting {table.key(i)}")
        found[table.key(i)] = evaluate_network(model, project.data, project.data.val, project.task).accuracy
        write_file(path, json_bytes({"inputs": inputs, "accuracy": found}))
        if number == 1:
            announce(
                "training settings from scratch", (time.perf_counter() - start) * (len(waiting) - number)
            )
        say(f"{number} of {len(waiting)}: setting {table.key(i)}, accuracy {found[table.key(i)]:.3f}")
    return np.array([found[table.key(i)] for i in index])
