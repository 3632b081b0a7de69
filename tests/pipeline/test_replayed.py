"""The stages on a recording of a real run of ONNX Runtime: nothing is measured, and all of them say so."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from conftest import PROFILE

from bcnet.cli import main
from bcnet.latency_tables.table import LatencyTable
from bcnet.runtimes.device import LocalDevice

FILE = "recordings/cpu.jsonl.gz"
SAID = f"latencies are replayed from the recording {FILE}, not measured now"


def run(capsys: pytest.CaptureFixture[str], *arguments: str, codes: Any = (0,)) -> tuple[dict[str, Any], str]:
    """A command's JSON object, and what it said; its exit code is one of these."""
    capsys.readouterr()
    assert main([*arguments, "--json"]) in codes
    out, err = capsys.readouterr()
    return json.loads(out), err


def profile(line: str) -> None:
    Path("hw_profiles/cpu.toml").write_text(PROFILE + line + "\n", encoding="utf-8")


def test_a_recorded_device_gives_the_same_table_and_search_and_nothing_is_verified(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Path("latency_tables/cpu.json")
    table.unlink()
    profile(f'record_to = "{FILE}"')
    built, err = run(capsys, "build-lut")
    assert built["recorded"] is None
    assert "replayed" not in err
    measured = LatencyTable.load(table)
    wide = "search", "--latency-ms", "10"  # so that the search succeeds on a busy machine, too
    found, _ = run(capsys, *wide)
    check = "check-lut", "--seconds", "1", "--rows", "10"
    run(capsys, *check, codes=(0, 3, 4))  # as quiet as the machine is now
    table.unlink()

    def never(self: LocalDevice, job: dict[str, Any], limit_s: float) -> dict[str, Any]:
        """Outputs of a new file are not in any recording: accuracy is always checked by running it."""
        assert job["do"] in ("infer", "fingerprint")
        return call(self, job, limit_s)

    call = LocalDevice.call
    profile(f'recording = "{FILE}"')
    monkeypatch.setattr(LocalDevice, "call", never)
    replayed, err = run(capsys, "build-lut")
    assert replayed["recorded"] == FILE
    assert SAID in err
    assert f"layers are of {measured.sessions[0].date}, replayed from {FILE}" in err
    again = LatencyTable.load(table)
    assert again.rows == measured.rows
    assert again.calibrations == measured.calibrations
    assert [session.provenance.pop("recorded") for session in again.sessions] == [FILE]
    assert again.sessions == measured.sessions

    result, _ = run(capsys, *wide)
    assert result["best"] == found["best"]
    assert result["recorded"] == FILE
    assert SAID in result["note"]
    run(capsys, "slice")
    exported, err = run(capsys, "export", codes=(4,))
    assert (exported["executed"], exported["verified"], exported["passed"]) == (False, False, True)
    assert (exported["measured"], exported["recorded"]) == (None, FILE)
    assert exported["not_verified"] == SAID
    assert f"is not verified: {SAID}" in err.splitlines()[-1]
    assert exported["accuracy"] == exported["accuracy_torch"]
    props = {entry.key: entry.value for entry in onnx.load(exported["file"]).metadata_props}
    assert props["latency"] == SAID

    report, _ = run(capsys, *check, codes=(3, 4))
    assert report["recorded"] == FILE
    assert report["headline"].startswith(f"replayed from {FILE}, not measured now: ")


def test_a_profile_that_replays_does_not_record(project: Path, refused: Any) -> None:
    profile(f'recording = "{FILE}"\nrecord_to = "other.jsonl"')
    assert "what is replayed is not recorded; remove one" in refused(1, "build-lut")


def test_a_recording_that_is_not_there_is_named(project: Path, refused: Any) -> None:
    profile(f'recording = "{FILE}"')
    Path("latency_tables/cpu.json").unlink()
    assert f"{FILE} cannot be read: No such file" in refused(1, "build-lut")
