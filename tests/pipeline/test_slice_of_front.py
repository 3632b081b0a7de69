"""From `bcnet search --pareto` and bounds through the later stages, on a tiny project."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import CONFIG, Refused
from onnx import numpy_helper

from bcnet.cli import main
from bcnet.plain import milliseconds

RUN = Path("runs/default")


def read(path: str) -> Any:
    return json.loads((RUN / path).read_text(encoding="utf-8"))


def done(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, Any], str]:
    """The JSON object that a command printed, and what it said."""
    capfd.readouterr()
    code = main([*arguments, "--json"])
    out, err = capfd.readouterr()
    assert code == 0, err
    return json.loads(out), err


def test_a_point_of_the_front_is_sliced_exported_and_verified_against_its_own_budget(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found, _ = done(capfd, "search", "--pareto", "--generations", "2")
    front = read("search/pareto.json")
    assert found["pareto"] == len(front) >= 1
    assert found["searched_to_ms"] is None
    latencies = [point["predicted_ms"] for point in front]
    assert latencies == sorted(latencies)
    scored = [candidate["predicted_ms"] for candidate in read("search/history.json")]
    assert max(scored) == pytest.approx(found["full_predicted_ms"], abs=1e-4)
    budget = 3 * latencies[0]  # the machine may be busy when it is measured
    sliced, said = done(capfd, "slice", "--latency-ms", str(budget))
    assert "is sliced" in said
    assert "measured at" in said
    assert sliced["budget"]["ms"] == budget
    assert sliced["predicted_ms"] <= budget
    assert read("search/result.json") == found  # nothing was searched again
    exported, said = done(capfd, "export")
    assert "slicing" not in said
    assert exported["budget"]["ms"] == budget
    assert exported["predicted_ms"] == sliced["predicted_ms"]
    assert exported["measured"]["median_ms"] <= budget * 6
    metadata = {entry.key: entry.value for entry in onnx.load(RUN / "export/model.onnx").metadata_props}
    assert metadata["widths"] == "-".join(map(str, sliced["widths"]))


@pytest.mark.slow
def test_a_run_with_a_budget_of_its_own_for_the_slice_compares_that_point(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = CONFIG.replace('latency = "75%"', "pareto = true").replace("[slice]", '[slice]\nlatency = "90%"')
    Path("bcnet.toml").write_text(text, encoding="utf-8")
    found, _ = done(capfd, "run")
    sliced = read("slice/result.json")
    assert found["networks"][2]["widths"] == sliced["widths"]
    full = found["networks"][0]["latency"]  # as it was measured beside the others
    assert found["budget"]["ms"] == pytest.approx(0.9 * full["median_ms"])
    assert sliced["budget"]["share"] == 0.9
    exported = read("export/verify.json")
    assert exported["budget"]["ms"] == pytest.approx(0.9 * exported["full"]["median_ms"])
    _, said = done(capfd, "run")
    assert said.count("already done") == 6
    # Without it the winner is sliced, from the same search.
    Path("bcnet.toml").write_text(text.replace('latency = "90%"\n', ""), encoding="utf-8")
    _, said = done(capfd, "run")
    assert said.count("already done") == 3
    assert read("slice/result.json")["widths"] == read("search/result.json")["best"]["widths"]


@pytest.mark.slow
def test_a_search_for_one_budget_has_no_front_and_only_its_winner_serves_another(
    project: Path, capfd: pytest.CaptureFixture[str], refused: Refused
) -> None:
    search = read("search/result.json")
    reached, winner = search["searched_to_ms"], search["best"]
    between = (winner["predicted_ms"] + reached) / 2
    assert winner["predicted_ms"] < between < reached
    for wanted in (1.2 * reached, winner["predicted_ms"] / 2):
        line = refused(1, "slice", "--latency-ms", str(wanted))
        assert (
            f"this search looked for one budget of {milliseconds(reached)} ms and has no front to take"
            in line
        )
        assert f"a network of {milliseconds(wanted)} ms from" in line
        assert (
            "the front with `bcnet search --pareto`, or this budget with `bcnet search --latency-ms" in line
        )
    assert "`bcnet search --latency 90%`" in refused(1, "slice", "--latency", "90%")
    sliced, _ = done(capfd, "slice", "--latency-ms", str(between), "--epochs", "0")
    assert sliced["budget"]["ms"] == between
    assert sliced["predicted_ms"] <= between
    done(capfd, "slice")
    assert read("slice/result.json")["budget"]["ms"] == read("search/result.json")["budget"]["ms"]


def test_a_front_that_is_far_from_a_budget_or_above_it_says_where_its_points_are(
    project: Path, capfd: pytest.CaptureFixture[str], refused: Refused
) -> None:
    done(capfd, "search", "--pareto")
    slowest = read("search/pareto.json")[-1]["predicted_ms"]
    _, said = done(capfd, "slice", "--latency-ms", str(50 * slowest), "--epochs", "0")
    assert (
        f"inside {milliseconds(50 * slowest)} ms takes {milliseconds(slowest)} ms: it has none beyond" in said
    )
    line = refused(1, "slice", "--latency-ms", "0.00001")
    assert "no point of the search's front is within 1e-05 ms: the fastest takes 0." in line
    assert "% of the original network's); raise the budget, or search for this one with `bcnet search" in line


def test_a_slice_takes_one_kind_of_budget(project: Path, refused: Refused) -> None:
    assert "slice: give only one of latency_ms and latency" in refused(
        2, "slice", "--latency-ms", "5", "--latency", "60%"
    )
    assert "60%" in refused(2, "slice", "--latency", "60")


def test_bounds_alone_and_beside_a_budget_hold_for_the_exported_file(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("bcnet.toml").write_text(CONFIG.replace('latency = "75%"\n', ""), encoding="utf-8")
    found, _ = done(
        capfd, "search", "--max-params", "900000", "--max-macs", "12000000", "--max-size-mb", "2.5"
    )
    assert found["budget"] is None
    assert found["params"] <= 900_000
    assert found["macs"] <= 12_000_000
    assert found["max_size_mb"] == 2.5
    assert found["best"]["measured"]["median_ms"] > 0
    exported, _ = done(capfd, "export")
    assert exported["budget"] is None
    weights = onnx.load(RUN / "export/model.onnx").graph.initializer
    stored = sum(numpy_helper.to_array(entry).nbytes for entry in weights)
    assert stored <= 2_500_000
    assert found["size_mb"] == pytest.approx(stored / 1e6, abs=1e-6)


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--max-params", "1000", "at most 1,000 parameters: the narrowest has"),
        ("--max-macs", "1000", "at most 1,000 multiply-accumulates: the narrowest has"),
        ("--max-size-mb", "0.001", "at most 0.001 megabytes of weights at fp32: the narrowest has"),
    ],
)
def test_a_bound_below_the_narrowest_network_is_one_line(
    project: Path, refused: Refused, flag: str, value: str, message: str
) -> None:
    line = refused(1, "search", flag, value)
    assert message in line
    assert f"raise search.{flag[2:].replace('-', '_')}" in line


def test_a_soft_fitness_may_hand_over_what_is_over_the_budget_and_nothing_is_held_to_it(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = CONFIG.replace(
        "[search]", '[search]\nfitness = "soft"\nover_budget = true\nlatency_exponent = 0.0'
    )
    Path("bcnet.toml").write_text(text.replace('"75%"', '"1%"'), encoding="utf-8")
    capfd.readouterr()
    assert main(["search", "--json"]) == 1  # even so, a budget has to be possible
    assert "no network meets" in capfd.readouterr().err
    Path("bcnet.toml").write_text(text, encoding="utf-8")
    found, _ = done(capfd, "search")
    assert found["budget"] is None
    assert found["target_ms"] == pytest.approx(0.75 * found["full_predicted_ms"], rel=1e-3)
    assert np.isfinite(found["best"]["measured"]["median_ms"])
