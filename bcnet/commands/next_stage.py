"""Which command is next. In: a run and its problem. Out: the command of the first stage that is not done."""

from collections.abc import Mapping, Sequence

from bcnet.errors import BcnetError
from bcnet.pipeline import search
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.search_inputs import DEFAULT_SHARE
from bcnet.run_list import STAGES, outdated
from bcnet.runs import MANIFEST, Run


def next_command(run: Run, problem: Problem) -> str:
    """The command of the first stage that is not done, or whose sources have been replaced since; or nothing.

    A latency table is done where it is complete, whichever run it was built for. A comparison has to be asked
    for, so that nothing is next after the export. No device is reached.
    """
    tables = _tables(problem)
    done = [name for name in STAGES if run.stage(name).path(MANIFEST).exists()]
    for name in STAGES[:-1]:
        is_done = tables is not None if name == "build-lut" else _is_current(run, name, done, tables or {})
        if not is_done:
            command = run.stage(name).command
            return f"{command}{_budget(problem)}" if name == "search" else command
    return ""


def _tables(problem: Problem) -> Mapping[str, str] | None:
    """What a search records of its latency tables; None where one is missing or not complete."""
    every = [own for name in problem.precisions for own in problem.at(name).devices]
    if not all(own.table.path.exists() for own in every):
        return None  # known without the network's graph, which takes seconds
    try:
        return search.table_inputs(problem)
    except BcnetError:
        return None


def _is_current(run: Run, name: str, done: Sequence[str], tables: Mapping[str, str]) -> bool:
    """Whether a stage is finished, and what it was made from is still what there is."""
    if name not in done:
        return False
    made_from = tables if name == "search" else {}
    try:
        inputs = run.stage(name).inputs()
        return all(inputs.get(key) == made_from[key] for key in made_from) and not outdated(run, name, done)
    except BcnetError:
        return False


def _budget(problem: Problem) -> str:
    """The option that gives a search its budget; nothing where one is configured."""
    own = problem.config.search
    given = own.within_latency or own.bounded or own.min_accuracy is not None
    return "" if given else f" --latency {DEFAULT_SHARE}"
