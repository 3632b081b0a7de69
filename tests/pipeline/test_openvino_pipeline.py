"""A finished run goes on with OpenVINO as its runtime: table, search, verified file, latency of that file."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import PROFILE

from bcnet.cli import main
from bcnet.latency_tables.table import LatencyTable

pytest.importorskip("openvino", reason="needs OpenVINO: pip install openvino")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """A command's JSON object."""
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0, capsys.readouterr().err
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_table_a_search_and_a_verified_file_by_openvino(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "cpu-openvino"
    text = PROFILE.replace('"onnxruntime"', '"openvino"')
    Path(f"hw_profiles/{name}.toml").write_text(text, encoding="utf-8")
    built = run(capsys, "build-lut", "--device", name)
    table, other = (LatencyTable.load(f"latency_tables/{own}.json") for own in (name, "cpu"))
    assert {row.setting.runtime for row in table.rows.values()} == {"openvino"}
    assert {layer for layer, _ in table.rows} == {layer for layer, _ in other.rows}
    assert built["rows_measured"] == len(table.rows)
    assert table.sessions[0].provenance["runtime_version"][:2] == "20"
    for stage in ("search", "slice"):
        run(capsys, stage, "--device", name)
    verified = run(capsys, "export", "--device", name)
    assert verified["backend"].startswith("openvino ")
    assert (verified["device"], verified["executed"], verified["passed"]) == (name, True, True)
    assert verified["output_error"] < 1e-3
    timed = run(
        capsys,
        "time",
        "runs/default/export/model.onnx",
        "--device",
        name,
        "--rounds",
        "3",
        "--seconds",
        "0.03",
    )
    assert timed["runtime"]["runtime"] == "openvino"
    assert any("Conv" in layer["kind"] for layer in timed["files"][0]["layers"])
