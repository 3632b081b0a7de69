"""What `bcnet init` writes: a bcnet.toml with every key, its description, and its default or an example."""

from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo

from bcnet.config.config import Config
from bcnet.config.keys import section_of


def template(values: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """A commented bcnet.toml with every key. Keys that have an example are commented out: their default
    is to be absent, because a value that is written down takes precedence over what is found otherwise.
    `values` of sections are written in place of their keys' defaults."""
    lines = ["# bcnet.toml: every key with its default. Delete what you do not change.", ""]
    if values:
        changed = ", ".join(f"{name}.{key}" for name, keys in values.items() for key in keys)
        lines.insert(1, f"# Only these are not defaults, but those of the built-in example: {changed}.")
    sections = []
    for name, field in Config.model_fields.items():
        section = section_of(field)
        if section is None:
            lines += _lines(name, field, None)
        else:
            sections.append((name, section))
    for name, section in sections:
        title = (section.__doc__ or "").splitlines()[0]
        lines += ["", f"# {title}", f"[{name}]"]
        for key, field in section.model_fields.items():
            lines += _lines(key, field, (values or {}).get(name, {}).get(key))
    return "\n".join(lines) + "\n"


def _lines(key: str, field: FieldInfo, value: Any) -> list[str]:
    default = toml(field.get_default(call_default_factory=True))
    if value is not None:
        usual = "" if field.examples else f" (default: {default})"
        return [f"# {field.description}{usual}", f"{key} = {toml(value)}"]
    if field.examples:
        return [f"# {field.description}", f"# {key} = {toml(field.examples[0])}"]
    return [f"# {field.description}", f"{key} = {default}"]


def toml(value: object) -> str:
    """A setting's value as it is written in bcnet.toml."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, int):
        return f"{value:_}" if value >= 10_000 else str(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return "{}"
    return repr(value)
