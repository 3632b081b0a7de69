"""`bcnet init`: write a bcnet.toml with every setting, and the values of the built-in example."""

import json
from pathlib import Path
from typing import Annotated

import typer

from bcnet.commands.options import Json


def init(
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="File to write (default: bcnet.toml).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a commented bcnet.toml. It holds every setting with its default, and the network, data and budget
    of the built-in example, to be replaced by yours; nothing is overwritten."""
    from bcnet.config import CONFIG_FILE, EXAMPLE, template
    from bcnet.errors import ConfigError
    from bcnet.runs import write_file
    from bcnet.toml_files import is_there

    path = config or CONFIG_FILE
    if is_there(path):
        raise ConfigError(f"{path} is already here; delete it first to write a new one")
    write_file(path, template(EXAMPLE).encode())
    print(json.dumps({"file": str(path)}) if as_json else f"wrote {path}")
