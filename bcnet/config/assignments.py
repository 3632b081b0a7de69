"""`--set section.key=value`. In: what was typed. Out: values, nested as in bcnet.toml, not yet checked."""

import difflib
from collections.abc import Iterable
from typing import Any, get_args, get_origin

from bcnet.config.config import Config
from bcnet.config.keys import settings
from bcnet.errors import UsageError
from bcnet.plain import shown
from bcnet.reading import parse_toml


def assigned(texts: Iterable[str]) -> dict[str, Any]:
    """The values of all assignments; of several for one key, the last. Raises UsageError.

    A value is written as in TOML; text needs no quotes, because shells remove them.
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"--set takes section.key=value, e.g. train.epochs=3, not {shown(text)}")
        path = _known_path(name.strip())
        table = values
        for part in path[:-1]:
            if not isinstance(table.get(part), dict):  # not there, or replaced by this assignment
                table[part] = {}
            table = table[part]
        table[path[-1]] = _value(value.strip())
    return values


def _value(text: str) -> Any:
    try:
        values = parse_toml(f"value = {text}")
    except ValueError:
        return text
    return values["value"] if len(values) == 1 else text


def _known_path(name: str) -> list[str]:
    """The parts of a setting's name, or of an entry's in a table such as model.args. Raises UsageError."""
    known = settings()
    path = name.split(".")
    tables = {
        key
        for key, field in known.items()
        if any(get_origin(kind) is dict for kind in (field.annotation, *get_args(field.annotation)))
    }
    if name in known or any(".".join(path[:length]) in tables for length in range(1, len(path))):
        return path
    inside = [key for key in known if key.startswith(f"{name}.")]
    if inside:
        raise UsageError(f"--set {name}: this is a section; set one of its keys, e.g. {inside[0]}")
    raise UsageError(f"--set: unknown key {shown(name)}; {_hint(name, known)}")


def _hint(name: str, known: Iterable[str]) -> str:
    """The settings that may be meant: of this name in other sections, else with a similar one."""
    section, _, key = name.rpartition(".")
    inside = {other.rpartition(".")[2]: other for other in known if other.rpartition(".")[0] == section}
    same = [other for other in known if other.rpartition(".")[2] == key]
    near = (
        difflib.get_close_matches(name, same, n=3, cutoff=0)
        or [inside[similar] for similar in difflib.get_close_matches(key, inside, n=1)]
        or difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    )
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"known here: {', '.join(inside or Config.model_fields)}"
