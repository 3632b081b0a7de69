"""A run that an earlier version left is read as it is: its results are the models' dumps, its settings agree.

`tests/data/earlier_run` was written by bcnet 0.1 before results had models; latencies in it are made up.
"""

import json
import shutil
from pathlib import Path

import pytest

from bcnet.cli import main
from bcnet.config import load_config
from bcnet.errors import ArtifactError
from bcnet.pipeline import compare, export, search, slice, train
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.results import (
    CompareSummary,
    ExportSummary,
    SearchSummary,
    SliceSummary,
    StageResult,
    TableSummary,
    scored_networks,
)
from bcnet.runs import Run, json_bytes

DATA = Path(__file__).parent.parent / "data/earlier_run"
RUN = Run.named("default")
RESULTS: dict[str, type[StageResult]] = {
    "build-lut": TableSummary,
    "search": SearchSummary,
    "slice": SliceSummary,
    "export": ExportSummary,
    "compare": CompareSummary,
}
SETTINGS = (  # digests that depend on nothing but the configuration and the profile
    "training settings",
    "device",
    "search settings",
    "metric",
    "fine-tuning settings",
    "limits",
    "networks",
)


@pytest.fixture(autouse=True)
def _earlier(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(DATA, folder, dirs_exist_ok=True)
    monkeypatch.syspath_prepend(folder)


@pytest.mark.parametrize("name", RESULTS)
def test_its_results_are_the_dumps_of_todays_models_but_for_the_form_of_budgets(name: str) -> None:
    stage, model = RUN.stage(name), RESULTS[name]
    then = json.loads(stage.path(model.FILE).read_text(encoding="utf-8"))
    now = model.checked(stage).to_json()
    if name == "build-lut":
        assert json_bytes(now) == stage.path(model.FILE).read_bytes()
        return
    budget = {"ms": then.pop("budget_ms"), "share": then.pop("budget_share", None), "fps": None, "p90": False}
    assert now.pop("budget") == budget
    assert now == then


@pytest.mark.parametrize("file", ["history.json", "pareto.json"])
def test_its_scored_networks_are_read_and_written_alike(file: str) -> None:
    stage = RUN.stage("search")
    found = [network.to_json() for network in scored_networks(stage, file)]
    assert json_bytes(found) == stage.path(file).read_bytes()


def test_it_is_listed_with_its_winner_and_its_verdict(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--json"]) == 0
    (listed,) = json.loads(capfd.readouterr().out)["runs"]
    assert listed["problem"] is None
    assert listed["outdated"] == []
    assert listed["verified"] is True
    exported = json.loads(Path("runs/default/export/verify.json").read_text(encoding="utf-8"))
    assert listed["widths"] == [16, 10, 22]
    assert listed["accuracy"] == exported["accuracy"]
    assert listed["latency_ms"] == exported["measured"]["median_ms"]


def test_its_stages_are_not_made_again_for_settings_that_are_the_same() -> None:
    problem = open_problem(load_config(None))
    own = problem.inputs()
    found = RUN.stage("train").inputs()
    if any(own[key] != found[key] for key in own):
        pytest.skip("this version of PyTorch draws other initial weights")
    for name, stage in {
        "train": train,
        "search": search,
        "slice": slice,
        "export": export,
        "compare": compare,
    }.items():
        found, inputs = RUN.stage(name).inputs(), stage.stage_inputs(RUN, problem)
        assert {key: found.get(key) for key in SETTINGS} == {key: inputs.get(key) for key in SETTINGS}


def test_results_of_another_format_are_refused_in_one_line_that_names_the_command() -> None:
    path = Path("runs/default/search/result.json")
    found = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**found, "version": 2}), encoding="utf-8")
    with pytest.raises(
        ArtifactError, match=r"result\.json is from another version of bcnet; run `bcnet search`"
    ):
        SearchSummary.read(RUN.stage("search"))
    path.write_text(json.dumps({key: found[key] for key in found if key != "best"}), encoding="utf-8")
    with pytest.raises(
        ArtifactError, match=r"result\.json: best is not what search wrote; run `bcnet search`"
    ):
        SearchSummary.read(RUN.stage("search"))
