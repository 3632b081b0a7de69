"""A device over a real ssh: jobs, and what goes wrong on the way. Nothing measured is lost, nothing hangs."""

import base64
import contextlib
import fcntl
import hashlib
import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ssh_faults import assert_a_full_disk_is_reported, kill_agents, timed_despite
from sshd import PYTHON, SSHD, Sshd, a_job_runs, agents, meanwhile
from torch import nn

from bcnet.agent.errors import JobError
from bcnet.agent.serve import Agent
from bcnet.errors import DeviceError, NetworkError
from bcnet.onnx_export.onnx_supernet import to_onnx
from bcnet.runtimes.hosts import Hosts, check_alike, check_probes
from bcnet.runtimes.onnxruntime import OnnxRuntime
from bcnet.runtimes.ssh import SshDevice
from bcnet.runtimes.ssh_line import CONNECT_S, HostLost

pytestmark = pytest.mark.skipif(SSHD is None, reason="needs sshd (Debian: openssh-server)")

MODEL = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 300, 3)).eval()


@cache
def file() -> bytes:
    """`MODEL` as ONNX."""
    return bytes(to_onnx(MODEL, (2, 3, 16, 16)).SerializeToString())


@pytest.fixture
def device(sshd: Sshd, tmp_path: Path) -> Iterator[SshDevice]:
    found = SshDevice("device", python=PYTHON, folder=str(tmp_path / "there"), patience_s=20)
    yield found
    found.close()


def files_of(folder: Path, kind: str) -> list[Path]:
    return sorted((folder / kind).iterdir())


@contextlib.contextmanager
def whenever_a_job_runs(folder: Path, action: Callable[[], None]) -> Iterator[None]:
    """Do something, and kill the agents, each time that one of them has begun a job."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            if a_job_runs(folder)():
                action()
                kill_agents(folder)
                (folder / "lock").write_text("")

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def test_a_network_gives_the_same_outputs_there_as_here(device: SshDevice) -> None:
    images = np.random.default_rng(0).standard_normal((5, 3, 16, 16), dtype=np.float32)
    (there,) = OnnxRuntime(device).predictor(file())(images)
    with torch.no_grad():
        here = MODEL(torch.from_numpy(images)).numpy()
    assert there.shape == (5, 300, 12, 12)
    assert there == pytest.approx(here, abs=1e-5)


@pytest.mark.parametrize("name", ["a b", "it's", 'a"b', "$HOME;`x`"])
def test_a_folder_there_may_have_any_name(sshd: Sshd, tmp_path: Path, name: str) -> None:
    device = SshDevice("device", python=PYTHON, folder=str(tmp_path / name))
    try:
        assert device.hello()["folder"] == str(tmp_path / name)
        assert len(OnnxRuntime(device).time_network(file(), 0, 0.01, 3)) >= 3
    finally:
        device.close()


def test_a_file_is_sent_once(device: SshDevice, tmp_path: Path) -> None:
    runtime = OnnxRuntime(device)
    runtime.time_network(file(), 0, 0.01, 2)
    (sent,) = files_of(tmp_path / "there", "files")
    first = sent.stat().st_ctime_ns
    inode = sent.stat().st_ino
    runtime.time_network(file(), 0, 0.01, 2)
    assert files_of(tmp_path / "there", "files") == [sent]
    assert (sent.stat().st_ino, sent.stat().st_ctime_ns >= first) == (inode, True)


def test_an_error_there_is_the_same_error_here_with_the_host(device: SshDevice) -> None:
    with pytest.raises(NetworkError, match=r"^device: ONNX Runtime cannot load the network"):
        OnnxRuntime(device).time_network(b"no network", 0, 0.01, 2)
    with pytest.raises(
        DeviceError, match=r"^device: ONNX Runtime on this device has no execution provider 'nosuch'"
    ):
        OnnxRuntime(device, "nosuch").time_network(file(), 0, 0.01, 2)


def test_a_line_that_is_cut_in_the_middle_of_a_job_gives_its_answer_all_the_same(
    sshd: Sshd, device: SshDevice, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = timed_despite(sshd.cut, device, file())
    assert "the connection was lost" in capsys.readouterr().err
    # The agent that was cut off went on, and kept its answer: it is the one that was heard.
    (kept,) = files_of(tmp_path / "there", "answers")
    assert json.loads(kept.read_text())["ms"] == samples.tolist()


def test_a_machine_that_comes_back_is_waited_for(sshd: Sshd, device: SshDevice) -> None:
    device.hello()
    sshd.stop()
    later = time.monotonic() + 1.5
    back = meanwhile(lambda: sshd.start() and None, lambda: time.monotonic() > later)
    assert len(OnnxRuntime(device).time_network(file(), 0, 0.01, 3)) >= 3
    back.join()


def test_a_machine_that_does_not_come_back_is_given_up(sshd: Sshd, tmp_path: Path) -> None:
    device = SshDevice("device", python=PYTHON, folder=str(tmp_path / "there"), patience_s=2)
    device.hello()
    sshd.stop()
    start = time.monotonic()
    with pytest.raises(HostLost, match=r"device cannot be reached: .*Connection refused; is sshd running"):
        OnnxRuntime(device).time_network(file(), 0, 0.01, 3)
    assert time.monotonic() - start < 15


def test_an_agent_that_is_killed_does_its_job_again(
    device: SshDevice, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(timed_despite(lambda: kill_agents(tmp_path / "there"), device, file())) >= 2
    assert "the agent died" in capsys.readouterr().err


def test_a_job_that_always_kills_its_agent_is_a_network_that_cannot_be_run(
    device: SshDevice, tmp_path: Path
) -> None:
    device.hello()
    with (
        whenever_a_job_runs(tmp_path / "there", lambda: None),
        pytest.raises(NetworkError, match=r"the agent died 3 times in one job"),
    ):
        OnnxRuntime(device).time_network(file(), 0, 5.0, 2)


def test_a_job_that_takes_too_long_is_ended_there(device: SshDevice, tmp_path: Path) -> None:
    job = {
        **{"do": "time", "runtime": "onnxruntime", "settings": {"provider": "cpu", "threads": 1}},
        **{"model": file(), "warmup_ms": 0.0, "seconds": 60.0, "iterations": 2},
    }
    device.hello()
    (busy,) = agents(tmp_path / "there")
    with pytest.raises(DeviceError, match=r"device: no answer after 0.5 s; the job was stopped"):
        device.call(job, 0.5)
    until = time.monotonic() + 10  # the kernel takes its time to end a killed process
    while busy in agents(tmp_path / "there") and time.monotonic() < until:
        time.sleep(0.05)
    assert busy not in agents(tmp_path / "there")
    assert "matmul_ms" in OnnxRuntime(device).probe()


def test_a_wrong_host_key_is_refused_at_once(sshd: Sshd, tmp_path: Path) -> None:
    sshd.make_key("another")
    sshd.trust("another")
    device = SshDevice("device", python=PYTHON, folder=str(tmp_path / "there"))
    start = time.monotonic()
    with pytest.raises(HostLost, match=r"Host key verification failed; its key is unknown or has changed"):
        device.hello()
    assert time.monotonic() - start < CONNECT_S
    assert not (tmp_path / "there").exists()


def test_a_machine_that_asks_for_a_password_is_refused_at_once(tmp_path: Path, monkeypatch: Any) -> None:
    server = Sshd(tmp_path / "sshd")
    server.extra = ["PasswordAuthentication yes"]  # sshd takes the first of two
    server.start()
    monkeypatch.setenv("PATH", server.path)
    (server.folder / "authorized").write_text("")
    start = time.monotonic()
    try:
        with pytest.raises(HostLost, match=r"Permission denied .*; it must accept a login without"):
            SshDevice("device").hello()
    finally:
        server.stop()
    assert time.monotonic() - start < CONNECT_S


@pytest.mark.parametrize("host", ["-oProxyCommand=touch /tmp/x", "", "a b", "a\nb", "--", "-v"])
def test_what_is_no_host_never_reaches_ssh(host: str) -> None:
    with pytest.raises(DeviceError, match=r"a host is written as user@name"):
        SshDevice(host)


@pytest.mark.parametrize(
    ("host", "entry"),
    [
        ("user@board:2222", "`HostName board`, `Port 2222` and `User user`"),
        ("board:22", "`HostName board`, `Port 22`, and give NAME"),
        ("[fe80::1]:22", "`HostName fe80::1`, `Port 22`, and give NAME"),
    ],
)
def test_a_port_is_refused_with_the_entry_to_write_into_the_configuration_of_ssh(
    host: str, entry: str
) -> None:
    with pytest.raises(DeviceError, match=r"a port belongs in ~/\.ssh/config") as refusal:
        SshDevice(host)
    assert entry in str(refusal.value)
    assert SshDevice("fe80::1").host == "fe80::1"


def test_a_python_that_is_not_there_is_told(sshd: Sshd, tmp_path: Path) -> None:
    device = SshDevice("device", python="/no/python", folder=str(tmp_path / "there"))
    with pytest.raises(DeviceError, match=r"/no/python.*not found"):
        device.hello()


def test_a_folder_that_cannot_be_written_is_told(sshd: Sshd, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    device = SshDevice("device", python=PYTHON, folder=str(tmp_path / "file"))
    with pytest.raises(DeviceError, match=r"cannot write the agent into .*set host_folder"):
        device.hello()


def test_a_full_disk_there_is_told_and_work_goes_on_when_there_is_room(
    small_disk: Path, device: SshDevice
) -> None:
    assert_a_full_disk_is_reported(device, small_disk, file())


def test_a_machine_with_another_power_mode_after_a_reboot_is_refused(device: SshDevice) -> None:
    device.hello()
    device.close()
    device._machine["power_mode"] = "15W"
    with pytest.raises(DeviceError, match=r"its power mode was 15W and is None now; restore it"):
        device.hello()


def test_several_hosts_share_the_work_and_one_that_is_lost_is_left_out(
    sshd: Sshd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Sshd(tmp_path / "other").start()
    config = (other.folder / "config").read_text().replace("Host device other", "Host second")
    first = (sshd.folder / "config").read_text().replace("Host device other", "Host device")
    (sshd.folder / "config").write_text(config + first)
    devices = [
        SshDevice(name, python=PYTHON, folder=str(tmp_path / name), patience_s=1.0)
        for name in ("device", "second")
    ]
    try:
        runtime = OnnxRuntime(Hosts(devices))
        assert runtime.workers == 2
        together = [threading.Thread(target=runtime.time_network, args=(file(), 0, 0.3, 2)) for _ in range(2)]
        for thread in together:
            thread.start()
        for thread in together:
            thread.join()
        assert [len(files_of(tmp_path / name, "answers")) for name in ("device", "second")] == [1, 1]
        other.stop()
        for _ in range(2):
            assert len(runtime.time_network(file(), 0, 0.01, 3)) >= 3
        assert runtime.workers == 1
        assert "second cannot be reached" in capsys.readouterr().err
        sshd.stop()
        with pytest.raises(HostLost):
            runtime.probe()
    finally:
        other.stop()
        for device in devices:
            device.close()


def test_hosts_whose_probes_are_more_than_five_percent_apart_are_refused_by_name() -> None:
    same = {"a": [{"matmul_ms": 1.0}, {"matmul_ms": 3.0}], "b": [{"matmul_ms": 1.04}, {"matmul_ms": 1.2}]}
    check_probes(same)
    with pytest.raises(
        DeviceError, match=r"b is slower than a: its reference microbenchmark \(matmul_ms\) takes 1.060 ms"
    ):
        check_probes({"a": same["a"], "b": [{"matmul_ms": 1.06}, {"matmul_ms": 1.2}]})


def test_hosts_with_other_versions_are_refused_by_name(device: SshDevice) -> None:
    class Older(OnnxRuntime):
        def fingerprint(self) -> dict[str, str]:
            return {**super().fingerprint(), "runtime_version": "1.0"}

    with pytest.raises(DeviceError, match=r"old differs from new: runtime_version is 1.0 on old and"):
        check_alike({"new": OnnxRuntime(device), "old": Older(device)})


def test_an_agent_that_was_copied_only_in_part_is_copied_again(device: SshDevice, tmp_path: Path) -> None:
    device.hello()
    device.close()
    (copy,) = (tmp_path / "there").glob("agent-*.pyz")
    content = copy.read_bytes()
    copy.write_bytes(content[: len(content) // 2])  # the connection was lost, or the power was cut
    assert device.hello()["folder"] == str(tmp_path / "there")
    assert copy.read_bytes() == content


def test_files_and_answers_that_a_power_cut_left_empty_are_made_again(tmp_path: Path) -> None:
    agent = Agent(tmp_path, io.BytesIO())
    agent.session = "s"
    name = hashlib.sha256(b"content").hexdigest()
    (tmp_path / "files" / name).write_bytes(b"")
    assert agent.answer({"do": "have", "file": name, "size": 7}) == {"have": 0}
    data = base64.b64encode(b"content").decode()
    put = {"do": "put", "file": name, "size": 7, "offset": 0, "data": data}
    assert agent.answer(put) == {"have": -1}
    (tmp_path / "answers" / "key").write_bytes(b"")
    answer = agent.answer({"do": "job", "id": 1, "key": "key", "job": {"do": "probe"}})
    assert json.loads((tmp_path / "answers" / "key").read_text()) == answer
    # An answer that is whole is given again: the probe would read otherwise now.
    assert agent.answer({"do": "job", "id": 2, "key": "key", "job": {"do": "probe"}}) == answer


def test_a_line_that_drops_in_every_attempt_ends_as_a_network_that_cannot_be_run(
    sshd: Sshd, device: SshDevice, tmp_path: Path
) -> None:
    device.hello()
    with (
        whenever_a_job_runs(tmp_path / "there", sshd.cut),
        pytest.raises(NetworkError, match=r"(the connection was lost 6|the agent died 3) times in one job"),
    ):
        OnnxRuntime(device).time_network(file(), 0, 5.0, 2)


def test_another_agents_job_is_waited_for_and_that_time_does_not_count(
    device: SshDevice, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device.hello()
    with (tmp_path / "there" / "lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        later = time.monotonic() + 5.0
        free = meanwhile(lambda: fcntl.flock(lock, fcntl.LOCK_UN), lambda: time.monotonic() > later)
        assert "matmul_ms" in device.call({"do": "probe"}, 4.0)["probe"]
        free.join()
    assert capsys.readouterr().err.count("waiting, another agent measures there") == 1


def test_files_that_were_not_used_for_long_make_room(tmp_path: Path) -> None:
    agent = Agent(tmp_path, io.BytesIO())
    for number, name in enumerate("abc"):
        (tmp_path / "files" / name).write_bytes(b"12345")
        os.utime(tmp_path / "files" / name, (number, number))
    agent._tidy(10)
    assert [path.name for path in files_of(tmp_path, "files")] == ["b", "c"]
    assert agent._tidy(0) == 10
    with pytest.raises(JobError, match=r"file a no longer exists"):
        agent.answer({"do": "job", "id": 1, "key": "key", "job": {"model": {"$file": "a", "size": 5}}})
