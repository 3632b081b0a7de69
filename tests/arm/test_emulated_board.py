"""An aarch64 board that is emulated: the agent, its files and its protocol there, also with old Pythons.

The board is a root file system of Debian (`make arm-root`) that runs through qemu's user-mode emulation, with
a real sshd. What it measures is the emulator's time, so nothing here is asserted about it.
"""

import io
import json
import os
import re
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from ssh_faults import assert_a_full_disk_is_reported, kill_agents, kill_agents_at_every, timed_despite
from sshd import Sshd, children

from bcnet.cli import main
from bcnet.latency_tables.table import LatencyTable
from bcnet.runtimes import runtime_on_hosts, ssh_line
from bcnet.runtimes.device import LocalDevice
from bcnet.runtimes.onnxruntime import OnnxRuntime
from bcnet.runtimes.ssh import SshDevice

HERE = Path(__file__).parent
ROOT = Path(os.environ.get("BCNET_ARM_ROOT", HERE.parents[1] / "build" / "arm"))
EMULATOR = Path("/proc/sys/fs/binfmt_misc/qemu-aarch64")
PYTHONS = {"Debian's": "/usr/bin/python3"} | {
    version: f"/opt/python{version}/bin/python{version}" for version in ("3.8", "3.6")
}
LONG_S = 3.0  # of a job that is long enough to be cut
PROFILE = """
description = "an emulated board, timed briefly"
runtime = "onnxruntime"
machine = "aarch64"
warmup_ms = 1.0
seconds = 0.03
iterations = 6
table_noise = 50.0
host = "device"
"""


def missing() -> str:
    """Why there is no board here; "" if there is one."""
    if os.geteuid() != 0:
        return "the emulated board needs root, for chroot"
    found = (ROOT / "etc" / "emulated-cpuinfo").exists() and EMULATOR.exists()
    return "" if found else "needs `make arm-root` (as root; Debian: debootstrap, qemu-user-static)"


pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    """The board's sshd, which the `ssh` on PATH knows as host "device"; the test's folder is there, too."""
    server = Sshd(tmp_path / "sshd", within=[str(HERE / "enter"), str(ROOT), str(tmp_path)]).start()
    monkeypatch.setenv("PATH", server.path)
    yield server
    server.stop()
    kill_agents(tmp_path / "there")


def connected(there: Path, python: str = PYTHONS["Debian's"]) -> SshDevice:
    if not Path(f"{ROOT}{python}").exists():
        pytest.skip(f"needs tests/arm/make_python for {python}")
    return SshDevice("device", python=python, folder=str(there), patience_s=60)


@pytest.fixture
def device(board: Sshd, tmp_path: Path) -> Iterator[SshDevice]:
    found = connected(tmp_path / "there")
    yield found
    found.close()


def network() -> bytes:
    """A convolution and a ReLU at an opset that ONNX Runtime 1.10 reads, the last one for Python 3.6."""
    weights = np.random.default_rng(0).standard_normal((300, 32, 3, 3), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["input", "w"], ["c"]), helper.make_node("Relu", ["c"], ["output"])],
        "network",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 32, 16, 16])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 300, 14, 14])],
        [numpy_helper.from_array(weights, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    return bytes(made.SerializeToString())


def write_profile(there: Path, python: str = PYTHONS["Debian's"]) -> None:
    Path("hw_profiles/board.toml").write_text(
        f'{PROFILE}host_python = "{python}"\nhost_folder = "{there}"\n', encoding="utf-8"
    )


def brief_agent() -> bytes:
    """The agent with a shorter microbenchmark: emulated, the usual one takes ten seconds."""
    source, made = zipfile.ZipFile(io.BytesIO(ssh_line.agent_file())), io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name in source.namelist():
            content = source.read(name)
            if name == "agent/probe.py":
                content, count = re.subn(rb"(?m)^(REPEATS|STREAMED) = \d+", rb"\1 = 1", content)
                assert count == 2
            archive.writestr(zipfile.ZipInfo(name), content)
    return made.getvalue()


@pytest.mark.parametrize("name", PYTHONS)
def test_the_agent_measures_and_gives_the_outputs_of_this_machine(
    board: Sshd, tmp_path: Path, name: str
) -> None:
    device = connected(tmp_path / "there", PYTHONS[name])
    try:
        hello = device.hello()
        assert hello["machine"] == "aarch64"
        assert hello["python"].startswith(name) or name == "Debian's"
        there, here = OnnxRuntime(device), OnnxRuntime(LocalDevice())
        assert there.fingerprint()["processor"] == "emulated aarch64 (qemu user mode)"
        assert set(there.probe()) == {"matmul_ms", "stream_ms", "sweep_ms"}
        images = np.random.default_rng(1).standard_normal((5, 32, 16, 16), dtype=np.float32)
        outputs = [runtime.predictor(network())(images)[0] for runtime in (there, here)]
        np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-4)
        assert len(there.time_network(network(), 0, 0.01, 3)) >= 3
        nodes = there.profile_nodes(network(), 2)
        assert nodes[0][1].shape == (2,)
        job = {"do": "missing", "runtime": "onnxruntime", "settings": {"provider": "cpu", "threads": 1}}
        lacking = device.call(job, 60)["missing"]
        assert ("cannot read bcnet's files" in lacking) if name == "3.6" else lacking is None
    finally:
        device.close()


@pytest.mark.parametrize("name", ["Debian's", "3.8"])
def test_from_a_table_to_a_verified_file_though_agents_are_killed(
    project: Path,
    board: Sshd,
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    there = tmp_path / "there"
    connected(there, PYTHONS[name]).close()
    write_profile(there, PYTHONS[name])
    brief = brief_agent()
    monkeypatch.setattr(ssh_line, "agent_file", lambda: brief)
    kill_agents_at_every(monkeypatch, 40, there)
    try:
        assert main(["build-lut", "--device", "board"]) == 0, capsys.readouterr().err
        assert "the agent died" in capsys.readouterr().err
        for command in ("search", "slice", "export"):
            assert main([command, "--device", "board", "--json"]) == 0, capsys.readouterr().err
    finally:
        runtime_on_hosts.cache_clear()
    verified = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (verified["device"], verified["verified"], verified["executed"]) == ("board", True, True)
    table, here = (LatencyTable.load(f"latency_tables/{name}.json") for name in ("board", "cpu"))
    assert table.rows.keys() == here.rows.keys()
    assert "emulated" in table.sessions[0].provenance["processor"]


def test_an_agent_that_is_killed_in_a_job_does_it_again(
    device: SshDevice, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(timed_despite(lambda: kill_agents(tmp_path / "there"), device, network(), LONG_S)) >= 2
    assert "the agent died" in capsys.readouterr().err


def test_a_lost_connection_gives_the_answer_that_the_agent_kept(
    board: Sshd, device: SshDevice, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = timed_despite(board.cut, device, network(), LONG_S)
    assert "the connection was lost" in capsys.readouterr().err
    (kept,) = (tmp_path / "there" / "answers").iterdir()
    assert json.loads(kept.read_text())["ms"] == samples.tolist()


def test_a_full_disk_is_reported_and_work_goes_on_when_there_is_room(
    small_disk: Path, device: SshDevice
) -> None:
    assert_a_full_disk_is_reported(device, small_disk, network())


def test_what_runs_there_is_emulated(board: Sshd) -> None:
    assert board.process is not None
    command = ["ssh", "device", "uname -m; getconf LONG_BIT; ls /proc/self/exe -l"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert out[:2] == ["aarch64", "64"]
    assert not children(board.process.pid)
