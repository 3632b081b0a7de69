"""Engines of several devices, each built and verified on its own over a real ssh.

There is no TensorRT: the program in place of trtexec computes an ONNX file's outputs with ONNX Runtime, and
its times are made up (see fake_trtexec). Everything else is real: the sshd, the agents, the jobs, the files.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import contents
from peaks import PEAKS
from sshd import PYTHON, SSHD, Sshd

from bcnet.cli import main
from bcnet.runtimes import runtime_on_hosts
from tests.runtimes import fake_trtexec

pytestmark = [
    pytest.mark.skipif(SSHD is None, reason="needs sshd (Debian: openssh-server)"),
    pytest.mark.slow,
]
BOTH = ("--device", "near", "--device", "far")
PROFILE = """
description = "a board with trtexec, over ssh"
runtime = "tensorrt"
precision = "fp16"
batch = {batch}
seconds = 0.01
iterations = 2
host_python = "{python}"
host_folder = "{folder}"
{peaks}"""


@pytest.fixture
def boards(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A finished run's folder with two boards: `far` has its host in its profile, `near` has none."""
    program = fake_trtexec.write(tmp_path / "bin", "v100300", "computes")
    server = Sshd(tmp_path / "sshd")
    path = f"{program.parent}:{os.environ['PATH']}"
    server.extra = [f"SetEnv PATH={path} XDG_CACHE_HOME={tmp_path / 'cache'}"]
    server.start()
    monkeypatch.setenv("PATH", server.path)
    for name, batch in (("near", 20), ("far", 30)):
        text = PROFILE.format(batch=batch, python=PYTHON, folder=tmp_path / name, peaks=PEAKS)
        host = 'host = "other"\n' if name == "far" else ""
        Path(f"hw_profiles/{name}.toml").write_text(host + text, encoding="utf-8")
    yield tmp_path
    runtime_on_hosts.cache_clear()
    server.stop()


def test_each_of_several_devices_builds_and_verifies_its_own_engine(
    boards: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    budgets = ("--latency-ms", "near=1000", "--latency-ms", "far=1000")
    assert main(["build-lut", "--estimate", *BOTH]) == 0
    assert main(["search", *BOTH, *budgets]) == 0
    capfd.readouterr()
    assert main(["export", "--trt", *BOTH, "--host", "device", "--json"]) == 0, capfd.readouterr().err
    exported = json.loads(capfd.readouterr().out)
    (there,) = exported["further"]
    folder = Path("runs/near/export")
    for own, name, batch in ((exported, "", 20), (there, "-far", 30)):
        engine, file = (folder / f"model{name}.{kind}" for kind in ("engine", "onnx"))
        facts = json.loads((folder / f"engine{name}.json").read_text(encoding="utf-8"))
        assert (own["file"], own["executed"], own["verified"]) == (str(engine), True, True)
        assert (own["backend"], own["measured"]["median_ms"]) == (
            "tensorrt 10.3.0",
            pytest.approx(1.5, abs=0.01),
        )
        assert own["accuracy"] == pytest.approx(own["accuracy_torch"], abs=0.02)
        assert 0 < own["output_error"] < 0.01  # computed by the engine, in fp16
        assert (facts["through"], facts["batches"], facts["dynamic"]) == ("trtexec", [batch], False)
        assert facts["device"] == own["device"]
        assert facts["sha256"] == hashlib.sha256(engine.read_bytes()).hexdigest()
        assert facts["onnx_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert list((boards / own["device"] / "answers").iterdir())  # its own agent did it
    assert (exported["verified"], exported["not_verified"], exported["verify_with"]) == (True, None, None)

    # Where one of them fails, neither's files are replaced.
    profile = Path("hw_profiles/far.toml")
    profile.write_text(profile.read_text(encoding="utf-8").replace(PYTHON, "/no/python"), encoding="utf-8")
    before = contents(folder)
    other = (
        "--set",
        "export.latency_tolerance=4.0",
    )  # so that the project is opened again, with this profile
    assert main(["export", "--trt", *BOTH, "--host", "device", *other]) == 1
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("bcnet: other cannot be reached: ")
    assert line.endswith("/no/python: not found")
    assert contents(folder) == before
