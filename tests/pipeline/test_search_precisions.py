"""A search in several precisions: tables, the comparison as delivered, and what later stages make of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import CONFIG, measure_briefly

from bcnet.cli import main
from bcnet.config import load_config
from bcnet.pipeline.finished import as_searched, sliced_model
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.quantisation import delivered_score
from bcnet.report.charts import charts
from bcnet.report.written import report_of
from bcnet.runs import Run

RUN = Path("runs/default")
SEVERAL = '[model]\nweights = "trained.pt"\n' + CONFIG.replace(
    "[search]\n", '[search]\nprecisions = ["int8"]\ntrials = 1\n'
).replace("[slice]\n", '[slice]\ninherit = "l1"\n')


def result(stage: str, file: str = "result.json") -> Any:
    return json.loads((RUN / stage / file).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(trained_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose search compared fp32 and int8, and whose winner is exported."""
    path = shutil.copytree(trained_project, tmp_path_factory.mktemp("precisions") / "folder")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        measure_briefly(patch)
        Path("bcnet.toml").write_text(SEVERAL, encoding="utf-8")
        assert main(["run", "--compare"]) == 0
    return path


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def test_every_precision_has_a_table(here: Path) -> None:
    table = result("build-lut", "report.json")
    assert [own["precision"] for own in table["precisions"]] == ["int8"]
    assert table["precisions"][0]["calibration"]["setting"]["precision"] == "int8"
    assert table["calibration"]["setting"]["precision"] == "fp32"
    problem = open_problem(load_config(None))
    assert problem.precisions == ("fp32", "int8")
    whole = problem.space.original()
    ms = [problem.at(own).table.latency_model()(whole) for own in problem.precisions]
    assert ms[0] != ms[1]
    assert problem.at("int8") is problem.at("int8")
    assert problem.at("fp32") is problem


def test_the_winner_is_the_best_as_delivered_inside_the_one_budget(here: Path) -> None:
    found = result("search")
    first, *others = found["precisions"]
    assert found["precision"] == first["precision"]
    assert found["best"]["widths"] == first["best"]["widths"]
    assert all(first["loss"] <= own["loss"] for own in others)
    limit = found["budget"]["ms"]
    for own in found["precisions"]:
        assert own["best"]["measured"]["median_ms"] <= limit * 1.5  # of the same milliseconds
    own_ms = {own["precision"]: own["full_predicted_ms"] for own in found["precisions"]}
    problem = open_problem(load_config(None))
    full = problem.table.latency_model()(problem.space.original())
    assert found["full_predicted_ms"] == pytest.approx(full, rel=1e-3)
    assert own_ms["int8"] != found["full_predicted_ms"]


def test_later_stages_deliver_in_the_precision_that_won(here: Path) -> None:
    found, verified = result("search"), result("export", "verify.json")
    assert verified["precision"] == found["precision"]
    assert verified["passed"]
    run, problem = Run.named("default"), open_problem(load_config(None))
    won = as_searched(run, problem)
    assert won.profile.precision == found["precision"]
    assert 0 <= delivered_score(won, sliced_model(run, won)).accuracy <= 1
    assert found["budget"]["share"] == 0.75
    # The share is of the original in the device's own precision, which is timed beside the file.
    assert verified["budget"]["ms"] == pytest.approx(0.75 * verified["full"]["median_ms"])


def test_the_original_is_compared_in_its_own_precision_and_the_others_in_the_winners(here: Path) -> None:
    compared, won = result("compare"), result("search")["precision"]
    own = {row["name"]: row.get("precision", "fp32") for row in compared["networks"]}
    assert own == {"original": "fp32", "uniform (inherited)": won, "found (inherited)": won}
    noted = f"at fp32: original; all others at {won}" in compared["notes"]
    assert noted is (won != "fp32")


def test_the_search_says_which_precision_won_and_by_how_much(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bcnet.pipeline.results import SearchSummary
    from bcnet.show import show_summary

    found = SearchSummary.read(Run.named("default").stage("search"))
    assert found.precisions is not None
    show_summary(found)
    (line,) = (own for own in capsys.readouterr().out.splitlines() if own.startswith("precision"))
    first, second = found.precisions
    assert f"{first.precision}, {first.accuracy:.2%} as delivered" in line
    assert f"{100 * (first.accuracy - second.accuracy):+.2f} points against {second.precision}" in line


def test_the_report_draws_a_front_for_each_precision(here: Path) -> None:
    config = load_config(None)
    report = report_of(Run.named("default"), config, lambda: open_problem(config))
    (chart,) = (own for own in charts(report) if own.name == "precisions")
    fronts = [own for own in chart.series if own.name.startswith("front at ")]
    found = result("search")["precisions"]
    assert [own.name for own in fronts] == [f"front at {own['precision']}" for own in found]
    assert len({own.role for own in fronts}) == len({own.marker for own in fronts}) == 2
    for own, stored in zip(fronts, found, strict=True):
        assert sorted(own.y) == sorted(100 * each["accuracy"] for each in stored["front"])
    assert f" at {result('search')['precision']}" in report.headline


def test_a_search_that_is_done_is_not_outdated_until_the_precisions_change(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--compare"]) == 0
    assert capfd.readouterr().err.count("already done") == 6
    run, problem = Run.named("default"), open_problem(load_config(None, {"search": {"precisions": ()}}))
    from bcnet.pipeline.search import stage_inputs

    assert run.stage("search").outdated(stage_inputs(run, problem)) == "table at int8 changed"


def test_precisions_are_compared_inside_a_budget_alone(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("other.toml").write_text('[search]\nmin_accuracy = 0.5\nprecisions = ["int8"]\n', encoding="utf-8")
    assert main(["search", "--config", "other.toml"]) == 1
    assert "precisions need a latency budget" in capfd.readouterr().err
