"""What the README tells people to type does what it says."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from conftest import CONFIG, PROFILE, measure_briefly

from bcnet.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    """Every `bcnet` command of the block that lists the stages, in order, as arguments."""
    (block,) = re.findall(r"^```\n(bcnet init .+?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    lines = re.findall(r"^bcnet ([^#\n]+)", block, flags=re.MULTILINE)
    return [line.split() for line in lines]


def test_the_readme_names_every_stage_in_order() -> None:
    stages = ["init", "inspect", "train", "build-lut", "search", "slice", "export", "run", "check-lut"]
    assert [words[0] for words in commands()] == stages


def test_the_readmes_commands_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    measure_briefly(monkeypatch)
    Path("hw_profiles").mkdir()
    Path("hw_profiles/cpu.toml").write_text(PROFILE, encoding="utf-8")
    for words in commands():
        # Whether a busy machine's layers are as fast as a minute ago, no test can promise.
        assert main(words) in ((0, 3, 4) if words[0] == "check-lut" else (0,)), capfd.readouterr().err
        if words == ["init"]:
            # In place of the file that init wrote: small enough for a test, the budget as by default.
            Path("bcnet.toml").write_text(CONFIG.replace('latency = "75%"\n', ""), encoding="utf-8")
    shown, progress = capfd.readouterr()
    # `bcnet run` at the end finds all that the single commands have done.
    assert progress.count("already done") == 5
    assert all(
        name in shown for name in ("full (from scratch)", "uniform (from scratch)", "found (inherited)")
    )
    assert Path("runs/default/export/model.onnx").stat().st_size > 0


@pytest.mark.parametrize("target", ["quickstart", "test"])
def test_the_readmes_make_targets_exist(target: str) -> None:
    assert f"make {target}" in README
    dry = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ("bcnet run" if target == "quickstart" else "pytest") in dry.stdout


def test_the_guides_own_task_is_trained_and_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    guide = (ROOT / "docs/guides/own-task.md").read_text(encoding="utf-8")
    for language, name in (("python", "own.py"), ("toml", "bcnet.toml")):
        (block,) = re.findall(rf"^```{language}\n(.+?)^```$", guide, flags=re.MULTILINE | re.DOTALL)
        Path(name).write_text(block, encoding="utf-8")
    assert main(["train", "--epochs", "40", "--json"]) == 0, capfd.readouterr().err
    # The same answer for all bars has a loss of 0.089.
    assert json.loads(capfd.readouterr().out)["final_loss"] < 0.01
