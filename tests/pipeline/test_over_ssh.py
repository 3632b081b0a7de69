"""The whole way to a device over a real ssh, with ONNX Runtime behind it."""

import json
import statistics
from pathlib import Path

import pytest
from ssh_faults import kill_agents_at_every
from sshd import PYTHON, SSHD

from bcnet.cli import main
from bcnet.latency_tables.table import LatencyTable

pytestmark = pytest.mark.skipif(SSHD is None, reason="needs sshd (Debian: openssh-server)")


@pytest.mark.slow
def test_a_table_a_search_and_an_export_over_ssh(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("build-lut", "search", "slice", "export"):
        assert main([command, "--device", "far", "--json"]) == 0, capsys.readouterr().err
    verified = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (verified["device"], verified["verified"], verified["executed"]) == ("far", True, True)
    near, far = (LatencyTable.load(f"latency_tables/{name}.json") for name in ("cpu", "far"))
    assert near.rows.keys() == far.rows.keys()
    # On a busy machine single layers differ; a factor in all of them would be another way of measuring.
    pairs = [(far.rows[key].stat.median_ms, row.stat.median_ms) for key, row in near.rows.items()]
    ratios = [there_ms / here_ms for there_ms, here_ms in pairs if here_ms > 0]  # below a tick it is zero
    assert len(ratios) > 0.8 * len(pairs)
    assert 0.5 < statistics.median(ratios) < 2
    assert far.sessions[0].provenance == near.sessions[0].provenance
    assert far.sessions[0].probe.keys() == near.sessions[0].probe.keys()
    assert len(list((there / "answers").iterdir())) > len(far.rows) / 2
    # Complete: nothing more is asked of the device.
    done = len(list((there / "answers").iterdir()))
    assert main(["build-lut", "--device", "far", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows_measured"] == 0
    assert len([path for path in (there / "answers").iterdir() if '"ms"' in path.read_text()]) <= done


@pytest.mark.slow
def test_a_build_over_ssh_survives_agents_that_are_killed(
    there: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kill_agents_at_every(monkeypatch, 20, there)
    assert main(["build-lut", "--device", "far"]) == 0
    assert "the agent died" in capsys.readouterr().err
    assert (
        LatencyTable.load("latency_tables/far.json").rows.keys()
        == LatencyTable.load("latency_tables/cpu.json").rows.keys()
    )


def test_doctor_tells_what_there_is_and_what_is_missing(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["doctor", "--device", "far", "--json"])
    steps = {step["name"]: step for step in json.loads(capsys.readouterr().out)["steps"]}
    assert steps["device: reached over ssh, agent started"]["passed"] is True
    assert steps["device: runtime"]["found"].startswith("onnxruntime ")
    assert code == (3 if any(step["passed"] is False for step in steps.values()) else 0)

    profile = Path("hw_profiles/far.toml")
    text = profile.read_text(encoding="utf-8")
    profile.write_text(text + 'machine = "aarch64"\npower_mode = "15W"\n', encoding="utf-8")
    assert main(["doctor", "--device", "far"]) == 3
    out = capsys.readouterr().out
    assert "the profile says aarch64: choose another --device" in out
    assert "nvpmodel is missing" in out

    profile.write_text(text.replace(PYTHON, "/no/python"), encoding="utf-8")
    assert main(["doctor", "--device", "far"]) == 3
    assert "/no/python" in capsys.readouterr().out


def test_a_host_that_is_none_is_refused_before_anything_is_done(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build-lut", "--device", "far", "--host", "-oProxyCommand=false"]) == 1
    assert "a host is written as user@name" in capsys.readouterr().err
