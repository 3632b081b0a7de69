"""The file of a latency table: readable in a diff, described by a schema, refused when it cannot be meant."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import bcnet.latency_tables
from bcnet.errors import TableError
from bcnet.latency_tables.failed import FAILED_MS
from bcnet.latency_tables.file import json_schema
from bcnet.latency_tables.model import LatencyModel, LayerSlot
from bcnet.latency_tables.rows import (
    Calibration,
    Failure,
    LatencyStat,
    LayerSpec,
    Row,
    Session,
    Setting,
)
from bcnet.latency_tables.table import LatencyTable
from bcnet.runs import digest

SCHEMA = Path(bcnet.latency_tables.__file__).parent / "schema.json"
FP32 = Setting("onnxruntime", "fp32", 1, 1, "default")
INT8 = replace(FP32, precision="int8", batch=4)
CONV = LayerSpec("Conv", 8, 16, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, "Relu", False, 16, 16)
GEMM = LayerSpec("Gemm", 16, 10)


def table() -> LatencyTable:
    """Two rows at one setting, a row and a failure at another, a calibration."""
    made = LatencyTable("cpu", [Session("2026-01-01", {"runtime": "onnxruntime"}, {"matmul_ms": 0.2})])
    for layer, setting, ms in ((CONV, FP32, 1.0), (GEMM, FP32, 0.1), (CONV, INT8, 0.5)):
        made.rows[layer, setting] = Row(layer, setting, LatencyStat(ms, ms * 1.1, 0.01, 10), 0)
    made.failures[GEMM, INT8] = Failure(GEMM, INT8, "no such kernel", 0)
    made.calibrations["m", FP32] = Calibration("m", FP32, "r", 0.1, 1.0, 12, 12, 0.01, 1.0, 1.0, 0.99, 0.01)
    return made


def saved(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    path = tmp_path / "latency_tables" / "cpu.json"
    table().save(path)
    return path, json.loads(path.read_text(encoding="utf-8"))


def test_rows_of_several_settings_and_failures_survive_the_file(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    assert LatencyTable.load(path) == table()


def test_the_documented_schema_is_what_loading_validates(tmp_path: Path) -> None:
    documented = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert documented == json_schema()
    _, raw = saved(tmp_path)
    jsonschema.validate(raw, documented)
    first(raw)["stat"]["median_ms"] = -1.0
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(raw, documented)


def test_a_new_row_is_one_new_line_in_a_diff(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    before = path.read_text(encoding="utf-8").splitlines()
    grown = table()
    grown.sessions.append(Session("2026-01-02", {"runtime": "onnxruntime"}, {"matmul_ms": 0.2}))
    between = replace(CONV, out_channels=24)
    grown.rows[between, FP32] = Row(between, FP32, LatencyStat(1.5, 1.6, 0.01, 10), 1)
    grown.save(path)
    after = path.read_text(encoding="utf-8").splitlines()
    added = [line for line in after if line not in before and line.rstrip(",") not in before]
    assert [line.split(":")[0] for line in added] == ['  {"date"', '   {"layer"']
    assert '"median_ms": 1.5' in added[1]
    assert len(after) == len(before) + 2


def test_defaults_are_left_out_of_a_row(tmp_path: Path) -> None:
    _, raw = saved(tmp_path)
    (row,) = [row for row in raw["settings"][0]["rows"] if row["layer"]["op"] == "Gemm"]
    assert row["layer"] == {"op": "Gemm", "in_channels": 16, "out_channels": 10}


def test_a_table_of_schema_1_is_migrated(tmp_path: Path) -> None:
    own = table()
    own.failures, own.calibrations = {}, dict(own.calibrations)
    fitted = [asdict(entry) for entry in own.calibrations.values()]
    old = {
        "schema": 1,
        "device": "cpu",
        "sessions": [
            {"date": "2026-01-01", "provenance": {"runtime": "onnxruntime"}, "probe": {"matmul_ms": 0.2}}
        ],
        "rows": [asdict(row) for row in own.rows.values()],
        "calibrations": [{**entry, "digest": digest(entry)} for entry in fitted],
    }
    path = tmp_path / "cpu.json"
    path.write_text(json.dumps(old), encoding="utf-8")
    loaded = LatencyTable.load(path)
    # The probe of schema 1 multiplied larger matrices: it is not today's part of that name.
    assert [session.probe for session in loaded.sessions] == [{"matmul_256_ms": 0.2}]
    assert replace(loaded, sessions=own.sessions) == replace(own, calibrations={})


def as_of_schema_3(raw: dict[str, Any]) -> dict[str, Any]:
    """The same in the form of an earlier version: rows name their session by index, and have no seals."""
    places = {session["id"]: place for place, session in enumerate(raw["sessions"])}
    for block in raw["settings"]:
        for row in block["rows"]:
            row["session"] = places[row["session"]]
            del row["seal"]
    for session in raw["sessions"]:
        del session["id"], session["seal"]
    return {**raw, "schema": 3}


def test_a_table_of_schema_2_keeps_its_rows_and_is_calibrated_again(tmp_path: Path) -> None:
    path, own = tmp_path / "cpu.json", table()
    own.save(path)
    raw = json.loads(path.read_text(encoding="utf-8"))
    fitted = {**asdict(next(iter(own.calibrations.values()))), "curve": 0.1}
    raw = as_of_schema_3(raw) | {"schema": 2, "calibrations": [{**fitted, "digest": digest(fitted)}]}
    path.write_text(json.dumps(raw), encoding="utf-8")
    assert LatencyTable.load(path) == replace(own, calibrations={})


def edit(raw: dict[str, Any], **values: Any) -> None:
    first(raw)["stat"] |= values


def first(raw: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = raw["settings"][0]["rows"][0]
    return row


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda raw: edit(raw, median_ms=float("nan")),
            "median_ms .the row of .*Conv",
        ),
        (lambda raw: edit(raw, median_ms=-0.5), "greater than or equal to 0"),
        (lambda raw: edit(raw, median_ms=1e9), "less than 1000000"),
        (lambda raw: edit(raw, p90_ms="1.0"), "valid number"),
        (lambda raw: edit(raw, samples=0), "a measured row has no samples"),
        (
            lambda raw: raw["settings"][0]["rows"].append(first(raw)),
            "two rows for Conv 3x3 8->16",
        ),
        (lambda raw: raw["settings"].append(raw["settings"][0]), "two rows for Conv 3x3 8->16"),
        (
            lambda raw: first(raw)["layer"].update(in_channels=0),
            "greater than or equal to 1",
        ),
        (lambda raw: first(raw).pop("stat"), "needs a stat or an error"),
        (lambda raw: first(raw).update(session=0), "session 0, which does not exist"),
        (lambda raw: first(raw).update(session="none"), "session 'none', which does not exist"),
        (lambda raw: raw["sessions"].append(raw["sessions"][0]), "two sessions have the same id"),
        (lambda raw: raw["sessions"][0].pop("id"), "two sessions have the same id, or one has none"),
        (lambda raw: first(raw)["layer"].update(in_channels=10**30), "less than or equal to 2147483647"),
        (lambda raw: first(raw)["layer"].update(kernel=[10**30]), "less than or equal to 2147483647"),
        (lambda raw: first(raw)["layer"].update(activation="x" * 10_001), "at most 10000 characters"),
        (lambda raw: raw["settings"][0]["rows"].append(7), "cut short or edited .a number instead"),
        (lambda raw: raw["settings"][0]["setting"].update(batch=0), "greater than or equal to 1"),
        (lambda raw: raw["sessions"][0].update(temperature=3), "[Uu]nexpected"),
        (lambda raw: raw["sessions"][0]["probe"].update(matmul_ms=0.0), "greater than 0"),
        (lambda raw: raw["sessions"][0]["probe_spread"].update(matmul_ms=float("nan")), "probe_spread"),
        (lambda raw: raw.update(schema=1, rows=None), "is not a table of schema 1"),
        (lambda raw: raw.update(schema=5), "schema 5, but this bcnet reads 1 to 4"),
        (lambda raw: raw.update(schema=None), "schema None"),
        (lambda raw: raw["calibrations"][0].update(scale=2.0), "calibration of model m was edited"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_named(tmp_path: Path, change: Any, message: str) -> None:
    path, raw = saved(tmp_path)
    change(raw)
    path.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(TableError, match=message) as caught:
        LatencyTable.load(path)
    assert "\n" not in str(caught.value)
    assert "bcnet build-lut --device cpu" in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"x"', "{}"])
def test_json_that_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cpu.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TableError, match=r"cpu\.json"):
        LatencyTable.load(path)


def test_a_file_that_has_grown_to_terabytes_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    os.truncate(path, 1 << 42)  # zeros after the last line, which take no room on the disk
    with pytest.raises(TableError, match=r"it holds more than 268,435,456 bytes beside its rows"):
        LatencyTable.load(path)


def test_a_table_on_one_long_line_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, value = saved(tmp_path)
    before = LatencyTable.load(path).rows
    monkeypatch.setattr("bcnet.latency_tables.file.LONGEST_LINE", 600)  # more than a row has
    assert LatencyTable.load(path).rows == before
    path.write_text(json.dumps(value), encoding="utf-8")
    assert LatencyTable.load(path).rows == before


def test_networks_with_a_layer_that_failed_cost_more_than_any_other() -> None:
    one, other = replace(CONV, groups=1), replace(CONV, out_channels=24)
    made = LatencyTable("cpu", [Session("2026-01-01", {}, {})])
    made.rows[one, FP32] = Row(one, FP32, LatencyStat(1.0, 1.1, 0.01, 10), 0)
    made.failures[other, FP32] = Failure(other, FP32, "no such kernel", 0)
    slot = LayerSlot("a", other, ((None, 8),), ((0, 1),), None, ("a",))
    calibration = Calibration("m", FP32, "r", 0.0, 1.0, 12, 12, 0.01, 1.0, 1.0, 0.99, 0.01)
    model = LatencyModel(made, FP32, [slot], [(16, 24)], calibration)
    assert model.price_many(np.array([[0], [1]])).tolist() == [1.0, FAILED_MS]
    offset, ((_, array),) = model.pairwise()
    assert (offset, array.tolist()) == (0.0, [1.0, 1000.0])
