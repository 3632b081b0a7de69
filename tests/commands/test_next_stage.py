"""The next command after a stage is that of the first one that is really outstanding."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bcnet.cli import main
from bcnet.commands.next_stage import next_command
from bcnet.config import load_config
from bcnet.latency_tables.table import LatencyTable
from bcnet.pipeline.problem import Problem
from bcnet.runs import Run, json_bytes

RUN, TABLE = Path("runs/default"), Path("latency_tables/cpu.json")


@pytest.fixture
def problem(project: Path, opened: Callable[..., Any]) -> Problem:
    found: Problem = opened(load_config(None))
    return found


def calibrated_again() -> None:
    table = LatencyTable.load(TABLE)
    table.calibrations = {key: replace(own, offset_ms=0.25) for key, own in table.calibrations.items()}
    table.save(TABLE)


def without_rows() -> None:
    table = LatencyTable.load(TABLE)
    table.rows.clear()
    table.save(TABLE)


def searched_again() -> None:
    stage = Run.named("default").stage("search")
    manifest = stage.manifest()
    files = {name: stage.path(name).read_bytes() for name in manifest["outputs"]}
    files["result.json"] = json_bytes({**json.loads(files["result.json"]), "seed": 8})
    stage.finish(manifest["inputs"], files)


def removed(name: str) -> Callable[[], None]:
    return lambda: shutil.rmtree(RUN / name)


@pytest.mark.parametrize(
    ("change", "command"),
    [
        (lambda: None, ""),
        (removed("compare"), ""),  # which has to be asked for
        (removed("build-lut"), ""),  # the table is complete, whichever run it was built for
        (TABLE.unlink, "bcnet build-lut"),
        (without_rows, "bcnet build-lut"),
        (calibrated_again, "bcnet search"),
        (removed("train"), "bcnet train"),
        (removed("search"), "bcnet search"),
        (searched_again, "bcnet slice"),
        (removed("slice"), "bcnet slice"),
        (removed("export"), "bcnet export"),
        (lambda: (RUN / "slice/manifest.json").write_text("{}"), "bcnet slice"),
    ],
)
def test_the_first_stage_that_is_outstanding_is_next(
    problem: Problem, change: Callable[[], object], command: str
) -> None:
    change()
    assert next_command(Run.named("default"), problem) == command


def test_the_next_command_names_the_run_and_the_configuration(problem: Problem) -> None:
    assert next_command(Run.named("night", Path("a.toml")), problem) == (
        "bcnet train --run night --config a.toml"
    )


def test_a_budget_is_proposed_only_where_none_is_configured(problem: Problem) -> None:
    removed("search")()
    search = problem.config.search.model_copy(update={"latency": None})
    without = replace(problem, config=problem.config.model_copy(update={"search": search}))
    assert next_command(Run.named("default"), without) == "bcnet search --latency 60%"


def test_after_a_training_the_table_that_is_there_is_not_built_again(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    removed("search")()
    assert main(["train"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "next       bcnet search"
