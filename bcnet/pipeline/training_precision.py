"""The precision of a run's trainings. In: a recipe, what estimates its duration. Out: the faster recipe.

On a CPU, bfloat16 may be slower than float32, as for the weight gradients of depthwise convolutions; so may
float16 on GPUs before tensor cores. Both are timed before the first long training of a run, and
`precision.json` keeps the choice: a training that continues gives the same result, and networks that are
compared are trained alike.
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from bcnet.config import Config
from bcnet.errors import ArtifactError
from bcnet.pipeline.problem import Problem
from bcnet.progress import announce, say, working
from bcnet.reading import JSON_BYTES, parse_json, read_text
from bcnet.runs import Run, digest, json_bytes, write_file
from bcnet.training.distributed import connected
from bcnet.training.recipe import Recipe

FILE = "precision.json"  # in the run's folder
HALVES = {"bfloat16", "float16"}
LONG = 60.0  # seconds; shorter trainings take half precision
FASTER = 0.95  # of its time: float32 is taken where it needs less


def announced(
    run: Run,
    problem: Problem,
    what: str,
    recipe: Recipe,
    seconds_of: Callable[[Recipe], float],
    *,
    begun: bool = False,
) -> Recipe:
    """The recipe in the run's precision, which is timed now where it matters; the duration is announced.

    `seconds_of` estimates a recipe's duration from a few steps. What has `begun` stays in its precision.
    """
    known = kept_precision(run, problem, recipe)
    recipe = known or recipe
    seconds = seconds_of(recipe)
    if seconds > LONG and known is None and not begun and _is_timed(problem.config, recipe):
        with working(f"timing training steps in {_half(recipe)} and in float32"):
            recipe, seconds = _faster(recipe, seconds_of, seconds)
        write_file(run.folder / FILE, json_bytes({"inputs": _inputs(problem), _half(recipe): recipe.amp}))
    announce(what, seconds)
    return recipe


def faster(config: Config, recipe: Recipe, seconds_of: Callable[[Recipe], float]) -> Recipe:
    """The recipe in the precision that a run of this configuration would choose for a training."""
    if not _is_timed(config, recipe) or (seconds := seconds_of(recipe)) <= LONG:
        return recipe
    return _faster(recipe, seconds_of, seconds)[0]


def kept_precision(run: Run, problem: Problem, recipe: Recipe) -> Recipe | None:
    """The recipe in the precision that was chosen for the run; None where none was, or the setting is fixed.

    Raises ArtifactError where the file was damaged.
    """
    path = run.folder / FILE
    if not path.exists() or not _is_open(problem.config, recipe):
        return None
    try:
        found = parse_json(read_text(path, JSON_BYTES))
        chosen = found.get(_half(recipe))
        if found["inputs"] != _inputs(problem) or (chosen is None and found.keys() & HALVES):
            return None  # for another network, or another device
        if not isinstance(chosen, bool):
            raise ValueError(f"{_half(recipe)} is not true or false")
        return replace(recipe, amp=chosen)
    except (ValueError, KeyError, TypeError, AttributeError) as cause:
        raise ArtifactError(
            f"{path} cannot be read ({cause}): set train.amp, or delete it to time both precisions again"
        ) from None


def _is_open(config: Config, recipe: Recipe) -> bool:
    """Whether it is still undecided: GPUs that support bfloat16 are always faster in it."""
    slower = recipe.device == "cpu" or recipe.half == torch.float16
    return recipe.amp and slower and config.train.amp is None


def _is_timed(config: Config, recipe: Recipe) -> bool:
    """Whether it is timed here. Several processes must agree, so they take what one process chose before."""
    return _is_open(config, recipe) and connected().size == 1


def _half(recipe: Recipe) -> str:
    """The name of the recipe's half precision."""
    return str(recipe.half).removeprefix("torch.")


def _inputs(problem: Problem) -> str:
    return digest([problem.inputs(), problem.config.train.batch_size])


def _faster(recipe: Recipe, seconds_of: Callable[[Recipe], float], first: float) -> tuple[Recipe, float]:
    """The faster recipe and its duration, by two alternating estimates each; the `first` is known."""
    found = {True: [first], False: []}
    for amp in (False, True, False):
        found[amp].append(seconds_of(replace(recipe, amp=amp)))
    half = _half(recipe)
    share = min(found[False]) / min(found[True])
    amp = share >= FASTER
    say(
        f"training in {half if amp else 'float32'}: here float32 takes {share:.0%} of {half}'s time "
        "(train.amp sets one of them)"
    )
    return replace(recipe, amp=amp), min(found[amp])
