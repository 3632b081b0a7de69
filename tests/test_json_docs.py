"""docs/reference/json.md names every key that `--json` prints."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bcnet.cli import main

PAGE = (Path(__file__).parent.parent / "docs/reference/json.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"`([a-z][a-z0-9_]*)`", PAGE))
# Of a table's calibration, a group and a profile; other pages and `bcnet devices NAME` describe them.
ELSEWHERE = ("calibration", "groups")


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


@pytest.mark.parametrize("command", [["train"], ["inspect"], ["runs"]])
@pytest.mark.usefixtures("project")
def test_every_key_of_other_commands_is_documented(
    command: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--json"]) == 0
    assert set(keys(json.loads(capfd.readouterr().out))) - NAMED == set()
