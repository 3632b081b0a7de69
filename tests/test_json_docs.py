"""docs/reference/json.md and json-commands.md name every key that `--json` prints."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from bcnet.cli import main

REFERENCE = Path(__file__).parent.parent / "docs/reference"
PAGES = [(REFERENCE / name).read_text(encoding="utf-8") for name in ("json.md", "json-commands.md")]
NAMED = {key for page in PAGES for key in re.findall(r"`([a-z][a-z0-9_]*)`", page)}
# Of a calibration, a group, a profile and a runtime: other pages and `bcnet devices NAME` describe them.
# Those of `saved_ms` are the names of groups.
ELSEWHERE = ("calibration", "environment", "groups", "runtime", "saved_ms", "settings")


def keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, own in value.items():
            yield key
            if key not in ELSEWHERE:
                yield from keys(own)
    elif isinstance(value, list):
        for own in value:
            yield from keys(own)


@pytest.mark.parametrize(
    "file",
    [
        "build-lut/report.json",
        "search/result.json",
        "slice/result.json",
        "export/verify.json",
        "compare/result.json",
    ],
)
def test_every_key_of_a_stage_is_documented(project: Path, file: str) -> None:
    stage = json.loads((project / "runs/default" / file).read_text(encoding="utf-8"))
    assert set(keys(stage)) - NAMED == set()


def test_every_key_of_a_timed_file_is_documented(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), "a.onnx")
    assert (
        main(["time", "a.onnx", "--against", "a.onnx", "--seconds", "0.01", "--rounds", "3", "--json"]) == 0
    )
    assert set(keys(json.loads(capfd.readouterr().out))) - NAMED == set()


@pytest.mark.parametrize(
    "command",
    [
        ["train"],
        ["inspect"],
        ["runs"],
        ["report"],
        ["load"],
        ["diff", "default", "default"],
        ["inspect", "--device", "cpu"],
        ["inspect", "--run", "default"],
    ],
)
@pytest.mark.usefixtures("project")
def test_every_key_of_other_commands_is_documented(
    command: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--json"]) == 0
    assert set(keys(json.loads(capfd.readouterr().out))) - NAMED == set()
