"""A supernet initialised with the trained network's weights, for the rows that inherit from it.

In: a trained network, passes. Out: the supernet after so many passes. Its channels are first sorted by
importance; it is distilled from the frozen original at a low rate. A step trains one side of drawn widths, so
that an epoch is one pass. A finished supernet is saved in `starts/`, and a stopped training continues.
"""

from dataclasses import replace
from pathlib import Path

from bcnet.pipeline.problem import Problem
from bcnet.pipeline.supernet_start import first_state
from bcnet.pipeline.teacher import supernet_objective
from bcnet.pipeline.train_network import FINE_TUNING_RATE
from bcnet.pipeline.train_supernet import train
from bcnet.pipeline.training_file import CheckpointFiles, Finished, finished_files, load_finished
from bcnet.plain import counted
from bcnet.runs import write_files
from bcnet.space.supernet import Supernet
from bcnet.training.recipe import Recipe
from bcnet.training.step_plan import STEPS


def trained_supernet(problem: Problem, passes: int, folder: Path, inputs: str) -> Supernet:
    """The supernet in `folder` that was trained for `passes` passes; trained now if it is not there yet."""
    name = f"supernet-{passes}.safetensors"
    # A configured rate is that of networks trained from scratch, which would ruin trained weights.
    own = {"inputs": inputs, "passes": str(passes), "rate": str(FINE_TUNING_RATE)}
    supernet = Supernet(problem.model, problem.space, {})
    found = load_finished(folder / name, own)
    if found is None:
        recipe = Recipe.of(problem.config, passes, FINE_TUNING_RATE)
        checkpoints = CheckpointFiles(folder / f"unfinished-{name}", own)
        result = train(
            replace(supernet, state=first_state(problem, problem.model, recipe)),
            problem.data,
            recipe,
            plan=STEPS["alternating"],
            objective=supernet_objective(problem, recipe),
            checkpoints=checkpoints,
            description=f"training a supernet for {counted(passes, 'pass', 'passes')}",
        )
        found = Finished(result.supernet.state, result.curve, checkpoints.steps())
        files = finished_files(name, found, own)
        write_files({folder / file: content for file, content in files.items()}, [checkpoints.path])
    return replace(supernet, state=dict(found.state))
