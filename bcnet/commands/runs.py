"""`bcnet runs`: list the runs of the working folder, remove one."""

import json
import sys
from typing import Annotated

import typer

from bcnet.commands.completion import run_names
from bcnet.commands.options import Json
from bcnet.commands.usage import PlainCommand
from bcnet.errors import UsageError
from bcnet.show import show_table
from bcnet.show.tables import put

runs_app = typer.Typer(
    help="List the runs in runs/, or remove one.",
    rich_markup_mode=None,
    add_completion=False,
)


@runs_app.callback(invoke_without_command=True)
def list_runs(context: typer.Context, as_json: Json = False) -> None:
    """List the runs in runs/: their devices and settings, budgets, winners, whether the export is verified,
    and when they were last worked on. `bcnet runs remove NAME` removes one."""
    if context.invoked_subcommand is not None:
        return
    from bcnet.run_list import HEADINGS, runs

    found = runs()
    if as_json:
        print(json.dumps({"runs": [state.to_json() for state in found]}))
    elif found:
        show_table(HEADINGS, [state.row() for state in found])
        put(*(f"{state.name} cannot be read: {state.problem}" for state in found if state.problem))
    else:
        print("there are no runs in this folder yet; `bcnet run` makes one")


@runs_app.command("remove", cls=PlainCommand)
def remove_run(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="The run to remove: the folder runs/NAME/.", autocompletion=run_names
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove a run's folder with all that is in it. Asks first, and lists what is removed; latency tables are
    kept. A run in which a process is at work is not removed."""
    from bcnet.run_list import removal, remove

    wanted = removal(name)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"this removes {wanted}; add --yes to do it")
        if not typer.confirm(f"remove {wanted}?", err=True):
            print("nothing was removed", file=sys.stderr)
            raise typer.Exit(1)
    remove(wanted)
    print(json.dumps({"removed": str(wanted.run.folder)}) if as_json else f"removed {wanted}")
