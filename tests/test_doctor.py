"""The examination of a device: a recording replaces it, and each host is examined separately."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import PROFILE

from bcnet import doctor
from bcnet.cli import main
from bcnet.doctor import examine
from bcnet.errors import DeviceError
from bcnet.hw_profiles import HwProfile
from bcnet.measure.network_latency import runtime_of


def test_a_recording_replaces_the_examination_of_this_machine(tmp_path: Path) -> None:
    file = str(tmp_path / "answers.jsonl")
    own = HwProfile(name="own", description="", runtime="onnxruntime", record_to=file)
    version = runtime_of(own).fingerprint()["runtime_version"]
    (step,) = examine(own.model_copy(update={"record_to": None, "recording": file}))
    assert (step.name, step.passed) == ("recording", True)
    assert step.found.startswith(f"{file} replaces the device: ")
    assert version in step.found


def test_a_missing_recording_is_reported(tmp_path: Path) -> None:
    profile = HwProfile(name="own", description="", runtime="onnxruntime", recording=str(tmp_path / "none"))
    (step,) = examine(profile)
    assert (step.name, step.passed) == ("recording", False)
    assert "cannot be read" in step.found


@pytest.mark.usefixtures("folder")
def test_the_fix_of_a_failed_step_is_printed_and_is_in_the_json(capfd: pytest.CaptureFixture[str]) -> None:
    Path("hw_profiles").mkdir()
    Path("hw_profiles/old.toml").write_text(f"{PROFILE}machine = 'pdp11'\n", encoding="utf-8")
    fix = "the profile says pdp11: choose another --device, or reach it over ssh: --host user@name"
    assert main(["doctor", "--device", "old"]) == 3
    assert f"-> {fix}" in capfd.readouterr().out
    assert main(["doctor", "--device", "old", "--json"]) == 3
    step = json.loads(capfd.readouterr().out)["steps"][0]
    assert (step["name"], step["passed"], step["fix"], step["mend"]) == ("machine", False, fix, fix)


def test_a_host_that_is_lost_on_the_way_ends_its_own_steps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lost:
        def __init__(self, host: str, **_: Any) -> None:
            self.host = host

        def hello(self) -> dict[str, str]:
            return {"python": "3.8", "folder": "/tmp"}

        def call(self, job: dict[str, Any], limit_s: float) -> dict[str, Any]:
            raise DeviceError(f"{self.host} does not answer any more")

        def close(self) -> None:
            pass

    monkeypatch.setattr(doctor, "SshDevice", Lost)
    steps = examine(HwProfile(name="own", description="", runtime="onnxruntime", host=("me@a", "me@b")))
    assert [(step.name, step.passed) for step in steps] == [
        ("me@a: reached over ssh, agent started", True),
        ("me@a: examined", False),
        ("me@b: reached over ssh, agent started", True),
        ("me@b: examined", False),
    ]
    assert steps[3].found == "me@b does not answer any more"
