"""Options that several commands have, and the configuration that they make.

In: what was typed. Out: a `Config`. Help imports neither torch nor a runtime.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bcnet.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from bcnet.config import Config

Flags = Mapping[str, Mapping[str, Any]]
RunName = Annotated[
    str | None,
    typer.Option(
        "--run",
        help="Name of the run, whose files are in runs/NAME/ (default: `default`, or the device's name if "
        "`default` belongs to another device).",
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="Configuration file (default: bcnet.toml if it is there).")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.")]
Seed = Annotated[int | None, typer.Option(help="Seed of splits, training and search (default 0).")]
Device = Annotated[str | None, typer.Option(help="Target device, one of `bcnet devices` (default cpu).")]


def configured(config: Path | None, flags: Flags) -> "Config":
    """The configuration. A device that is unknown is wrong usage where it came as a flag."""
    from bcnet.config import load_config
    from bcnet.hw_profiles import profile_file

    settings = load_config(config, flags)
    if flags[""].get("device") is not None:
        try:
            profile_file(settings.device)
        except DeviceError as reason:
            raise UsageError(str(reason)) from None
    return settings
