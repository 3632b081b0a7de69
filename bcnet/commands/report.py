"""`bcnet report`: one page of a run, or of several side by side."""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bcnet.commands.completion import run_names
from bcnet.commands.in_run import existing_run
from bcnet.commands.options import Given, Json, with_settings
from bcnet.show.tables import put

if TYPE_CHECKING:
    from bcnet.report.content import RunReport


@with_settings()
def report(
    given: Given,
    run: Annotated[
        list[str] | None,
        typer.Option(
            "--run",
            metavar="NAME",
            help="Name of the run, whose files are in runs/NAME/; several stand side by side (default: the "
            "one whose table was built last).",
            autocompletion=run_names,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The HTML file (default: report/report.html in the run's folder; of several runs, in the "
            "working folder).",
        ),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    png: Annotated[
        bool,
        typer.Option(
            "--png", help="Also write the figures as PNG files for slides, to figures/ beside the page."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Write one HTML page of a run, or of several side by side. It needs no network and no other file."""
    from bcnet.report.written import FILE, write_page, write_pngs

    with redirect_stdout(sys.stderr):
        reports = [_report(given, name) for name in (run or (None,))]
        path = output or (Path(reports[0].folder) / FILE if len(reports) == 1 else FILE)
        write_page(path, reports)
        figures = write_pngs(path.parent, reports) if png else []
    if as_json:
        files = {"file": str(path), "figures": [str(figure) for figure in figures]}
        print(json.dumps({**files, "runs": [own.to_json() for own in reports]}))
    else:
        put(*(f"{own.run}: {own.headline}" for own in reports))
        put(*(f"warning: {problem.text}" for own in reports for problem in own.problems), f"report: {path}")
        put(*([f"figures: {figures[0].parent}/"] if figures else ()))
    if open_:
        typer.launch(str(path.resolve()))


def _report(given: Given, name: str | None) -> "RunReport":
    with existing_run(given, name) as choice:
        from bcnet.pipeline.open_problem import open_problem
        from bcnet.report.written import report_of

        return report_of(choice.run, choice.config, lambda: open_problem(choice.config, pixels=False))
