"""`bcnet diff`: two runs side by side, for people or for a pull request."""

import json
import sys
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from bcnet.commands.completion import run_names
from bcnet.commands.options import Json, percentage
from bcnet.errors import UsageError


def diff(
    first: Annotated[
        str,
        typer.Argument(
            metavar="RUN_A",
            help="The run to compare with: its name, or its folder (e.g. base/runs/default).",
            autocompletion=run_names,
        ),
    ],
    second: Annotated[
        str,
        typer.Argument(
            metavar="RUN_B",
            help="The run that is compared: its name, or its folder.",
            autocompletion=run_names,
        ),
    ],
    max_slowdown: Annotated[
        str | None,
        typer.Option(
            metavar="PERCENT",
            help="Fail if RUN_B is slower than RUN_A by more, from 4% to 100% (default: no limit).",
        ),
    ] = None,
    max_loss: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            min=0,
            help="Fail if RUN_B is less accurate than RUN_A by more, in percentage points, or in the unit of "
            "another metric (default: no limit).",
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown, for a pull request.")] = False,
    as_json: Json = False,
) -> int:
    """Compare two runs. Shows how accuracy, latency, predicted latency, parameters, multiply-accumulates,
    file size and widths differ, from the stored results: neither network nor data is loaded. Exit code 0:
    compared; with a limit, 3: worse than allowed, 4: that cannot be decided."""
    slowdown = None if max_slowdown is None else percentage("--max-slowdown", max_slowdown)
    if markdown and as_json:
        raise UsageError("--markdown and --json exclude each other: give one of them")
    from bcnet.report.difference import Allowed, difference_of
    from bcnet.run_choice import checked_name
    from bcnet.run_list import require_run
    from bcnet.runs import Run
    from bcnet.show.difference import show_difference

    with ExitStack() as held, redirect_stdout(sys.stderr):

        def opened(text: str) -> Run:
            run = Run(Path(text)) if "/" in text else Run.named(checked_name(text))
            require_run(run)
            held.enter_context(run.in_use())
            return run

        found = difference_of(opened(first), opened(second), Allowed(slowdown, max_loss))
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        show_difference(found, as_markdown=markdown)
    return found.exit_code
