"""The benchmark on one's own network, in its smallest form."""

import json
from pathlib import Path

import pytest

from tests.bench.small_networks import CONFIG, run_benchmark


def ranked(monkeypatch: pytest.MonkeyPatch, networks: int = 10) -> None:
    given = ["--networks", str(networks), "--epochs", "1", "--passes", "2", "--seeds", "1"]
    run_benchmark(monkeypatch, "rank_own.py", *given)


def test_random_networks_are_trained_ranked_and_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bcnet.toml").write_text(CONFIG, encoding="utf-8")
    ranked(monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("10 networks, accuracies ")
    assert [line.split(" | ")[0] for line in lines[4:]] == [
        "| unilateral-0",
        "| bcnet-0",
        "| *multiply-accumulates*",
        "| *sum of the widths' logarithms*",
        "| *the truth, expected*",
    ]
    found = json.loads(Path("rank_own.json").read_text(encoding="utf-8"))
    assert {len(scores) for scores in (found["scratch"], *found["supernets"].values())} == {10}
    first, *_ = found["scratch"]
    before = found["scratch"].pop(first)
    Path("rank_own.json").write_text(json.dumps(found), encoding="utf-8")
    ranked(monkeypatch)
    printed = capsys.readouterr()
    assert printed.err.count("network 1 of 10") == 1
    assert "network 2 of 10" not in printed.err  # those that were kept are not trained again
    assert printed.out.splitlines() == lines
    assert json.loads(Path("rank_own.json").read_text(encoding="utf-8"))["scratch"][first] == before
    with pytest.raises(SystemExit, match="is of other settings"):
        ranked(monkeypatch, networks=11)


def test_a_preset_trains_by_its_own_steps_in_a_space_that_has_the_networks(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bcnet.toml").write_text(CONFIG, encoding="utf-8")
    given = ["--networks", "8", "--epochs", "1", "--passes", "2", "--seeds", "1"]
    run_benchmark(monkeypatch, "rank_own.py", *given, "--methods", "bcnetv2-paper")
    assert "| bcnetv2-paper-0 | " in capsys.readouterr().out
    space = json.loads(Path("runs/bcnetv2-paper-0/train/space.json").read_text(encoding="utf-8"))
    assert {len(group["choices"]) for group in space["groups"]} == {4}
