"""What the README promises: a table over ssh, a search, an export, and the device is named once.

ONNX Runtime on this machine takes the place of a board's TensorRT.
"""

import json
import re
from pathlib import Path

import pytest
from conftest import contents
from sshd import SSHD

from bcnet.cli import main
from bcnet.runtimes import runtime_on_hosts

pytestmark = pytest.mark.skipif(SSHD is None, reason="needs sshd (Debian: openssh-server)")

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_a_table_over_ssh_a_search_and_an_export_without_naming_the_device_again(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block = re.search(r"^bcnet build-lut --device jetson .*\n(?:bcnet .*\n)+", README, flags=re.MULTILINE)
    assert block is not None
    commands = [line.split("#")[0].split()[1:] for line in block[0].splitlines()]
    assert [words[0] for words in commands] == ["build-lut", "search", "export"]
    assert commands[2] == ["export", "--trt"]
    before = contents(Path("runs/default"))
    build = ["device" if word == "user@jetson" else word for word in commands[0]]
    assert main(build) == 0, capsys.readouterr().err
    measured = len(list((there / "answers").iterdir()))
    capsys.readouterr()
    for words in (commands[1], ["export", "--json"]):  # TensorRT is not there: the ONNX file alone
        assert main(words) == 0, capsys.readouterr().err
        told = capsys.readouterr()
        assert "device jetson, host device: as in the table that was built last in this run" in told.err
    assert "slicing the winner first: not done yet" in told.err
    exported = json.loads(told.out)
    assert (exported["device"], exported["executed"], exported["verified"]) == ("jetson", True, True)
    assert len(list((there / "answers").iterdir())) > measured  # it was measured there
    # The verified run of the processor stays as it was; the supernet serves both.
    assert contents(Path("runs/default")) == before
    weights = [Path("runs", run, "train/supernet.safetensors") for run in ("default", "jetson")]
    assert weights[0].samefile(weights[1])
    assert main(["export", "--trt"]) == 1
    assert "device 'jetson' runs onnxruntime, so there is no engine to build" in capsys.readouterr().err


@pytest.mark.slow
def test_a_device_that_is_not_reached_any_more_is_an_error_and_nothing_is_lost(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build-lut", "--device", "jetson", "--host", "device"]) == 0
    runtime_on_hosts.cache_clear()
    (there.parent / "sshd" / "config").write_text(
        "Host device\n  HostName 127.0.0.1\n  Port 9\n", encoding="utf-8"
    )
    capsys.readouterr()
    assert main(["search"]) == 1
    assert "device cannot be reached" in capsys.readouterr().err
    assert Path("latency_tables/jetson.json").exists()
