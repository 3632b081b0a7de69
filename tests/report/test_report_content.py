"""What a report states of a run: whole, with a failed check, without a verification, incomplete, damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bcnet.config import load_config
from bcnet.latency_tables.rows import Calibration
from bcnet.pipeline.expected_latency import expected_latency
from bcnet.pipeline.results import FurtherExport
from bcnet.report.charts import charts
from bcnet.report.content import RunReport, run_report
from bcnet.report.layers import Prices
from bcnet.runs import Run, json_bytes
from bcnet.width_search.latency_budget import LatencyBudget
from tests.docs.pages import text_of

RUN = Path("runs/default")


@pytest.fixture
def run(project: Path) -> Run:
    return Run.named("default")


def report(run: Run) -> RunReport:
    return run_report(run, "not asked for", {})


def kinds(found: RunReport) -> list[tuple[str, str]]:
    return [(own.kind, own.stage) for own in found.problems]


def rewrite(run: Run, name: str, file: str, **changes: Any) -> None:
    """Let a stage finish again with other values in its result."""
    stage = run.stage(name)
    manifest = stage.manifest()
    files = {own: stage.path(own).read_bytes() for own in manifest["outputs"]}
    files[file] = json_bytes({**json.loads(files[file]), **changes})
    stage.finish(manifest["inputs"], files)


def test_a_verified_run_is_one_sentence_without_problems(run: Run) -> None:
    exact = {"accuracy": 0.95, "accuracy_lost": 0.004, "state": "given", "median_ms": 9.1, "speedup": 1.9}
    latency = {"median_ms": 4.8, "p90_ms": 5.0, "spread": 0.01, "samples": 10}
    rewrite(run, "export", "verify.json", original=exact, measured=latency, budget={"ms": 5.0})
    (RUN / "compare/manifest.json").unlink()
    found = report(run)
    # The guide quotes this sentence.
    assert f"\n> {found.headline}\n" in text_of("docs/guides/report.md")
    assert found.headline.startswith("1.9 times as fast as the original on cpu, 0.4 points less accurate; ")
    assert kinds(found) == [("missing", "compare")]
    assert found.verified


def test_without_an_original_the_full_network_is_what_it_is_compared_with(run: Run) -> None:
    found = report(run)
    verified = json.loads((RUN / "export/verify.json").read_text())
    (full,) = (own for own in found.networks if own.name == "full (from scratch)")
    assert found.problems == ()
    assert found.reference == "the full network"
    assert found.speedup == verified["original"]["speedup"]
    assert found.accuracy_lost == pytest.approx(full.accuracy - verified["accuracy"])


def test_a_failed_check_comes_first_and_what_was_exported_before_is_what_is_described(run: Run) -> None:
    verified = json.loads((RUN / "export/verify.json").read_text())
    failed = {**verified, "passed": False, "verified": False, "failures": ["accuracy is 0.2 lower"]}
    (RUN / "export/failed.json").write_text(json.dumps(failed))
    (RUN / "compare/result.json").write_text("{}")
    found = report(run)
    assert found.headline.startswith("The last export failed its checks. Of the export before it: ")
    assert found.problems[0].text == (
        "the last export failed its checks: accuracy is 0.2 lower. "
        "The files are those of an earlier export, which passed."
    )
    (RUN / "export/manifest.json").unlink()
    found = report(run)
    assert found.headline.startswith("The last export failed its checks. Of what was searched: ")
    assert found.headline.endswith(" ms, not measured.")
    assert not found.verified
    assert found.measured is None


def test_an_export_that_was_not_verified_says_why_and_what_to_do(run: Run) -> None:
    reason = {
        "verified": False,
        "executed": False,
        "measured": None,
        "full": None,
        "not_verified": "no jetson",
    }
    rewrite(run, "export", "verify.json", **reason, verify_with="copy it", original={"speedup": None})
    found = report(run)
    assert found.problems[0].kind == "unverified"
    assert found.problems[0].text == "not verified: no jetson; to verify it, copy it"
    assert found.headline.startswith("Predicted to be ")
    assert found.headline.endswith(" ms, not measured.")
    assert not found.verified


def test_an_estimated_table_is_stated(run: Run) -> None:
    rewrite(run, "search", "result.json", estimate=True)
    assert ("estimate", "build-lut") in kinds(report(run))


def test_what_is_missing_and_what_is_outdated_is_stated_with_the_command(run: Run) -> None:
    shutil.rmtree(RUN / "build-lut")
    rewrite(run, "search", "result.json", seed=8)
    found = report(run)
    assert kinds(found) == [
        ("missing", "build-lut"),
        ("outdated", "slice"),
        ("outdated", "export"),
        ("outdated", "compare"),
    ]
    assert found.problems[0].text == "build-lut has not been done; run `bcnet build-lut`"
    assert found.problems[-1].text.endswith("; run `bcnet run --compare`")
    assert found.headline.startswith("Outdated: ")
    assert not found.verified


def test_a_comparison_that_nobody_asked_for_is_a_note_with_its_command_and_no_problem(run: Run) -> None:
    shutil.rmtree(RUN / "compare")
    found = report(run)
    options = "--device cpu --batch 1 --threads 1 --precision fp32 --latency 75% --seed 0"
    command = f"bcnet run --compare {options}"
    note = f"a comparison with other networks was not asked for; `{command}` makes it"
    assert found.problems == ()
    assert found.notes[-1] == note
    assert found.commands[0] == f"bcnet run {options}"
    rewrite(run, "export", "verify.json", verified=False, not_verified="no device", verify_with="copy it")
    found = report(run)
    assert kinds(found) == [("unverified", "export")]
    assert note not in found.notes  # nor could there be one


def test_a_comparison_that_was_stopped_is_not_finished(run: Run) -> None:
    (RUN / "compare/manifest.json").unlink()
    found = report(run)
    assert [own.text for own in found.problems] == ["compare is not finished; run `bcnet run --compare`"]
    assert not any("not asked for" in note for note in found.notes)


def test_a_run_in_which_nothing_is_done_is_reported_as_such(folder: Path) -> None:
    found = report(Run.named("none"))
    assert found.headline == "Nothing has been searched yet."
    assert [own.kind for own in found.problems] == ["unverified"] + ["missing"] * 5


def test_a_damaged_result_is_stated_and_all_others_are_shown(run: Run) -> None:
    (RUN / "compare/result.json").write_text("{}")
    found = report(run)
    assert kinds(found) == [("unreadable", "compare")]
    assert "bcnet run" in found.problems[0].text
    assert found.networks == ()
    assert found.candidates != ()


def test_layers_and_steps_add_up_to_the_latency_models_predictions(
    run: Run, opened: Callable[..., Any]
) -> None:
    prices = Prices.of(opened(load_config(None)))
    found = run_report(run, prices, {"seed": 0})
    model, widths = prices.latency, [own.after for own in found.widths]
    assert isinstance(model.calibration, Calibration)
    after = sum(own.after_ms or 0.0 for own in found.layers)
    layers_ms = float(model.layers_ms(model.indices([widths]))[0])
    assert after == pytest.approx(model.calibration.scale * layers_ms)
    assert model(widths) == pytest.approx(found.predicted_ms)
    assert [own.before_ms for own in found.layers] == sorted(
        (own.before_ms or 0.0 for own in found.layers), reverse=True
    )
    for number, group in enumerate(found.widths):
        own = [step for step in found.steps if step.group == group.name]
        ends = [
            [*widths[:number], choice, *widths[number + 1 :]] for choice in (own[-1].narrower, own[0].wider)
        ]
        saved = sum(step.saved_ms or 0.0 for step in own)
        assert saved == pytest.approx(model(ends[1]) - model(ends[0]), abs=1e-9)
        taken = sum(step.saved_ms or 0.0 for step in own if step.taken)
        assert taken == pytest.approx(model(ends[1]) - model(widths), abs=1e-9)
    assert [own.width for own in found.reasons] == widths
    assert all(own.loses is own.gains is None for own in found.reasons)  # a supernet's search measures none


def test_by_a_measured_table_budgets_from_the_fastest_to_the_full_network_can_be_met(
    run: Run, opened: Callable[..., Any]
) -> None:
    problem = opened(load_config(None))
    model, space = problem.table.latency_model(), problem.space
    found = expected_latency(problem.table)
    assert (found.estimate, found.source) == (False, "latency_tables/cpu.json")
    assert found.full_ms == pytest.approx(model(space.original()))
    assert found.fastest_ms is not None
    assert 0 < found.fastest_ms <= model(space.smallest()) + 1e-9
    for number, (name, saved) in enumerate(found.saved_ms.items()):
        own = list(space.original())
        own[number] = space.groups[number].choices[0]
        assert name == space.groups[number].name
        assert saved == pytest.approx(model(space.original()) - model(own))


def test_widths_that_the_table_does_not_have_leave_out_the_layers_alone(
    run: Run, opened: Callable[..., Any]
) -> None:
    prices = Prices.of(opened(load_config(None)))
    sliced = json.loads((RUN / "slice/result.json").read_text())
    rewrite(run, "slice", "result.json", widths=[7, *sliced["widths"][1:]])
    found = run_report(run, prices, {})
    assert found.no_layers is not None
    assert "cpu.json" in found.no_layers or "build-lut" in found.no_layers
    assert found.layers == found.steps == ()
    rewrite(run, "slice", "result.json", widths=sliced["widths"][1:])
    found = run_report(run, prices, {})
    assert found.no_layers == "the run is of a network with other groups than the configured one"
    assert found.widths[0].name == "group 1"


def test_every_epoch_of_the_fine_tuning_is_there(run: Run) -> None:
    found = report(run)
    sliced = json.loads((RUN / "slice/result.json").read_text())
    assert [own.epoch for own in found.tuning] == list(range(1, sliced["epochs"] + 1))
    assert all(0 < own.rate < 1 and own.loss > 0 and 0 <= own.accuracy <= 1 for own in found.tuning)
    rewrite(run, "slice", "result.json", epochs=0, discarded_epochs=1)
    discarded = "fine-tuning made the network worse and was discarded: its curve is of other weights"
    assert discarded in report(run).notes
    path = RUN / "slice/curve.csv"
    path.write_text(path.read_text().replace("epoch,loss", "epoch,lost"))
    found = report(run)
    assert found.tuning == ()
    assert ("unreadable", "slice") in kinds(found)


def test_every_scored_network_is_there_with_the_winner_and_what_was_measured(run: Run) -> None:
    found, searched = report(run), json.loads((RUN / "search/result.json").read_text())
    assert len(found.candidates) == searched["candidates"]
    (winner,) = (own for own in found.candidates if own.winner)
    assert list(winner.widths) == searched["best"]["widths"]
    assert winner.measured is not None
    assert winner.measured.median_ms == searched["best"]["measured"]["median_ms"]
    assert sum(own.front for own in found.candidates) == searched["pareto"]


def test_a_share_is_drawn_as_it_was_measured_beside_the_candidates_and_in_the_comparison(run: Run) -> None:
    compared = json.loads((RUN / "compare/result.json").read_text())
    full_ms = compared["networks"][0]["latency"]["median_ms"]
    assert compared["budget"]["ms"] == pytest.approx(0.75 * full_ms)
    for name, file, ms in (("search", "result", 5.2), ("export", "verify", 5.0), ("compare", "result", 5.1)):
        rewrite(run, name, f"{file}.json", budget={"ms": ms, "share": 0.75})
    found = report(run)
    marks = {chart.name: [ms for _, ms in chart.marks] for chart in charts(found)}
    assert (marks["search"], marks["networks"]) == ([5.2], [5.1])
    assert found.budget == LatencyBudget(ms=5.0, share=0.75)


def test_the_lines_to_paste_run_the_delivered_file(run: Run) -> None:
    names: dict[str, Any] = {}
    exec("\n".join(report(run).deployment), names)
    assert names["outputs"][0].shape == (1, 10)


def test_the_lines_to_paste_for_openvino_run_the_file_with_the_settings_of_its_device(run: Run) -> None:
    pytest.importorskip("openvino")
    rewrite(run, "export", "verify.json", backend="openvino 2026.4.1", device="cpu-openvino")
    names: dict[str, Any] = {}
    exec("\n".join(report(run).deployment), names)
    assert names["outputs"][0].shape == (1, 10)
    wanted = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": "1",
    }
    assert names["settings"] == wanted
    one_bit = str(RUN / "export/model-one-bit.onnx")
    rewrite(run, "export", "verify.json", one_bit_file=one_bit)
    assert any(one_bit in line for line in report(run).deployment)


def test_the_lines_to_paste_run_the_files_of_all_devices(run: Run) -> None:
    pytest.importorskip("openvino")
    verified = json.loads((RUN / "export/verify.json").read_text())
    there = {key: verified[key] for key in FurtherExport.model_fields if key in verified}
    there |= {"device": "cpu-openvino", "backend": "openvino 2026.4.1"}
    rewrite(run, "export", "verify.json", further=[there])
    (RUN / "export/model-cpu-openvino.onnx").write_bytes((RUN / "export/model.onnx").read_bytes())
    lines = report(run).deployment
    second = lines.index("# on cpu-openvino")
    assert any("export/model.onnx" in line for line in lines[:second])
    assert any("export/model-cpu-openvino.onnx" in line for line in lines[second:])
    names: dict[str, Any] = {}
    exec("\n".join(lines[second:]), names)
    assert names["outputs"][0].shape == (1, 10)


def test_the_command_to_repeat_names_device_budget_and_seed(run: Run) -> None:
    assert report(run).commands[0] == (
        "bcnet run --compare --device cpu --batch 1 --threads 1 --precision fp32 --latency 75% --seed 0"
    )
