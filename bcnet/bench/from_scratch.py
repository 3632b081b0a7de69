"""Train settings of a benchmark from scratch, on the supernet's images and by its recipe.

In: a benchmark's configuration and table, the settings to train. Out: their accuracies. The settings are
distributed over the processes.
"""

import time
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from bcnet.bench.channel_bench_macro import BenchTable
from bcnet.bench.kept import Kept, finite
from bcnet.pipeline.networks import fresh_model
from bcnet.pipeline.problem import Problem
from bcnet.progress import announce, say
from bcnet.runs import Run, digest
from bcnet.training.distributed import connected
from bcnet.training.loop import fit_network
from bcnet.training.recipe import Recipe
from bcnet.training.shared_work import Shared
from bcnet.width_search.scorer import evaluate_network


def accuracies(run: Run, problem: Problem, table: BenchTable, index: list[int], epochs: int) -> np.ndarray:
    """Validation accuracies (N,), 0 to 1, of the settings `index`, each trained from scratch for `epochs`.

    They are kept in `bench/from_scratch.jsonl`: a stopped run continues, also with another method, for which
    they are the same.
    """
    config, own = problem.config, FromScratch(problem, epochs)
    path = run.folder / "bench" / "from_scratch.jsonl"
    made_from = {key: value for key, value in problem.inputs().items() if key != "space"}
    # But for `half`, which the device has.
    settings = {key: value for key, value in vars(own.recipe).items() if key != "half"}
    inputs = digest([made_from, {**settings, "task": config.task.model_dump()}])
    kept = Kept(path, inputs, lambda accuracy: finite(accuracy, most=1.0))
    waiting = [i for i in index if table.key(i) not in kept.values]
    start, maxima = time.perf_counter(), config.model.args["widths"]
    sized = [(table.key(i), table.widths(i, maxima)) for i in waiting]
    train = Shared(partial(from_scratch_of_run, epochs=epochs), FromScratch.accuracy, own)
    for number, (i, accuracy) in enumerate(zip(waiting, train.each(sized), strict=True), 1):
        kept.add(table.key(i), accuracy)
        if number == 1:
            each_s = (time.perf_counter() - start) / connected().size
            announce("training settings from scratch", each_s * (len(waiting) - number))
        say(f"{number} of {len(waiting)}: setting {table.key(i)}, accuracy {accuracy:.3f}")
    return np.array([kept.values[table.key(i)] for i in index])


@dataclass(frozen=True)
class FromScratch:
    """How settings are trained from scratch."""

    problem: Problem
    epochs: int

    @cached_property
    def recipe(self) -> Recipe:
        """The supernet's recipe, except for its length."""
        config = self.problem.config
        return Recipe.of(config, self.epochs, config.train.learning_rate)

    def accuracy(self, setting: tuple[str, tuple[int, ...]]) -> float:
        """The validation accuracy of a setting, given by its digits and widths, after its training."""
        key, widths = setting
        config, data = self.problem.config, self.problem.data
        sized = config.model.model_copy(update={"args": {**config.model.args, "widths": list(widths)}})
        model = fresh_model(config.model_copy(update={"model": sized}), data)
        fit_network(model, data, self.recipe, f"setting {key}")
        return evaluate_network(model, data, data.val, self.problem.task).accuracy


def from_scratch_of_run(run: Run, problem: Problem, epochs: int) -> FromScratch:
    """How a run's settings are trained from scratch, in a process that helps the first one."""
    return FromScratch(problem, epochs)
