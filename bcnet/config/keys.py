"""The settings by their dotted names, as "train.epochs"."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from bcnet.config.config import Config
from bcnet.config.section import Section


def section_of(field: FieldInfo) -> type[Section] | None:
    """The section that a field of `Config` holds; None for a single setting."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def settings(section: type[Section] = Config, prefix: str = "") -> dict[str, FieldInfo]:
    """The field of every setting of a section, and of the sections in it, by its dotted name."""
    found: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        inner = section_of(field)
        found |= {prefix + name: field} if inner is None else settings(inner, f"{prefix}{name}.")
    return found


def values_by_name(config: Config) -> dict[str, Any]:
    """The values of all settings that are given, by their dotted names."""
    return dict(_named(config.model_dump(exclude_unset=True), ""))


def _named(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _named(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
