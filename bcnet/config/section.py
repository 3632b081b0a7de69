"""The base of all sections of bcnet.toml, and what several of them check."""

import math
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict

from bcnet.plain import shown


class Section(BaseModel):
    """A table of bcnet.toml.

    Each field's description and example are also the comment that `bcnet init` writes and the help of the
    field's option. A field with an example is left out by default.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def latency_share(text: str) -> float:
    """`"60%"` as 0.6. Raises ValueError for any other notation."""
    number = text.strip().removesuffix("%")
    try:
        share = float(number) / 100
    except ValueError:
        share = math.nan
    if not text.strip().endswith("%") or not (math.isfinite(share) and share > 0):
        raise ValueError(f"a latency share is written as 60%, above zero, not '{text}'")
    return share


def checked_share(value: object) -> object:
    """A latency share as it is written. Raises ValueError: other notations probably mean milliseconds."""
    instead = "for milliseconds, give latency_ms (--latency-ms), e.g. 5.0"
    if value is not None and not isinstance(value, str):
        raise ValueError(f'a latency share is written as "60%", with quotes, not {shown(value)}; {instead}')
    try:
        if value is not None:
            latency_share(value)
    except ValueError as cause:
        raise ValueError(f"{cause}; {instead}") from None
    return value


def one_or_several(value: object) -> object:
    """A single name may be written without a list. Raises ValueError for anything but names."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"input should be a valid string or a list of strings, not {shown(value)}")
    return tuple(names)


def each_device(checked: Callable[[object], object], value: object) -> object:
    """A budget for all devices, or a table with one for each; each as it was written, after `checked`."""
    if not isinstance(value, dict):
        return checked(value)
    if not value:
        raise ValueError("a table of budgets by device is empty: give a value, e.g. { jetson = 5.0 }")
    return {device: checked(own) for device, own in value.items()}


def checked_ms(value: object) -> object:
    """A latency in milliseconds as it is written. Raises ValueError for text, which may be a share."""
    if isinstance(value, str):
        raise ValueError(
            f"milliseconds are a number, e.g. 5.0, not '{value}'; a share of the full network's latency is "
            'given as latency (--latency), e.g. "60%"'
        )
    return value
