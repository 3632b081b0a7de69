"""Read the configuration. In: bcnet.toml (or nothing) and what was typed. Out: a `Config`."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from bcnet.config.config import Config
from bcnet.config.keys import section_of
from bcnet.config.search import BUDGETS
from bcnet.errors import ConfigError, UsageError
from bcnet.plain import shown
from bcnet.toml_files import is_there, read_toml

CONFIG_FILE = Path("bcnet.toml")
# The built-in example: its settings that are not defaults.
EXAMPLE: Mapping[str, Mapping[str, Any]] = {
    "model": {"name": "digit-scenes", "weights": "pretrained"},
    "data": {"name": "digit-scenes"},
    "search": {"latency": "50%"},
    "slice": {"epochs": 3},
}
# Settings of which only one is given: one that is typed replaces whichever of them the file has.
ALTERNATIVES = {"search": BUDGETS, "slice": ("latency_ms", "latency")}
# What pydantic's words for a kind of value are in TOML.
KINDS = {
    "bool_type": "true or false",
    "tuple_type": 'a list, e.g. ["a", "b"]',
    "dict_type": "a table",
    "model_type": "a table",
}


def is_example(file: Path | None) -> bool:
    """Whether nothing is configured: no file is named and there is no bcnet.toml. Then it is the built-in
    example, a small trained network for handwritten digits, unless other data or another network is typed.
    """
    return file is None and not is_there(CONFIG_FILE)


def load_config(
    file: Path | None,
    flags: Mapping[str, Mapping[str, Any]] | None = None,
    assigned: Mapping[str, Any] | None = None,
) -> Config:
    """The configuration from `file` (default: bcnet.toml if it is there, else `EXAMPLE`), overridden by
    `assigned`, and both by `flags`. Where these name a network or data, `EXAMPLE` does not apply.

    `flags` maps a section's name ("" for the top level) to `{key: value}`; values of None are left out.
    `assigned` is nested like the file. Raises ConfigError for the file's content, UsageError
    for the others, and where `file` does not exist.
    """
    path = file if file is not None else CONFIG_FILE
    values: dict[str, Any] = {}
    if is_there(path):  # a broken link is an error; the defaults are never used then
        values = read_toml(path, ConfigError)
    elif file is not None:
        raise UsageError(f"{file} does not exist; create one with `bcnet init`")
    elif not any("name" in given.get(key, {}) for given in (flags or {}, assigned or {}) for key in EXAMPLE):
        values = {name: dict(keys) for name, keys in EXAMPLE.items()}
    try:
        config = Config.model_validate(values)
    except ValidationError as cause:
        raise ConfigError(f"{path}: {explained(cause)}") from None
    if not flags and not assigned:
        return config
    values = _merged(_without_alternatives(values, assigned or {}), assigned or {})
    given = {name: {k: v for k, v in keys.items() if v is not None} for name, keys in (flags or {}).items()}
    values = _without_alternatives(values, given)
    for name, keys in given.items():
        values |= {name: {**values.get(name, {}), **keys}} if name else keys
    try:
        return Config.model_validate(values)
    except ValidationError as cause:
        raise UsageError(explained(cause)) from None


def _merged(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with those of `given` in their place, table by table."""
    merged = dict(values)
    for key, value in given.items():
        own = merged.get(key)
        merged[key] = _merged(own, value) if isinstance(own, dict) and isinstance(value, dict) else value
    return merged


def _without_alternatives(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`values` without those that an alternative among `given` replaces."""
    kept = dict(values)
    for name, keys in ALTERNATIVES.items():
        if name in kept and not given.get(name, {}).keys().isdisjoint(keys):
            kept[name] = {key: value for key, value in kept[name].items() if key not in keys}
    return kept


def explained(cause: ValidationError, model: type[BaseModel] = Config) -> str:
    """One line for the first of pydantic's errors, with the nearest known key for an unknown one."""
    error = cause.errors()[0]
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _keys_of(model, error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
        return f"unknown key '{where}'; {hint}"
    if error["type"] == "value_error":
        return f"{where}: {error['ctx']['error']}" if where else str(error["ctx"]["error"])
    message = f"{error['msg'][0].lower()}{error['msg'][1:]}"
    if error["type"] in KINDS:
        message = f"input should be {KINDS[error['type']]}"
    return f"{where}: {message}, not {shown(error['input'])}"


def _keys_of(section: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        section = section_of(section.model_fields[str(part)]) or section
    return list(section.model_fields)
