"""What goes wrong on a device over ssh: agents are killed, connections cut, disks full.

In: a device (served by `Sshd`, here or on the emulated board), a network. Out: what it answers all the same.
"""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sshd import a_job_runs, agents, kill, meanwhile

from bcnet.errors import DeviceError
from bcnet.runtimes.onnxruntime import OnnxRuntime
from bcnet.runtimes.ssh import SshDevice

FULL_KB, ROOM_MB = 300, 5  # of the agent's folder: without room for a network, and with it


def kill_agents(folder: Path) -> None:
    """Kill the agents that run with this folder."""
    for pid in agents(folder):
        kill(pid)


def kill_agents_at_every(monkeypatch: pytest.MonkeyPatch, number: int, folder: Path) -> None:
    """Kill the folder's agents before every so many-th job."""
    real, calls = SshDevice.call, [0]

    def call(self: SshDevice, job: dict[str, Any], limit_s: float) -> dict[str, Any]:
        calls[0] += 1
        if calls[0] % number == 0:
            kill_agents(folder)
        return real(self, job, limit_s)

    monkeypatch.setattr(SshDevice, "call", call)


def timed_despite(
    fault: Callable[[], None], device: SshDevice, network: bytes, seconds: float = 1.0
) -> np.ndarray:
    """A network's latencies, with a fault as soon as the job runs, which takes at least `seconds`."""
    device.hello()
    faulty = meanwhile(fault, a_job_runs(Path(device.folder)))
    samples = OnnxRuntime(device).time_network(network, 0.0, seconds, 2)
    faulty.join()
    return samples


def mount_small_disk(folder: Path) -> None:
    """Make the agent's folder a file system without room for a network; without the right, skip the test."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={FULL_KB}k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs to mount a small file system")


def assert_a_full_disk_is_reported(device: SshDevice, disk: Path, network: bytes) -> None:
    """The error says what to do, small jobs go on, and with more room the network's do, too."""
    runtime = OnnxRuntime(device)
    with pytest.raises(DeviceError, match=r"No space left on device; free some space there, or set"):
        runtime.time_network(network, 0, 0.01, 2)
    assert "matmul_ms" in runtime.probe()
    subprocess.run(["mount", "-o", f"remount,size={ROOM_MB}m", str(disk)], check=True)
    assert len(runtime.time_network(network, 0, 0.01, 2)) >= 2
