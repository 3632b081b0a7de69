"""`bcnet load`: the small network of a run for PyTorch code without bcnet."""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from bcnet.commands.completion import run_names
from bcnet.commands.in_run import existing_run
from bcnet.commands.options import Given, Json, with_settings
from bcnet.show.tables import put


@with_settings()
def load(
    given: Given,
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            help="Name of the run, whose files are in runs/RUN/ (default: the one whose table was built "
            "last).",
            autocompletion=run_names,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where the files are written (default: network/ in the run's folder)."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the small network for PyTorch code without bcnet. The files are weights, widths, and a short
    load_network.py, which narrows an instance of your own class and needs only torch and safetensors. Prints
    the lines to paste into your code. If bcnet is installed, `bcnet.load("RUN")` returns the same network."""
    with existing_run(given, run) as choice, redirect_stdout(sys.stderr):
        from bcnet.handover import FOLDER, Loaded

        loaded = Loaded.of(choice.run, choice.config)
        written = loaded.write(output or choice.run.folder / FOLDER)
    if as_json:
        print(json.dumps(written.to_json()))
    else:
        put(*written.code, "", f"files: {', '.join(written.files)}")
