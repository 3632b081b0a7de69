"""The layout of a latency table's file: its schema, migrations of older schemas, and the text of a row.

In: JSON values, or rows. Out: validated objects, or the canonical text of a row. `schema.json` documents the
layout for other tools.
"""

import json
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from bcnet.errors import TableError
from bcnet.latency_tables.rows import STRICT, Calibration, LatencyStat, LayerSpec, Session, Setting, Text
from bcnet.plain import plain
from bcnet.runs import digest

SCHEMA = 4
PROBE_1 = {"matmul_ms": "matmul_256_ms"}  # parts of the reference microbenchmark: name in schema 1, name now
Seal = Annotated[str, Field(max_length=64)]


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the file: `stat`, or `error` if the runtime could not run the layer.

    `session` is the id of its session; up to schema 3 it was the index in the list. `seal` is the row's
    checksum.
    """

    __pydantic_config__ = STRICT

    layer: LayerSpec
    session: Text | Annotated[int, Field(ge=0)]
    stat: LatencyStat | None = None
    error: Text | None = None
    cache_use: Annotated[float, Field(ge=0, le=1)] | None = None
    seal: Seal = ""


@dataclass(frozen=True)
class Block:
    """All rows of one setting."""

    __pydantic_config__ = STRICT

    setting: Setting
    rows: list[Line]


@dataclass(frozen=True)
class SealedSession(Session):
    """A session with the digest of its own values and of all its rows."""

    seal: Seal = ""


@dataclass(frozen=True)
class SealedCalibration(Calibration):
    """A calibration with a hash that shows whether it was edited."""

    digest: str = ""


@dataclass(frozen=True)
class File:
    """The latency table of one device."""

    __pydantic_config__ = STRICT

    schema: Literal[4]
    device: Text
    sessions: list[SealedSession]
    settings: list[Block]
    calibrations: list[SealedCalibration]


FILE: TypeAdapter[File] = TypeAdapter(File)
LINES: TypeAdapter[list[Line]] = TypeAdapter(list[Line])
_DEFAULTS = tuple((f.name, f.default) for f in fields(LayerSpec))
_STAT = tuple(f.name for f in fields(LatencyStat))


def json_schema() -> dict[str, Any]:
    """The JSON schema of the file; `schema.json` in this folder has it for other tools."""
    return {"title": "bcnet latency table", **FILE.json_schema()}


def row_text(line: Line) -> str:
    """A row as JSON, up to its seal; a layer's default values are omitted."""
    layer = {name: value for name, default in _DEFAULTS if (value := getattr(line.layer, name)) != default}
    values: dict[str, Any] = {"layer": layer}
    if line.stat is not None:
        values["stat"] = {name: getattr(line.stat, name) for name in _STAT}
    if line.cache_use is not None:
        values["cache_use"] = line.cache_use
    if line.error is not None:
        values["error"] = line.error
    values["session"] = line.session
    return json.dumps(values)[:-1]


def migrated(raw: Any) -> Any:
    """The values of an older file in the current layout. Raises TableError if the schema is not supported."""
    if not isinstance(raw, dict) or raw.get("schema") == SCHEMA:
        return raw
    if raw.get("schema") == 3:  # rows named their session by its index; only calibrations were sealed
        return {**raw, "schema": SCHEMA}
    if raw.get("schema") == 2:  # calibrations had another form: `build-lut` has to calibrate again
        return {**raw, "schema": SCHEMA, "calibrations": []}
    if raw.get("schema") != 1:
        raise TableError(f"has schema {raw.get('schema')!r}, but this bcnet reads 1 to {SCHEMA}")
    # Schema 1 had the setting and default values in every row, and another reference microbenchmark.
    blocks: dict[str, dict[str, Any]] = {}
    try:
        for row in raw["rows"]:
            line = {key: value for key, value in row.items() if key != "setting"}
            block = {"setting": row["setting"], "rows": list[Any]()}
            blocks.setdefault(digest(row["setting"]), block)["rows"].append(line)
        sessions = [
            {**session, "probe": {PROBE_1.get(part, part): ms for part, ms in session["probe"].items()}}
            for session in raw["sessions"]
        ]
    except (KeyError, TypeError, AttributeError) as cause:
        raise TableError(f"is not a table of schema 1 ({type(cause).__name__}: {cause})") from None
    kept = {key: value for key, value in raw.items() if key != "rows"}
    return {
        **kept,
        "schema": SCHEMA,
        "sessions": sessions,
        "settings": list(blocks.values()),
        "calibrations": [],
    }


def explained(cause: ValidationError, raw: Any, where: tuple[int | str, ...] = (), first: int = 0) -> str:
    """The first of pydantic's errors in `raw`, with the row in which it occurs.

    `where` is the path of `raw` in the file, `first` the index of its first row.
    """
    error = cause.errors()[0]
    found: Any = raw
    layer = None
    place = [
        part + first if number == 0 and isinstance(part, int) else part
        for number, part in enumerate(error["loc"])
    ]
    for part in error["loc"]:
        try:
            found = found[part]
        except (KeyError, IndexError, TypeError):
            break
        if isinstance(found, dict) and isinstance(found.get("layer"), dict):
            layer = found["layer"]
    about = f" (the row of {plain(json.dumps(layer))})" if layer else ""
    return f"{plain('.'.join(map(str, (*where, *place))))}{about}: {error['msg']}"
