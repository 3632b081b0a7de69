"""Seals: rows edited by hand are named, intended edits are accepted, two branches merge."""

import json
import os
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from test_file import CONV, FP32, GEMM, as_of_schema_3, table

from bcnet.cli import main
from bcnet.errors import TableError
from bcnet.latency_tables.against import compare_tables
from bcnet.latency_tables.file import BATCH
from bcnet.latency_tables.rows import Calibration, LatencyStat, Row, Session
from bcnet.latency_tables.table import LatencyTable
from bcnet.runs import digest

FP16 = '"precision": "fp16", "batch": 1, "threads": 1, "power_mode": "default"}, "rows": ['


@pytest.fixture
def path(folder: Path) -> Path:
    """A sealed table in its place."""
    found = Path("latency_tables/cpu.json")
    table().save(found)
    return found


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, text
    path.write_text(text.replace(old, new), encoding="utf-8")


def seals(path: Path) -> list[str]:
    raw = json.loads(path.read_text(encoding="utf-8"))
    return [row["seal"] for block in raw["settings"] for row in block["rows"]]


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ('"median_ms": 1.0', '"median_ms": 0.9', f"{CONV} at {FP32}"),
        ('"p90_ms": 0.11000000000000001', '"p90_ms": 0.2', f"{GEMM} at {FP32}"),
        (
            '"samples": 10}, "session": "ID", "seal": "GEMM',
            '"samples": 11}, "session": "ID", "seal": "GEMM',
            "Gemm",
        ),
        ('"error": "no such kernel"', '"error": "a bad day"', "Gemm 16->10"),
        (
            '"in_channels": 16, "out_channels": 10}, "stat"',
            '"in_channels": 16, "out_channels": 9}, "stat"',
            "16->9",
        ),
    ],
)
def test_an_edited_row_is_named_with_both_digests(path: Path, old: str, new: str, what: str) -> None:
    raw = json.loads(path.read_text(encoding="utf-8"))
    (gemm,) = [row for row in raw["settings"][0]["rows"] if row["layer"]["op"] == "Gemm"]
    for name, value in (("ID", raw["sessions"][0]["id"]), ("GEMM", gemm["seal"])):
        old, new = old.replace(name, value), new.replace(name, value)
    edited(path, old, new)
    with pytest.raises(TableError) as caught:
        LatencyTable.load(path)
    text = str(caught.value)
    found = re.fullmatch(
        r"latency_tables/cpu\.json: the row of (.*) was edited: its seal is ([0-9a-f]{8}), but should be "
        r"([0-9a-f]{8}); restore the file, or, if the edit is meant, run `bcnet lut accept-edit --table "
        r"latency_tables/cpu\.json`",
        text,
    )
    assert found is not None, text
    assert what in found[1]
    assert found[2] in seals(path)
    assert found[3] not in seals(path)


def test_all_rows_of_a_setting_that_was_changed_are_edited(path: Path) -> None:
    edited(path, '"precision": "fp32", "batch": 1, "threads": 1, "power_mode": "default"}, "rows": [', FP16)
    with pytest.raises(TableError, match=r"fp16, .* \(the first of 2 rows\); restore the file"):
        LatencyTable.load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw["settings"][0]["rows"].pop(),
        lambda raw: raw["sessions"][0].update(estimate=True),
        lambda raw: raw["sessions"][0]["provenance"].update(runtime="other"),
        lambda raw: raw["sessions"][0].update(seal=""),
    ],
)
def test_a_session_that_was_edited_or_lost_a_row_is_named_with_both_digests(path: Path, change: Any) -> None:
    raw = json.loads(path.read_text(encoding="utf-8"))
    change(raw)
    path.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(
        TableError,
        match=r"cpu\.json: session [0-9a-f]{8} of 2026-01-01 was edited, or some of its rows were removed, "
        r"added or sealed by hand: its seal is ([0-9a-f]{16}|missing), but should be [0-9a-f]{16}; restore",
    ):
        LatencyTable.load(path)


@pytest.mark.parametrize("indent", [None, 0, 1, 3])
def test_a_file_that_was_only_written_in_another_form_is_not_edited(path: Path, indent: int | None) -> None:
    raw = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(raw, indent=indent, sort_keys=True), encoding="utf-8")
    assert LatencyTable.load(path) == table()
    path.write_bytes(json.dumps(raw, indent=indent).encode().replace(b"\n", b"\r\n"))
    assert LatencyTable.load(path) == table()


def test_a_table_without_seals_loads_as_it_is_and_is_sealed_when_it_is_written(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = as_of_schema_3(json.loads(path.read_text(encoding="utf-8")))
    raw["settings"][0]["rows"][0]["stat"]["median_ms"] = 0.9  # nobody can tell
    path.write_text(json.dumps(raw, indent=1), encoding="utf-8")
    loaded = LatencyTable.load(path)
    own = table()
    own.rows[CONV, FP32] = replace(
        own.rows[CONV, FP32], stat=replace(own.rows[CONV, FP32].stat, median_ms=0.9)
    )
    assert loaded == own
    assert capsys.readouterr().err == ""
    for _ in range(2):
        loaded.save(path)
    assert capsys.readouterr().err == (
        "latency_tables/cpu.json: its rows are now sealed, so later edits by hand will be reported\n"
    )
    assert LatencyTable.load(path) == own
    edited(path, '"median_ms": 0.9', '"median_ms": 0.8')
    with pytest.raises(TableError, match="was edited"):
        LatencyTable.load(path)


def test_an_edit_that_is_meant_is_accepted_and_stays_on_record(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edited(path, '"median_ms": 1.0', '"median_ms": 0.9')
    edited(path, '"error": "no such kernel"', '"error": "a bad day"')
    assert main(["check-lut", "--against", str(path)]) == 1
    assert "the row of Conv 3x3 8->16 + Relu at 16x16" in capsys.readouterr().err
    assert main(["lut", "accept-edit"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"accepted: the row of {CONV} at {FP32} was edited"
    assert out[2] == (
        "latency_tables/cpu.json is sealed again; run `bcnet build-lut --device cpu` to fit its calibrations "
        "again"
    )
    loaded = LatencyTable.load(path)
    assert loaded.rows[CONV, FP32].stat.median_ms == 0.9
    assert re.fullmatch(r"2 rows by hand, accepted \d{4}-\d\d-\d\d", loaded.sessions[0].provenance["edited"])
    assert loaded.calibrations == table().calibrations
    edited(path, '"median_ms": 0.9', '"median_ms": 0.8')
    assert main(["lut", "accept-edit", "--table", str(path), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["rows_edited"], summary["sessions_edited"]) == (1, 1)
    assert LatencyTable.load(path).sessions[0].provenance["edited"].count("by hand") == 2
    before = path.read_bytes()
    assert main(["lut", "accept-edit"]) == 0
    assert capsys.readouterr().out == "latency_tables/cpu.json: no edits found\n"
    assert path.read_bytes() == before


def test_of_many_edits_the_first_are_named_and_all_are_counted(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"session": "', '"cache_use": 0.5, "session": "'), encoding="utf-8")
    assert main(["lut", "accept-edit"]) == 0
    rows = len(seals(path))
    *named, counted, _ = capsys.readouterr().out.splitlines()
    assert [line.startswith("accepted: the row of ") for line in named] == [True] * 3
    assert counted == f"accepted: {rows - 3} more; {rows} edited rows in all, in 1 session"


def test_an_edit_that_cannot_be_meant_is_not_accepted(path: Path, refused: Any) -> None:
    edited(path, '"median_ms": 1.0', '"median_ms": 1e400')
    assert "settings.0.rows.0.stat.median_ms (the row of" in refused(1, "lut", "accept-edit")
    assert "missing; run `bcnet build-lut" in refused(1, "lut", "accept-edit", "--table", "no.json")


def grown(channels: int, date: str, ms: float) -> LatencyTable:
    """The table after a branch has measured one more layer in a session of its own."""
    made = table()
    layer = replace(CONV, out_channels=channels)
    made.sessions.append(Session(date, {"runtime": "onnxruntime"}, {"matmul_ms": 0.2}))
    made.rows[layer, FP32] = Row(layer, FP32, LatencyStat(ms, ms, 0.01, 10), 1)
    return made


def test_two_sessions_of_two_branches_merge_line_by_line(folder: Path) -> None:
    ours, theirs, merged = Path("ours.json"), Path("theirs.json"), Path("merged.json")
    grown(24, "2026-02-01", 1.5).save(ours)
    grown(32, "2026-03-01", 2.5).save(theirs)
    one, other = (json.loads(file.read_text(encoding="utf-8")) for file in (ours, theirs))
    one["sessions"].append(other["sessions"][1])
    one["settings"][0]["rows"] += [
        row for row in other["settings"][0]["rows"] if row["layer"]["out_channels"] == 32
    ]
    merged.write_text(json.dumps(one, indent=1), encoding="utf-8")
    loaded = LatencyTable.load(merged)
    dates = {
        layer.out_channels: loaded.sessions[row.session].date
        for (layer, at), row in loaded.rows.items()
        if at == FP32 and layer.op == "Conv"
    }
    assert dates == {16: "2026-01-01", 24: "2026-02-01", 32: "2026-03-01"}
    loaded.save(merged)
    assert set(seals(merged)) == {*seals(ours), *seals(theirs)}


def test_sessions_that_are_equal_in_all_they_hold_stay_two(path: Path) -> None:
    made = table()
    made.sessions.append(made.sessions[0])
    made.rows[CONV, FP32] = replace(made.rows[CONV, FP32], session=1)
    made.save(path)
    assert LatencyTable.load(path) == made


def test_tables_with_and_without_seals_are_compared(path: Path) -> None:
    old = Path("old.json")
    old.write_text(json.dumps(as_of_schema_3(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")
    report = compare_tables(LatencyTable.load(path), LatencyTable.load(old))
    assert (report.findings, report.rows) == ((), 3)


def test_more_rows_than_are_read_at_once_are_all_there(path: Path) -> None:
    made = table()
    for channels in range(1, 2 * BATCH + 2):
        layer = replace(CONV, in_channels=channels)
        made.rows[layer, FP32] = Row(layer, FP32, LatencyStat(channels / 7, channels / 6, 0.01, 10), 0, 0.5)
    made.save(path)
    assert LatencyTable.load(path) == made
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    (number,) = [number for number, line in enumerate(lines) if '"in_channels": 5000,' in line]
    for change, message in (
        (
            lambda line: line.replace('"spread": 0.01', '"spread": -1'),
            r"settings\.0\.rows\.4999\.stat\.spread",
        ),
        (lambda line: line.replace('"samples": 10', '"samples": 12'), r"Conv 3x3 5000->16 .* was edited"),
        (lambda line: line.replace("5000", "4999"), r"holds two rows for Conv 3x3 4999->16"),
        (lambda line: line.replace(":", ";", 1), r"cut short or edited \(Expecting ':' delimiter"),
        (lambda line: line + line, r"holds two rows for Conv 3x3 5000->16"),
        (lambda line: "", r"session .* or some of its rows were removed"),
    ):
        text = "".join([*lines[:number], change(lines[number]), *lines[number + 1 :]])
        path.write_text(text, encoding="utf-8")
        with pytest.raises(TableError, match=message):
            LatencyTable.load(path)


def test_a_calibration_that_is_sealed_but_not_finite_is_refused(path: Path) -> None:
    raw = json.loads(path.read_text(encoding="utf-8"))
    entry = asdict(Calibration("m", FP32, "r", float("inf"), 1.0, 12, 12, 0.01, 1.0, 1.0, 0.99, 0.01))
    raw["calibrations"] = [{**entry, "digest": digest(entry)}]
    path.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(TableError, match="the calibration of model m was edited"):
        LatencyTable.load(path)


def test_what_is_no_plain_file_is_refused_at_once(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(TableError, match=r"cpu\.json cannot be read: it is not a regular file"):
        LatencyTable.load(path)
    path.unlink()
    path.symlink_to(path.name)
    with pytest.raises(TableError, match=r"cpu\.json cannot be read: Too many levels of symbolic links"):
        LatencyTable.load(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(
        TableError, match=r"cpu\.json cannot be read: (it is not a regular file|Is a directory)"
    ):
        LatencyTable.load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        (
            '{"schema": 4, "sessions": ' + "[" * 900 + "]" * 900 + "}",
            r"cut short or edited \(Invalid JSON: recursion",
        ),
        ('{"schema": ' + "1" * 5000 + "}", "cut short or edited"),
        ('{"schema": 4, "device": "\udcff"}', "cut short or edited|Field required"),
    ],
)
def test_json_without_bounds_is_one_line(path: Path, text: str, message: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(TableError, match=message) as caught:
        LatencyTable.load(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
