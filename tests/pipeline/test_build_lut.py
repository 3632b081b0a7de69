"""`bcnet build-lut` on a project: several settings in one table, and where its rows come from."""

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import PROFILE, Refused

from bcnet import LatencyTable
from bcnet.cli import main
from bcnet.hw_profiles import HwProfile
from bcnet.latency_tables.rows import Session
from bcnet.pipeline import build_lut as stage

TABLE = Path("latency_tables/cpu.json")


def test_one_table_holds_several_settings_and_never_mixes_them(
    project: Path, refused: Refused, capfd: pytest.CaptureFixture[str]
) -> None:
    before = LatencyTable.load(TABLE)
    shutil.copytree("runs/default/train", "runs/four/train")
    line = refused(1, "search", "--batch", "4", "--run", "four")
    assert "batch 4" in line
    assert "has: onnxruntime, fp32, batch 1, 1 thread, power mode default" in line
    assert "bcnet build-lut --device cpu" in line
    four = ["--batch", "4", "--run", "four", "--json"]
    assert main(["build-lut", *four]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["calibration"]["setting"]["batch"], found["calibration"]["setting"]["threads"]) == (4, 1)
    after = LatencyTable.load(TABLE)
    assert {key: row for key, row in after.rows.items() if key[1].batch == 1} == before.rows
    assert len(after.rows) == 2 * len(before.rows)
    assert main(["search", *four]) == 0
    best = json.loads(capfd.readouterr().out)["best"]
    # Four images at once take longer than one, and the search measured them together.
    assert best["measured"]["median_ms"] > 0
    for batch, threads in (("4", "2 threads"), ("3", "1 thread")):
        words = ("--batch", batch, "--threads", threads[0], "--run", "four")
        assert (
            f"belongs to cpu (fp32, batch 4, 1 thread), not to cpu (fp32, batch {batch}, {threads}): "
            in refused(2, "search", *words)
        )


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            r'"runtime_version": "[^"]*"',
            '"runtime_version": "1.0.0"',
            "with runtime_version 1.0.0, here it is",
        ),
        (r'"processor": "[^"]*"', '"processor": "abacus"', "with processor abacus, here it is"),
        (r'"date": "[^"]*"', '"date": "2020-02-29"', "layers were measured on 2020-02-29; "),
    ],
)
def test_a_table_from_elsewhere_or_long_ago_is_used_with_a_warning(
    project: Path, capfd: pytest.CaptureFixture[str], old: str, new: str, said: str
) -> None:
    table = LatencyTable.load(TABLE)
    changed = [re.sub(old, new, json.dumps(asdict(session))) for session in table.sessions]
    table.sessions = [Session(**json.loads(text)) for text in changed]
    table.save(TABLE)
    assert main(["build-lut", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["rows_measured"] == 0
    assert err.count(said) == 1
    assert "`bcnet check-lut --device cpu` checks whether they are still valid" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--batch", "0"), "batch: input should be greater than or equal to 1, not 0"),
        (("--threads", "0"), "threads: input should be greater than or equal to 1, not 0"),
        (("--precision", "fp8"), "precision: input should be 'fp32', 'fp16' or 'int8', not 'fp8'"),
    ],
)
def test_settings_that_cannot_be_meant_are_wrong_usage(
    folder: Path, refused: Refused, flags: tuple[str, str], message: str
) -> None:
    assert message in refused(2, "build-lut", *flags)


def test_an_estimate_measures_nothing_again(folder: Path, refused: Refused) -> None:
    assert "--estimate measures nothing: give one of them" in refused(2, "build-lut", "--estimate", "--again")


def test_what_was_measured_again_before_a_stop_is_not_measured_a_second_time(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("hw_profiles/twin.toml").write_text(PROFILE, encoding="utf-8")
    replace(LatencyTable.load(TABLE), device="twin").save(Path("latency_tables/twin.json"))
    asked: list[tuple[str, bool]] = []
    real = stage.build_lut

    def build(graph: Any, profile: HwProfile, *given: Any, again: bool, **others: Any) -> stage.BuildReport:
        asked.append((profile.name, again))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(graph, profile, *given, **others)  # measures nothing: all rows are there

    monkeypatch.setattr(stage, "build_lut", build)
    both = ("build-lut", "--device", "cpu", "--device", "twin")
    assert main([*both, "--again"]) == 130
    assert main([*both, "--again"]) == 0
    assert asked == [("cpu", True), ("twin", True), ("cpu", False), ("twin", True)]
    file = Path("runs/default/build-lut/again.jsonl")
    assert f"cpu.json was measured again before the command was stopped; to repeat that, delete {file}\n" in (
        capfd.readouterr().err
    )
    assert not file.exists()
    assert main([*both, "--again"]) == 0
    assert asked[4:] == [("cpu", True), ("twin", True)]


def test_rows_are_measured_again_when_that_is_asked_for_and_once_more_where_they_are_noisy(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = LatencyTable.load(TABLE)
    settings = Path("bcnet.toml").read_text(encoding="utf-8")
    Path("bcnet.toml").write_text(f"table_noise = 0.0\n{settings}", encoding="utf-8")
    assert main(["build-lut", "--again", "--json"]) == 0
    out, err = capfd.readouterr()
    calibration = json.loads(out)["calibration"]
    assert json.loads(out)["rows_measured"] == len(before.rows)
    assert err.count("everything is measured once more") == 1
    assert (
        f"two measurements of one network differed by {calibration['noise']:.1%}, table_noise accepts 0.0%"
        in err
    )
    assert "it will be refused" in err
    after = LatencyTable.load(TABLE)
    assert after.rows.keys() == before.rows.keys()
    assert {row.session for row in after.rows.values()} == {1}
    once, twice = (table.rows.values() for table in (before, after))
    assert min(row.stat.samples for row in twice) > 1.5 * min(row.stat.samples for row in once)
