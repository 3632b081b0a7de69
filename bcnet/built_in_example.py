"""The built-in example, handwritten digits, which is used where nothing is configured.

In: a command, its run and configuration. Out: a line that says so, or an error where the run is of another
network or other data.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from bcnet.config import Config, is_example
from bcnet.errors import ConfigError
from bcnet.progress import say
from bcnet.run_choice import DEFAULT
from bcnet.run_target import bound_to, completed_from
from bcnet.runs import MANIFEST, Run

if TYPE_CHECKING:
    from bcnet.pipeline.problem import Problem

CHECKPOINTS = "checkpoint*.safetensors"  # of a training that is not finished


def require_configured(
    command: str, config: Path | None, run: Run | None, settings: Config
) -> "Problem | None":
    """Report that the built-in example is used where nothing is configured; `settings` are the example's.

    Returns the example's problem where it was opened for that. Raises ConfigError where a stage other than
    `bcnet run` would begin a run of the example, and where the existing run is of another network or other
    data: its configuration is missing then.
    """
    if not is_example(config):
        return None
    if run is not None and command not in ("inspect", "check-lut"):
        begun = next((own for own in (run, Run.named(DEFAULT)) if _has_begun(own)), None)
        if begun is not None and (begun == run or command != "run"):
            problem = _example_of(begun, settings)
            say(f"no bcnet.toml here: {run.folder} continues the built-in example, handwritten digits")
            return problem
        if command != "run":
            raise ConfigError(
                "there is no bcnet.toml here: write one with `bcnet init`, name one with --config, or try "
                "the built-in example with `bcnet run`"
            )
    say("no bcnet.toml here: this is the built-in example, handwritten digits (`bcnet init` writes one)")
    return None


def _has_begun(run: Run) -> bool:
    """Whether a run has a supernet, a part of one, or a table."""
    train = run.stage("train")
    finished = (train.path(MANIFEST), run.stage("build-lut").path(MANIFEST))
    return any(path.exists() for path in finished) or any(train.folder.glob(CHECKPOINTS))


def _example_of(run: Run, settings: Config) -> "Problem":
    """The example's problem.

    Raises ConfigError where a run's supernet, or its table where it has none, is of another one.
    """
    from bcnet.pipeline.open_problem import open_problem
    from bcnet.pipeline.training_file import inputs_of  # torch with it

    problem = open_problem(settings)
    train, table = run.stage("train"), run.stage("build-lut")
    if train.path(MANIFEST).exists():
        found = train.inputs()
    elif checkpoints := sorted(train.folder.glob(CHECKPOINTS)):
        found = inputs_of(checkpoints[0]) or {}
    else:
        bound = bound_to(run)
        own = settings if bound is None else completed_from(settings, bound, [])
        measured = problem if own == settings else open_problem(own)
        if table.inputs().get("model") == measured.table.model_key:
            return problem
        found = {}

    def is_of(other: "Problem") -> bool:
        wanted = other.inputs()  # not the space: that of another device may differ
        return all(found.get(key) == wanted[key] for key in ("model", "data"))

    if is_of(problem):
        return problem
    if found and is_of(open_problem(Config(seed=settings.seed))):  # all defaults, which were the example
        raise ConfigError(
            f"there is no bcnet.toml here, and {run.folder} is of an earlier version's built-in example: "
            "to continue it, write an empty bcnet.toml; for today's example, use another folder"
        )
    raise ConfigError(
        f"there is no bcnet.toml here, and {run.folder} does not belong to the built-in example with seed "
        f"{settings.seed}: restore its bcnet.toml, name one with --config, or use another folder"
    )
