"""The JSON file of a latency table, reviewed like code: validated, migrated, written in a stable order.

In: a path, or what a table holds. Out: what a file holds, or its text. `schema.json` documents the layout.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from bcnet.artifacts import digest
from bcnet.errors import TableError
from bcnet.latency_tables.rows import (
    STRICT,
    Calibration,
    Failure,
    LatencyStat,
    LayerSpec,
    Row,
    Session,
    Setting,
)

SCHEMA = 3
PROBE_1 = {"matmul_ms": "matmul_256_ms"}  # what schema 1 called parts of its probe, and their names now


@dataclass
class Content:
    """All that a table holds."""

    device: str
    sessions: list[Session] = field(default_factory=list)
    rows: dict[tuple[LayerSpec, Setting], Row] = field(default_factory=dict)
    failures: dict[tuple[LayerSpec, Setting], Failure] = field(default_factory=dict)
    calibrations: dict[tuple[str, Setting], Calibration] = field(default_factory=dict)


@dataclass(frozen=True)
class _Line:
    """A row of the file: `stat`, or the `error` of a runtime that could not run the layer."""

    __pydantic_config__ = STRICT

    layer: LayerSpec
    session: Annotated[int, Field(ge=0)]
    stat: LatencyStat | None = None
    error: str | None = None
    cache_use: Annotated[float, Field(ge=0, le=1)] | None = None


@dataclass(frozen=True)
class _Block:
    """All rows of one setting."""

    __pydantic_config__ = STRICT

    setting: Setting
    rows: list[_Line]


@dataclass(frozen=True)
class _Sealed(Calibration):
    """A calibration with the hash that tells whether it was edited."""

    digest: str = ""


@dataclass(frozen=True)
class _File:
    """The latency table of one device."""

    __pydantic_config__ = STRICT

    schema: Literal[3]
    device: str
    sessions: list[Session]
    settings: list[_Block]
    calibrations: list[_Sealed]


_ADAPTER: TypeAdapter[_File] = TypeAdapter(_File)


def json_schema() -> dict[str, Any]:
    """The JSON schema of the file; `schema.json` beside this module holds it for other tools."""
    return {"title": "bcnet latency table", **_ADAPTER.json_schema()}


def read(path: Path) -> Content:
    """What a file holds. Raises TableError: missing, cut short, edited to nonsense, another schema."""
    # Only a file in its place tells the device by its name.
    device = f" --device {path.stem}" if path.parent.name == "latency_tables" else ""
    mend = f"run `bcnet build-lut{device}`"
    restore = f"restore the file, or delete it and {mend}"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TableError(f"{path} is missing; {mend}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as cause:
        raise TableError(f"{path} is cut short or edited ({cause}); {restore}") from None
    try:
        raw = _migrated(raw)
        file = _ADAPTER.validate_json(json.dumps(raw))
        content = Content(file.device, file.sessions)
        for block in file.settings:
            for line in block.rows:
                _add(content, line, block.setting)
    except ValidationError as cause:
        raise TableError(f"{path}: {_explained(cause, raw)}; {restore}") from None
    except TableError as cause:
        raise TableError(f"{path}: {cause}; {restore}") from None
    for sealed, entry in zip(file.calibrations, raw["calibrations"], strict=True):
        calibration = Calibration(**{f.name: getattr(sealed, f.name) for f in fields(Calibration)})
        if sealed.digest != digest({key: value for key, value in entry.items() if key != "digest"}):
            raise TableError(
                f"{path}: the calibration of model {sealed.model} was edited; restore the file, or take "
                f"that line out and {mend}"
            )
        content.calibrations[calibration.model, calibration.setting] = calibration
    return content


def text_of(content: Content) -> str:
    """The file's text: a block a setting, rows in a stable order, one a line."""
    lines: dict[Setting, list[_Line]] = {}
    for row in content.rows.values():
        lines.setdefault(row.setting, []).append(
            _Line(row.layer, row.session, row.stat, cache_use=row.cache_use)
        )
    for failure in content.failures.values():
        lines.setdefault(failure.setting, []).append(
            _Line(failure.layer, failure.session, error=failure.error)
        )
    blocks = [
        f'  {{"setting": {json.dumps(asdict(setting))}, "rows": [\n'
        + _lines((_without_defaults(line) for line in sorted(own, key=lambda line: line.layer)), 3)
        + "\n  ]}"
        for setting, own in sorted(lines.items())
    ]
    fitted = [asdict(content.calibrations[key]) for key in sorted(content.calibrations)]
    sealed = ({**entry, "digest": digest(entry)} for entry in fitted)
    return (
        f'{{\n "schema": {SCHEMA},\n "device": {json.dumps(content.device)},\n'
        f' "sessions": [\n{_lines(map(asdict, content.sessions), 2)}\n ],\n'
        f' "settings": [\n{_joined(blocks)}\n ],\n'
        f' "calibrations": [\n{_lines(sealed, 2)}\n ]\n}}\n'
    )


def _add(content: Content, line: _Line, setting: Setting) -> None:
    key = line.layer, setting
    if key in content.rows or key in content.failures:
        raise TableError(f"holds two rows for {line.layer} at {setting}")
    if line.session >= len(content.sessions):
        raise TableError(f"a row names session {line.session}, which is not there")
    if (line.stat is None) == (line.error is None):
        raise TableError(f"the row of {line.layer} needs a stat or an error")
    if line.stat is None:
        content.failures[key] = Failure(*key, line.error or "", line.session)
        return
    if not line.stat.samples and not content.sessions[line.session].estimate:
        raise TableError(f"a measured row has no samples: {line.layer}")
    content.rows[key] = Row(*key, line.stat, line.session, line.cache_use)


def _migrated(raw: Any) -> Any:
    """An older file's values in today's layout. Raises TableError where this bcnet cannot read the schema."""
    if not isinstance(raw, dict) or raw.get("schema") == SCHEMA:
        return raw
    if raw.get("schema") == 2:  # calibrations had another form: `build-lut` measures their subnets anew
        return {**raw, "schema": SCHEMA, "calibrations": []}
    if raw.get("schema") != 1:
        raise TableError(f"has schema {raw.get('schema')!r}, this bcnet reads 1 to {SCHEMA}")
    # Schema 1 repeated the setting in every row, wrote out default values, and had another probe.
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
        raise TableError(f"is no table of schema 1 ({type(cause).__name__}: {cause})") from None
    kept = {key: value for key, value in raw.items() if key != "rows"}
    return {
        **kept,
        "schema": SCHEMA,
        "sessions": sessions,
        "settings": list(blocks.values()),
        "calibrations": [],
    }


def _explained(cause: ValidationError, raw: Any) -> str:
    """The first of pydantic's errors, with the row that it is about."""
    error = cause.errors()[0]
    where = ".".join(str(part) for part in error["loc"])
    found: Any = raw
    layer = None
    for part in error["loc"]:
        try:
            found = found[part]
        except (KeyError, IndexError, TypeError):
            break
        if isinstance(found, dict) and isinstance(found.get("layer"), dict):
            layer = found["layer"]
    about = f" (the row of {json.dumps(layer)})" if layer else ""
    return f"{where}{about}: {error['msg']}"


def _without_defaults(line: _Line) -> dict[str, Any]:
    """A row's values as short as they can be told: what is at its default is left out."""
    values = {key: value for key, value in asdict(line).items() if value is not None}
    defaults = {f.name: f.default for f in fields(LayerSpec)}
    values["layer"] = {key: value for key, value in values["layer"].items() if value != defaults[key]}
    order = ("layer", "stat", "cache_use", "error", "session")
    return {key: values[key] for key in order if key in values}


def _lines(values: Iterable[dict[str, Any]], indent: int) -> str:
    return _joined([" " * indent + json.dumps(value) for value in values])


def _joined(lines: Sequence[str]) -> str:
    return ",\n".join(lines)
