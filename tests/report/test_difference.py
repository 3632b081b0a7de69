"""`bcnet diff`: two runs side by side from their results alone, with intervals where they are known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Refused
from result_examples import EXPORT, SEARCH, SLICE

from bcnet.cli import main
from bcnet.pipeline.accuracy import paired_difference
from bcnet.pipeline.answers import FILE, correct_of
from bcnet.pipeline.results import Answers
from bcnet.report.difference import difference_of
from bcnet.runs import Run, json_bytes

IMAGES = 1000
TARGET = {"device": "cpu", "batch": 1, "threads": 1, "precision": "fp32"}


def right(count: int) -> np.ndarray:
    """Answers of which the first are right."""
    return np.arange(IMAGES) < count


def finish(folder: str, ms: float, correct: np.ndarray | None, **changed: Any) -> Run:
    """A run whose export was measured at `ms`, with these answers."""
    run = Run(Path(folder))
    widths = changed.get("widths", (64, 32, 16))
    measured = EXPORT.measured
    assert measured is not None
    best = SEARCH.best.model_copy(update={"widths": widths})
    target = {**TARGET, "device": changed.get("device", "cpu")}
    search = SEARCH.model_copy(
        update={"best": best, "groups": ("a", "b", "c"), "target": target, "device": target["device"]}
    )
    accuracy = 0.9 if correct is None else float(correct.mean())
    latency = {"median_ms": ms, "p90_ms": ms, "spread": 0.01, "samples": 10}
    results = {
        "search": search.to_json(),
        "slice": {**SLICE.to_json(), "widths": widths, "params": changed.get("params", 1000)},
        "export": {**EXPORT.to_json(), "measured": latency, "accuracy": accuracy, "noise": 0.01},
    }
    inputs: dict[str, str] = {}
    for name, found in results.items():
        stage, file = run.stage(name), "verify.json" if name == "export" else "result.json"
        files = {file: json_bytes(found), **({"history.json": b"[]"} if name == "search" else {})}
        if name == "export" and correct is not None:
            bits = np.packbits(correct).tobytes().hex()
            answers = Answers(test=changed.get("test", "photographs"), images=IMAGES, correct=bits)
            files[FILE] = json_bytes(answers.to_json())
        stage.finish(inputs, files)
        inputs = {**inputs, name: stage.digest()}
    return run


def printed(capfd: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    capfd.readouterr()
    assert main(["diff", *words]) == code
    return capfd.readouterr().out


@pytest.mark.usefixtures("folder")
def test_accuracies_are_compared_image_by_image_and_latencies_within_their_noise(
    capfd: pytest.CaptureFixture[str],
) -> None:
    finish("base/runs/default", 5.0, right(900))
    finish("runs/new", 4.0, right(880), widths=(64, 24, 16), params=800)
    found = json.loads(printed(capfd, "base/runs/default", "new", "--json"))
    accuracy, latency, _, parameters, _, size = found["changes"]
    mean, low, high = paired_difference(right(880), right(900), None)
    assert (accuracy["change"], accuracy["low"], accuracy["high"]) == pytest.approx((mean, low, high))
    assert mean == pytest.approx(-0.02)
    assert accuracy["separable"]
    assert latency["change"] == pytest.approx(-0.2)
    # The noise of both, 1 %, and 2 % between two sessions.
    assert (latency["low"], latency["high"]) == pytest.approx((0.8 * 0.96 - 1, 0.8 * 1.04 - 1))
    assert parameters == {"name": "parameters", "first": 1000, "second": 800, "change": pytest.approx(-0.2)}
    assert size["change"] == 0
    assert found["groups"] == [{"name": "b", "first": 32, "second": 24}]
    assert found["of_groups"] == 3
    assert (found["status"], found["exit_code"]) == ("ok", 0)


@pytest.mark.usefixtures("folder")
def test_markdown_has_a_row_a_figure_and_the_widths_folded(capfd: pytest.CaptureFixture[str]) -> None:
    finish("runs/a|b", 5.0, right(900))
    finish("runs/new", 5.1, right(899), widths=(64, 24, 16))
    lines = printed(capfd, "runs/a|b", "new", "--markdown").splitlines()
    assert lines[0] == "### runs/new against runs/a|b, on cpu"
    assert lines[2] == r"|  | runs/a\|b | runs/new | change | interval |"
    assert lines[3] == "| --- | ---: | ---: | ---: | ---: |"
    assert lines[4] == (
        "| accuracy | 90.00% | 89.90% | -0.10 points | -0.30 to +0.10 points, not separable |"
    )
    assert lines[5].startswith("| latency (ms) | 5.000 | 5.100 | +2.0% | -2.1% to +6.1%, not separable |")
    assert "<details><summary>another width in 1 of 3 groups</summary>" in lines
    assert "| b | 32 | 24 |" in lines
    rows = [line for line in lines if line.startswith("|")]
    assert {line.count("|") - line.count(r"\|") for line in rows} == {4, 6}


@pytest.mark.usefixtures("folder")
def test_what_is_worse_than_allowed_fails_and_what_cannot_be_decided_is_inconclusive(
    capfd: pytest.CaptureFixture[str],
) -> None:
    finish("runs/a", 5.0, right(900))
    finish("runs/slower", 5.5, right(897))
    finish("runs/worse", 5.0, right(850))
    finish("runs/unknown", 5.0, None)
    finish("runs/jetson", 9.0, right(900), device="jetson")
    assert "runs/slower" in printed(capfd, "a", "slower")
    out = printed(capfd, "a", "slower", "--max-slowdown", "5%", code=3)
    assert out.splitlines()[-1] == "worse: the slowdown is above what is allowed"
    assert "ok" not in printed(capfd, "a", "slower", "--max-slowdown", "12%")
    out = printed(capfd, "a", "slower", "--max-loss", "0.2", code=4)
    assert "inconclusive: the loss of the metric is above what is allowed, but not separable" in out
    assert "worse: the loss" in printed(capfd, "a", "worse", "--max-loss", "0.2", code=3)
    assert printed(capfd, "worse", "a", "--max-loss", "0.2")
    out = printed(capfd, "a", "jetson", "--max-slowdown", "5%", code=4)
    assert "latencies are not compared: they are of cpu (batch 1, threads 1, precision fp32)" in out
    assert "the slowdown is not known" in out
    out = printed(capfd, "a", "unknown")
    assert "the metric has no interval: answers to single test images are not kept in both runs" in out


@pytest.mark.usefixtures("folder")
def test_other_test_images_are_not_paired(capfd: pytest.CaptureFixture[str]) -> None:
    finish("runs/a", 5.0, right(900))
    finish("runs/b", 5.0, right(900), test="drawings")
    out = printed(capfd, "a", "b")
    assert "the metric has no interval: the test images are not the same" in out
    assert " to " not in next(line for line in out.splitlines() if line.strip().startswith("accuracy"))


def test_an_export_keeps_which_images_it_classifies_correctly(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = Answers.model_validate_json(Path("runs/default/export/answers.json").read_text())
    verified = json.loads(Path("runs/default/export/verify.json").read_text())
    correct = correct_of(answers)
    assert len(correct) == answers.images == 60
    assert correct.mean() == pytest.approx(verified["accuracy"])
    monkeypatch.chdir(project.parent)
    run = Run(Path("project/runs/default"))
    found = difference_of(run, run)
    assert (found.changes[0].low, found.changes[0].high) == (0, 0)
    assert found.notes == ()


@pytest.mark.usefixtures("folder")
def test_a_run_without_a_result_is_refused(refused: Refused) -> None:
    finish("runs/a", 5.0, right(900))
    Path("runs/empty").mkdir()
    assert "there is no run 'b'; available: a, empty" in refused(2, "diff", "a", "b")
    assert "runs/empty has no result yet; run `bcnet search --run empty`" in refused(1, "diff", "a", "empty")
    assert "--markdown and --json exclude each other" in refused(2, "diff", "a", "a", "--markdown", "--json")
