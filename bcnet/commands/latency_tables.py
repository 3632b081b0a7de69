"""`bcnet build-lut`, `check-lut` and `lut`: measure a latency table, check it, accept edits of its file."""

import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bcnet.commands.in_run import Command, reuse_supernet_of_default, run_stage
from bcnet.commands.options import (
    TARGET,
    Given,
    Json,
    Replace,
    RunName,
    help_without_command,
    percentage,
    with_settings,
)
from bcnet.commands.usage import PlainCommand
from bcnet.errors import BcnetError, TableError, UsageError
from bcnet.plain import counted, plain
from bcnet.show import show_check

if TYPE_CHECKING:
    from bcnet.pipeline.problem import Problem
    from bcnet.pipeline.results import StageResult
    from bcnet.runs import Run

EDITS_SHOWN = 3

lut_app = typer.Typer(
    help="Work on the files of latency tables.",
    rich_markup_mode=None,
    add_completion=False,
)


@with_settings(*TARGET, "search.precisions", "seed", several=True)
def build_lut(
    given: Given,
    run: RunName = None,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate", help="Calculate the table from the device's roofline, without the device."
        ),
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Measure all layers of this model again, at this setting.")
    ] = False,
    replace: Replace = False,
    as_json: Json = False,
) -> None:
    """Stage 2: measure the latency table. Measures the rows that latency_tables/DEVICE.json lacks for this
    model, and the error of its predictions; an interrupted build continues where it stopped."""
    if estimate and again:
        raise UsageError("--again measures layers again, and --estimate measures nothing: give one of them")
    command = Command("build-lut", given, run, as_json, replace, measures=not estimate, pixels=False)

    def built(run: "Run", problem: "Problem") -> "StageResult":
        from bcnet.pipeline import build_lut, estimate_lut  # torch with them, once the device is reached
        from bcnet.pipeline.open_problem import open_problem

        summary = estimate_lut.run(run, problem) if estimate else build_lut.run(run, problem, again=again)
        reuse_supernet_of_default(run, lambda: open_problem(problem.config))
        return summary

    run_stage(command, built)


@with_settings(*TARGET, "seed")
def check_lut(
    given: Given,
    table: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Table to check (default: latency_tables/DEVICE.json)."),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Compare with this older table; nothing is measured.")
    ] = None,
    max_slowdown: Annotated[
        str, typer.Option(metavar="PERCENT", help="Allowed slowdown, from 4% to 100%.")
    ] = "5%",
    rows: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, help="Rows to sample; further rows of the same networks are compared, too."
        ),
    ] = 40,
    seconds: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, max=3600, help="How long to measure.")
    ] = 30.0,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the result to this file, as JUnit XML.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Check whether device, driver or runtime became slower. Measures a sample of the table again, in place,
    beside a reference microbenchmark of the machine. Exit code 0: ok; 3: slower, or rows are missing; 4: the
    machine differs, or the result is inconclusive."""
    from bcnet.latency_tables import check_report
    from bcnet.runs import write_file

    allowed = percentage("--max-slowdown", max_slowdown)
    if against is not None and any(given.names(key) for key in TARGET if key != "device"):
        raise UsageError("--against compares all settings that both tables have; leave out the setting")
    settings = given.config()
    on_github = os.environ.get("GITHUB_ACTIONS") == "true"
    try:
        with redirect_stdout(sys.stderr):
            if against is not None:
                from bcnet.hw_profiles import load_profile
                from bcnet.latency_tables.against import compare_tables
                from bcnet.latency_tables.table import LatencyTable

                if not against.exists():
                    raise TableError(
                        f"{against} is missing; give the older table, e.g. "
                        "`git show main:latency_tables/cpu.json > base.json`"
                    )
                path = table or Path("latency_tables", f"{load_profile(settings.device[0]).name}.json")
                report = compare_tables(
                    LatencyTable.load(path),
                    LatencyTable.load(against),
                    max_slowdown=allowed,
                    names=(str(path), str(against)),
                )
            else:
                from bcnet.built_in_example import require_configured
                from bcnet.pipeline import check_lut as stage
                from bcnet.pipeline.open_problem import open_problem

                require_configured("check-lut", given.file, None, settings)
                problem = open_problem(settings, pixels=False)
                report = stage.run(problem, table, stage.CheckSettings(rows, seconds, allowed))
    except BcnetError as cause:
        # A report of an earlier check must not stand for this one.
        if junit is not None:
            write_file(junit, check_report.junit_error(str(cause)))
        if on_github:
            print(check_report.annotation("error", str(cause)), file=sys.stderr)
        raise
    if junit is not None:
        write_file(junit, check_report.junit(report))
    if on_github:
        print("\n".join(check_report.annotations(report)), file=sys.stderr)
    if as_json:
        print(json.dumps(report.to_json()))
    else:
        show_check(report)
    return report.exit_code


lut_app.callback(invoke_without_command=True)(help_without_command)


@lut_app.command("accept-edit", cls=PlainCommand)
@with_settings("device")
def accept_edit(
    given: Given,
    table: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Table that was edited (default: latency_tables/DEVICE.json)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Accept rows of a table that were edited by hand. All other commands refuse them. The table's sessions
    record how many rows were edited, and when the edit was accepted."""
    from bcnet.hw_profiles import load_profile
    from bcnet.latency_tables.edits import accept_edits

    if table is None:
        name = load_profile(given.config().device[0]).name
        table = Path("latency_tables", f"{name}.json")
    summary = accept_edits(table)
    if as_json:
        print(json.dumps(summary))
        return
    if not summary["edits"]:
        print(f"{table}: no edits found")
    for edit in summary["edits"][:EDITS_SHOWN]:
        print(plain(f"accepted: {edit}"))
    if len(summary["edits"]) > EDITS_SHOWN:
        more, rows = len(summary["edits"]) - EDITS_SHOWN, summary["rows_edited"]
        sessions = counted(summary["sessions_edited"], "session")
        print(f"accepted: {more} more; {counted(rows, 'edited row')} in all, in {sessions}")
    if summary["next"]:
        print(plain(f"{table} is sealed again; run `{summary['next']}` to fit its calibrations again"))
