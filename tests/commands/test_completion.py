"""What the shell completes: options, devices, runs and settings."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROFILE

HEAVY = ("torch", "torchvision", "onnx", "onnxruntime", "numpy", "scipy", "rich.progress")


def completed(line: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The completions of the last word, by a process as a shell starts it, which loads nothing heavy."""
    monkeypatch.setenv("_BCNET_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
    code = (
        "import atexit, sys\nfrom bcnet.cli import main\n"
        f"heavy = lambda: [name for name in {HEAVY} if name in sys.modules]\n"
        "atexit.register(lambda: print(*heavy(), file=sys.stderr))\nmain([])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""
    return done.stdout.split()


@pytest.mark.usefixtures("folder")
def test_words_are_completed_without_loading_a_heavy_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("night", "noon", "default"):
        Path("runs", name).mkdir(parents=True)
    Path("hw_profiles").mkdir()
    Path("hw_profiles/jetty.toml").write_text(PROFILE, encoding="utf-8")
    assert completed("bcnet build", monkeypatch) == ["build-lut"]
    assert completed("bcnet train --device jetso", monkeypatch)[:2] == ["jetson", "jetson-agx-orin"]
    assert completed("bcnet doctor --device jett", monkeypatch) == ["jetty"]
    assert completed("bcnet devices jett", monkeypatch) == ["jetty"]
    assert completed("bcnet search --run n", monkeypatch) == ["night", "noon"]
    assert completed("bcnet runs remove d", monkeypatch) == ["default"]
    assert completed("bcnet train --set train.batch", monkeypatch) == ["train.batch_size="]
    assert completed("bcnet search --precision f", monkeypatch) == ["fp32", "fp16"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_of_a_shell_is_shown_and_calls_bcnet(
    shell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    done = subprocess.run(
        [sys.executable, "-m", "bcnet", "--show-completion", shell],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"_BCNET_COMPLETE=complete_{shell}" in done.stdout
