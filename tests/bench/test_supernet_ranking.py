"""The benchmark's command, in its tiny form: the machinery, not the science."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from several_processes import as_by_torchrun
from test_channel_bench_macro import KEYS, rows

from bcnet.cli import main

COMMAND = ["bench", "channel-bench-macro", "--table", "table.json", "--data", "digits", "--preset", "tiny"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).normal(0, 0.1, len(KEYS))
    Path("table.json").write_text(json.dumps(rows(dict(zip(KEYS, (90 + noise).tolist(), strict=True)))))
    return tmp_path


@pytest.mark.parametrize(
    ("method", "step"),
    [
        ("unilateral", "us-nets"),
        ("psenet", "plain"),
        pytest.param("bcnetv2", "plain", marks=pytest.mark.slow),
        pytest.param("bcnet", "interleaved", marks=pytest.mark.slow),
    ],
)
def test_the_tiny_benchmark_reports_and_continues_where_it_was_stopped(
    folder: Path, method: str, step: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*COMMAND, "--method", method, "--step", step]
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["settings"] == 12
    assert printed["passes"] == {"us-nets": 3, "plain": 4, "interleaved": 4}[step]
    assert printed["draws"] == (4 if method == "psenet" else 1)
    bench = folder / "runs/channel-bench-macro/bench"
    report = json.loads((bench / "report.json").read_text())
    assert report["figures"] == printed["figures"]
    assert {"accuracy", "expected", "calibrated loss", "loss"} <= set(report["figures"])
    assert (bench / "scatter.png").read_bytes()[:4] == b"\x89PNG"
    sides = {"left"} if method in ("unilateral", "psenet") else {"left", "right"}
    assert all(set(own) == sides for own in report["scores"].values())

    path = bench / "scores.jsonl"
    forget_last(path, 5)
    assert main(command) == 0
    assert "continuing with 7 settings scored" in capsys.readouterr().err
    assert json.loads((bench / "report.json").read_text())["scores"] == report["scores"]


def test_supernets_share_the_passes_and_each_scores_every_setting(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*COMMAND, "--method", "bcnet", "--supernets", "2", "--batch-size", "50", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["supernets"], printed["passes"], printed["batch_size"]) == (2, 4, 50)
    report = json.loads((folder / "runs/channel-bench-macro/bench/report.json").read_text())
    assert all(list(own) == ["left", "right", "left 2", "right 2"] for own in report["scores"].values())
    assert {"accuracy, left", "accuracy, right 2"} <= set(printed["figures"])


def ranked(rank: int, folder: Path, arguments: list[str]) -> int:
    with contextlib.chdir(folder), contextlib.redirect_stderr(io.StringIO()):
        return main(arguments)


@pytest.mark.slow
def test_two_processes_share_out_supernets_and_settings_and_report_what_one_does(folder: Path) -> None:
    command = [*COMMAND, "--method", "bcnet", "--supernets", "2", "--from-scratch", "10", "--run"]
    assert as_by_torchrun(2, ranked, folder, [*command, "several"]) == [0, 0]
    assert as_by_torchrun(1, ranked, folder, [*command, "one"]) == [0]
    one, several = (
        json.loads(Path("runs", name, "bench/report.json").read_text()) for name in ("one", "several")
    )
    assert one.pop("seconds").keys() == several.pop("seconds").keys()
    assert one == several
    weights = [Path("runs", name, "train/supernet-2.safetensors").read_bytes() for name in ("one", "several")]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_scores_of_images_that_are_shared_out_are_not_mixed_with_others(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*COMMAND, "--method", "bcnet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shared"] is False
    kept = folder / "runs/channel-bench-macro/bench/scores.jsonl"
    before = kept.read_bytes().splitlines()
    assert main([*COMMAND, "--method", "bcnet", "--shared", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shared"] is True
    after = kept.read_bytes().splitlines()
    assert after[0] != before[0]  # too few images for halves: the same scores, but none were kept
    assert [json.loads(line[17:]) for line in after[1:]] == [json.loads(line[17:]) for line in before[1:]]


@pytest.mark.slow
def test_settings_trained_from_scratch_predict_the_others_and_are_left_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*COMMAND, "--method", "unilateral", "--from-scratch", "10"]
    assert main(command) == 0
    assert "10 of 10: setting" in capsys.readouterr().err
    bench = folder / "runs/channel-bench-macro/bench"
    report = json.loads((bench / "report.json").read_text())
    trained = report["from_scratch"]
    assert len(trained["accuracy"]) == trained["passes"] == 10
    assert not set(trained["accuracy"]) & set(report["scores"])
    assert {"regression on 10 from scratch", "regression on 10 from scratch, and scores"} <= set(
        report["figures"]
    )

    path = bench / "from_scratch.jsonl"
    forget_last(path, 1)
    path.write_bytes(path.read_bytes().replace(b", 0.", b", 1.", 1))  # an accuracy of another value
    assert main(command) == 0
    err = capsys.readouterr().err
    assert "from_scratch.jsonl: line 2 was changed; what is missing is computed again" in err
    assert "10 of 10: setting" in err
    assert json.loads((bench / "report.json").read_text())["from_scratch"] == trained


def forget_last(path: Path, count: int) -> None:
    """What a command that was killed earlier would have left."""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-count]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ["--from-scratch", "3"],
            "--from-scratch takes 10 or more of the 16,372 settings that are not in the sam",
        ),
        (
            ["--sample", "16384", "--from-scratch", "10"],
            "takes 10 or more of the 0 settings that are not in the sam",
        ),
        (["--preset", "huge"], "--preset is one of full, small, tiny, not 'huge'"),
        (["--space", "vgg"], "--space is one of mobilenet, resnet, not 'vgg'"),
        (
            ["--step", "leap"],
            "--step is one of plain, alternating, sandwich, distilled, us-nets, interleaved, not 'leap'",
        ),
        (["--table", "none.json"], "none.json does not exist"),
        (["--method", "both"], "unknown method 'both'"),
    ],
)
def test_wrong_options_are_explained_in_one_line(
    folder: Path, change: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*COMMAND, *change]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
