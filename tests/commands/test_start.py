"""`--processes N`: a command in several processes of this machine."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bcnet.cli import main

KILLED = """
import os, signal
from torch import nn

def net():
    if os.environ.get("RANK") == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))
"""


@pytest.mark.parametrize("command", ["train", "search", "slice", "run", "bench arena"])
def test_each_process_needs_a_gpu_where_there_are_some(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert main([*command.split(), "--processes", "4"]) == 2
    assert capsys.readouterr().err == (
        "bcnet: --processes 4: this machine has 3 GPUs, one for each process; CUDA_VISIBLE_DEVICES= uses the "
        "processor's cores\n"
    )


@pytest.mark.parametrize("command", ["train", "bench arena"])
def test_gpus_is_another_name_of_processes(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert main([*command.split(), "--gpus", "4"]) == 2
    assert capsys.readouterr().err.startswith("bcnet: --processes 4: this machine has 3 GPUs, ")


def test_a_wrong_setting_is_reported_once(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("bcnet.toml").write_text("[train]\nepoch = 3\n")
    assert main(["train", "--processes", "2"]) == 1
    error = capfd.readouterr().err
    assert error == "bcnet: bcnet.toml: unknown key 'train.epoch'; did you mean 'epochs'?\n"


def test_another_number_than_torchrun_has_started_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "--processes", "4"]) == 2
    expected = "bcnet, process 0 of 2: --processes 4: 2 were started already, by torchrun or srun\n"
    assert capsys.readouterr().err == expected


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_command_with_one_line(folder: Path) -> None:
    Path("net.py").write_text(KILLED)
    Path("bcnet.toml").write_text('[model]\nname = "net:net"\n[data]\nimage_size = 16\ntrain_limit = 64\n')
    command = [sys.executable, "-m", "bcnet", "train", "--processes", "2"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    expected = "bcnet: process 1 of 2 was ended by SIGKILL; finished work is kept, run the same command again"
    assert ended.stderr.splitlines()[-1] == expected
    assert "Traceback" not in ended.stderr
