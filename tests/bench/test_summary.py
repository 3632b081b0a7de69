"""benchmarks/summary.md: what it says is what the records hold."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PROGRAM = runpy.run_path(str(BENCHMARKS / "summary.py"))
RECORD = {
    "command": "python it.py",
    "date": "2026-11-29",
    "rows": [{"network": "a", "ms": 1.0}, {"network": "b", "ms": 3.0}],
}


def row_of(folder: Path, **claim: Any) -> list[str]:
    """The table's last row, by cell, for one claim about RECORD."""
    (folder / "it.json").write_text(json.dumps(RECORD), encoding="utf-8")
    whole = {"claim": "it", "page": "it", "file": "it.json", "format": ".1f", **claim}
    (folder / "claims.json").write_text(json.dumps([whole]), encoding="utf-8")
    last: str = PROGRAM["summary"](folder).splitlines()[-1]
    return [cell.strip() for cell in last.strip("|").split("|")]


def test_the_summary_is_what_its_program_writes() -> None:
    written = (BENCHMARKS / "summary.md").read_text(encoding="utf-8")
    assert written == PROGRAM["summary"](BENCHMARKS / "results"), "run: python benchmarks/summary.py"


def test_claims_name_pages_and_programs_that_exist() -> None:
    for claim in PROGRAM["load"](BENCHMARKS / "results/claims.json"):
        assert (BENCHMARKS.parent / f"docs/benchmarks/{claim['page']}.md").exists(), claim["claim"]
        record = PROGRAM["load"](BENCHMARKS / "results" / claim["file"])
        command = record["command"] if "command" in record else claim["command"]
        for word in command.split():
            assert not word.endswith(".py") or (BENCHMARKS.parent / word).exists(), command


@pytest.mark.parametrize(
    ("claim", "cells"),
    [
        ({"number": ["rows", {"network": "b"}, "ms"], "at_most": 2.9}, ["3.0", "-", "≤ 2.9", "**no**"]),
        (
            {"number": ["rows", {"network": "b"}, "ms"], "at_least": 3, "unit": "ms"},
            ["3.0 ms", "-", "≥ 3", "yes"],
        ),
        (
            {"number": ["rows", 0, "ms"], "interval": [["rows", 0, "ms"], ["rows", 1, "ms"]]},
            ["1.0", "1.0 to 3.0", "-", "-"],
        ),
        ({"number": ["rows", "*", "ms"], "at_most": 2}, ["1.0 / 3.0", "-", "≤ 2", "**no**"]),
        ({"number": ["rows", "*", "ms"], "of": "median", "times": 100}, ["200.0", "-", "-", "-"]),
    ],
)
def test_a_claim_shows_the_records_number(tmp_path: Path, claim: dict[str, Any], cells: list[str]) -> None:
    row = row_of(tmp_path, **claim)
    assert row[1:5] == cells
    assert row[5:] == ["2026-11-29", "`python it.py`", "`it.json`"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (["rows", {"network": "c"}, "ms"], "0 elements have {'network': 'c'}"),
        (["rows", 2, "ms"], "list index out of range"),
        (["seconds"], "'seconds'"),
    ],
)
def test_a_claim_that_its_record_does_not_hold_is_named(tmp_path: Path, path: list[Any], reason: str) -> None:
    with pytest.raises(PROGRAM["ClaimError"], match=rf"claims.json: 'it': \w+: .*{reason}"):
        row_of(tmp_path, number=path)
