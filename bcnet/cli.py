"""The command line: assembles the commands, and turns errors into messages and exit codes.

Results go to stdout (one JSON object with --json), progress and messages to stderr. Exit codes: 0 done,
1 an error that the message explains, 2 wrong usage, 3 a check failed (`check-lut`: slower, or rows missing),
4 done but not verified here (`check-lut`: the machine differs, or inconclusive), 130 interrupted, 143 and 129
ended by SIGTERM and SIGHUP.
"""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from signal import SIGINT
from typing import Annotated, Any

import typer

from bcnet.commands.bench import bench_app
from bcnet.commands.devices import devices, doctor
from bcnet.commands.diff import diff
from bcnet.commands.export import export, verify
from bcnet.commands.init import init
from bcnet.commands.inspect import InspectCommand, inspect
from bcnet.commands.latency_tables import build_lut, check_lut, lut_app
from bcnet.commands.load import load
from bcnet.commands.one_bit import one_bit
from bcnet.commands.options import help_without_command
from bcnet.commands.report import report
from bcnet.commands.run_all import run_all
from bcnet.commands.runs import runs_app
from bcnet.commands.search import search
from bcnet.commands.slice import slice_
from bcnet.commands.time import time_file
from bcnet.commands.train import train
from bcnet.commands.usage import PlainCommand
from bcnet.errors import BcnetError, UsageError, message_of, one_line, raised_by_user
from bcnet.plain import LONGEST, plain
from bcnet.processes import refuse_several, these
from bcnet.signals import as_interrupts

INTERRUPTED = 130
COMMANDS: dict[str, Callable[..., Any]] = {
    "init": init,
    "inspect": inspect,
    "time": time_file,
    "train": train,
    "build-lut": build_lut,
    "check-lut": check_lut,
    "one-bit": one_bit,
    "search": search,
    "slice": slice_,
    "export": export,
    "verify": verify,
    "run": run_all,
    "report": report,
    "diff": diff,
    "load": load,
    "devices": devices,
    "doctor": doctor,
}
GROUPS = {"runs": runs_app, "lut": lut_app, "bench": bench_app}

app = typer.Typer(
    name="bcnet",
    help="Make a CNN fit a latency budget on a device: train a supernet, or take trained weights, measure "
    "the device, search the channel widths, slice and export the winner. `bcnet init` writes a "
    "configuration, `bcnet run` does all the rest.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name, _command in COMMANDS.items():
    app.command(_name, cls=InspectCommand if _command is inspect else PlainCommand)(_command)
for _name, _group in GROUPS.items():
    app.add_typer(_group, name=_name)


def _show_version(wanted: bool) -> None:
    if wanted:
        from bcnet import __version__

        print(f"bcnet {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    help_without_command(context)
    refuse_several(context.invoked_subcommand or "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Errors are one line on stderr, without a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with as_interrupts() as received:
        try:
            return _run(given, received)
        except (KeyboardInterrupt, typer.Abort):
            signal = received[0] if received else None
            what = "interrupted" if signal in (None, SIGINT) else f"ended by {signal.name}"
            if these().size == 1:  # what has started several says it for them
                with suppress(OSError):  # after SIGHUP there may be no terminal to write to
                    said = f"bcnet: {what}; finished work is kept, run the same command again"
                    print(said, file=sys.stderr)
            return 128 + signal if signal else INTERRUPTED


def _run(given: list[str], received: Sequence[int]) -> int:
    command = typer.main.get_command(app)
    try:
        result = command.main(args=given, prog_name="bcnet", standalone_mode=False, obj=given)
        if result == INTERRUPTED or received:  # typer has caught Ctrl-C, or a signal that is handled like it
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except BcnetError as error:
        processes = these()
        who = "bcnet" if processes.size == 1 else f"bcnet, {processes}"
        print(f"{who}: {plain(str(error), LONGEST)}", file=sys.stderr)
        return error.exit_code
    except typer.TyperException as error:
        hint = f"(see {_typed_command(command, given)} --help)"
        print(f"bcnet: {plain(error.format_message(), LONGEST)} {hint}", file=sys.stderr)
        return UsageError.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"bcnet: {message_of(error)}; finished work is kept", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, typer.Abort):
        raise
    except BaseException as error:  # sys.exit() in a network's method must not count as success
        function = raised_by_user(error)
        if function is None:
            raise
        print(f"bcnet: {function} failed ({one_line(error)}); finished work is kept", file=sys.stderr)
        return 1


def _typed_command(command: Any, given: Sequence[str]) -> str:
    """The command that was typed, with the groups that it is in, e.g. `bcnet runs remove`."""
    words = ["bcnet"]
    for word in given:
        command = getattr(command, "commands", {}).get(word)
        if command is None:
            break
        words.append(word)
    return " ".join(words)
