"""What people and later stages read of a finished run, and a folder in which nothing is made again.

In: a run. Out: its results as values; an error in place of every stage that would run.
"""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from damage import damaged
from steady_run import SEED, essence
from torch import Tensor

from bcnet.cli import main
from bcnet.config import load_config
from bcnet.errors import BcnetError
from bcnet.pipeline import build_lut, compare, export, search, slice, train
from bcnet.pipeline.finished import searched, sliced, sliced_model, trained_supernets, training_records
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.original import trained_state
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.pruned import PrunedNetwork, pruned_by_search
from bcnet.pipeline.route import on_trained_network
from bcnet.runs import Run

AGAIN = "made again"
STAGES = {
    "train": train,
    "build-lut": build_lut,
    "search": search,
    "slice": slice,
    "export": export,
    "run": compare,
}


def values(state: Mapping[str, Tensor]) -> list[Any]:
    """Tensors in a form that can be compared."""
    return sorted((name, str(tensor.dtype), tensor.numpy().tobytes()) for name, tensor in state.items())


def pruned_values(own: PrunedNetwork) -> list[Any]:
    """A pruned network in a form that can be compared."""
    return [own.widths, own.score, own.passes, own.limit_ms, values(own.state)]


def results(run: Run, problem: Problem) -> dict[str, Any]:
    """What later stages and people read of a finished run, as they read it."""
    found: dict[str, Any] = {}

    def keep(name: str, read: Callable[[], Any]) -> None:
        try:
            value = read()
        except BcnetError:
            return
        found[name] = value

    def checked(stage: str, read: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: (run.stage(stage).require({}), read())[1]

    if on_trained_network(problem):
        keep("original", lambda: values(trained_state(run, problem)))
        pruned = checked("search", lambda: pruned_by_search(run, problem).values())
        keep("pruned", lambda: [pruned_values(own) for own in pruned()])
    else:
        keep("supernets", lambda: [values(own.state) for own in trained_supernets(run, problem)])
        keep("records", checked("train", lambda: training_records(run)))
    keep("winner", checked("search", lambda: searched(run, problem)))
    keep("sliced", checked("slice", lambda: sliced(run, problem)))
    keep("network", checked("slice", lambda: values(sliced_model(run, problem).state_dict())))
    keep("latencies", lambda: problem.table.latency_model()(problem.space.largest()))
    for stage in ("export", "compare"):
        keep(stage, checked(stage, lambda stage=stage: essence(run.stage(stage).folder)))
    return found


def go_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it the working folder; a stage that would run there ends with an error."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)

    def again(*_: Any, **__: Any) -> None:
        raise BcnetError(AGAIN)

    for stage in STAGES.values():
        monkeypatch.setattr(stage, "run", again)


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str | None, str]:
    """What a command printed, or None where it was refused; and the last line that it said.

    A refusal is exit code 1 or 2 and one line for people; all else fails here.
    """
    code = main(arguments)
    out, err = capsys.readouterr()
    assert "Traceback" not in err, err
    last = err.splitlines()[-1] if err else ""
    assert code == 0 or (code in (1, 2) and last.startswith("bcnet: ")), (code, err)
    return (out if code == 0 else None), last


def refused_or_alike(
    count: int, time_limit: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    """Damage so many files of the run in the working folder, one at a time; the results without damage.

    A command then prints what it did before, or refuses; what can be read is what it was.
    """
    rng, run = random.Random(SEED), Run.named("default")
    problem = open_problem(load_config(None))
    wanted = results(run, problem)
    assert len(wanted) == 8
    printed, _ = outcome(capsys, "run")
    assert printed
    files = sorted(p for top in ("runs", "latency_tables") for p in Path(top).rglob("*") if p.is_file())
    for _ in range(count):
        with damaged(rng.choice(files), rng, files) as how:
            time_limit(120)
            assert outcome(capsys, "run")[0] in (None, printed), how
            found = results(run, problem)
            assert all(found[name] == wanted[name] for name in found), how
            time_limit(0)
    assert results(run, problem) == wanted
    return wanted


def continue_alike(
    readers: Mapping[Path, Callable[[], list[Any]]], count: int, time_limit: Callable[[float], None]
) -> None:
    """Damage so many files, one at a time: what is read of it are the first of its values, or none."""
    rng = random.Random(SEED)
    wanted = {path: read() for path, read in readers.items()}
    assert all(wanted.values())
    for _ in range(count):
        path = rng.choice(list(readers))
        with damaged(path, rng, list(readers)) as how:
            time_limit(20)
            try:
                found = readers[path]()
            except (BcnetError, ValueError):  # which the command shows with the path
                found = []
            time_limit(0)
            assert found == wanted[path][: len(found)], how
