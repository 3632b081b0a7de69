"""Names of layers and messages of a runtime in reports cannot control a terminal or a CI service."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from test_file import CONV, FP32, GEMM, table

from bcnet.cli import main
from bcnet.errors import TableError
from bcnet.latency_tables.against import compare_tables
from bcnet.latency_tables.check_report import annotations, junit
from bcnet.latency_tables.rows import LatencyStat, Row
from bcnet.latency_tables.table import LatencyTable
from bcnet.plain import cell, plain
from bcnet.progress import say
from bcnet.show import show_check, show_summary, show_table

FOREIGN = "\x1b[2J\n::set-output name=x::1\r%0A::error::\x07##[add-mask]y\u202e"


def tables() -> tuple[LatencyTable, LatencyTable]:
    """Head and base: a slow layer, a lost one and a note, all of foreign names."""
    made = []
    for slower in (2.0, 1.0):
        found = table()
        found.failures.clear()
        found.sessions[0] = replace(found.sessions[0], provenance={"runtime": f"{FOREIGN}{slower}"})
        for channels in range(1, 40):
            layer = replace(CONV, op=FOREIGN, activation=FOREIGN, out_channels=channels)
            found.rows[layer, FP32] = Row(layer, FP32, LatencyStat(slower, slower, 0.001, 100), 0)
        made.append(found)
    head, base = made
    lost = replace(GEMM, op=FOREIGN)
    base.rows[lost, FP32] = base.rows[GEMM, FP32]
    return head, base


def test_no_line_on_the_terminal_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    show_check(compare_tables(*tables()))
    out = capsys.readouterr().out
    assert r"\x1b[2J\n" in out
    check_lines(out)


def test_junit_of_foreign_names_is_xml_without_control_characters() -> None:
    suite = ElementTree.fromstring(junit(compare_tables(*tables())))
    texts = [text for entry in suite.iter() for text in (*entry.attrib.values(), (entry.text or "").strip())]
    assert any(r"\x1b[2J\n::set-output" in text for text in texts)
    assert all(text.isprintable() for text in texts)


def test_annotations_of_foreign_names_are_one_command_a_line() -> None:
    report = replace(compare_tables(*tables()), table=f"tables/{FOREIGN}.json")
    lines = annotations(report)
    assert len(lines) >= 2
    for line in lines:
        assert line.isprintable()
        assert line.startswith(("::error file=", "::warning file="))
        assert "%0A" not in line
        assert "##[" not in line
        file = line.split("file=", 1)[1].split(",title=", 1)[0]
        assert ":" not in file


def test_errors_messages_and_summaries_are_clean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cpu.json"
    made = table()
    layer = replace(CONV, op=FOREIGN)
    made.rows[layer, FP32] = replace(made.rows[CONV, FP32], layer=layer)
    made.save(path)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"median_ms": 1.0', '"median_ms": 2.0'), encoding="utf-8")
    with pytest.raises(TableError):
        LatencyTable.load(path)
    assert main(["lut", "accept-edit", "--table", str(tmp_path / "none.json")]) == 1
    assert main(["check-lut", "--table", str(path), "--against", str(path)]) == 1
    say(FOREIGN)
    assert main(["lut", "accept-edit", "--table", str(path)]) == 0
    show_summary({"stage": "no stage", "note": FOREIGN})
    show_table(["a"], [[FOREIGN]])
    out, err = capsys.readouterr()
    check_lines(out)
    check_lines(err)
    assert len(err.splitlines()) == 3


def test_an_address_stays_as_it_is_in_a_table_and_a_command_does_not() -> None:
    assert cell("user@fe80::1 std::string") == "user@fe80::1 std::string"
    assert cell("::add-mask::x ::error file=a::1") == ": :add-mask: :x : :error file=a::1"
    assert plain("##[error]x") == "## [error]x"


def check_lines(text: str) -> None:
    for line in text.splitlines():
        assert line.isprintable(), line
        assert not line.lstrip().startswith("::"), line
        assert "##[" not in line
