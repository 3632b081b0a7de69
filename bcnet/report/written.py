"""Write a report. In: runs and their configurations. Out: an HTML file, PNG files on request."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bcnet.config import Config, values_by_name
from bcnet.errors import BcnetError, CheckFailed, NotVerified, message_of
from bcnet.pipeline.finished import as_searched
from bcnet.pipeline.problem import Problem
from bcnet.progress import say
from bcnet.report.charts import charts
from bcnet.report.content import RunReport, run_report
from bcnet.report.figures import write_figures
from bcnet.report.layers import Prices
from bcnet.report.page import page, plotly_installed
from bcnet.runs import MANIFEST, Run, bytes_digest, file_digest, write_file

FILE = Path("report/report.html")  # in a run's folder, or of several runs in the working folder
INSTALL = "pip install 'bcnet[report]'"


def report_of(run: Run, config: Config, opened: Callable[[], Problem]) -> RunReport:
    """What is reported of a run; `opened` is the problem of its configuration.

    Where that cannot be opened, or has no latency table, milliseconds by layer are missing.
    """
    return run_report(run, _prices(run, opened), values_by_name(config))


def _prices(run: Run, opened: Callable[[], Problem]) -> Prices | str:
    table = run.stage("build-lut")
    if not table.path(MANIFEST).exists():
        return f"there is no latency table; run `{table.command}`"
    try:
        problem = opened()
        searched = run.stage("search").path(MANIFEST).exists()
        return Prices.of(as_searched(run, problem) if searched else problem)
    except BcnetError as reason:
        return str(reason)


def write_page(path: Path, reports: list[RunReport]) -> bool:
    """Write the HTML file; returns whether it has changed. Raises BcnetError without plotly, OSError."""
    if not plotly_installed():
        raise BcnetError(f"a report needs plotly for its figures: {INSTALL}")
    content = page(reports)
    try:
        if file_digest(path) == bytes_digest(content):
            return False
    except (OSError, ValueError):
        pass  # there is none, or it is no file
    write_file(path, content)
    return True


def write_pngs(folder: Path, reports: Sequence[RunReport]) -> list[Path]:
    """Write the figures of runs to `folder`/figures; of several runs, to a folder each in it."""
    own = folder / "figures"
    folders = [own] if len(reports) == 1 else [own / each.run for each in reports]
    written = [write_figures(at, charts(each)) for at, each in zip(folders, reports, strict=True)]
    return [path for paths in written for path in paths]


@contextmanager
def reported(run: Run, problem: Problem) -> Iterator[None]:
    """Write the report of a run at the end of the block, also where a check failed, and say where it is.

    What goes wrong with the report alone is said, too, and does not fail the run.
    """
    try:
        yield
    except (CheckFailed, NotVerified):
        _report(run, problem)
        raise
    _report(run, problem)


def _report(run: Run, problem: Problem) -> None:
    path = run.folder / FILE
    try:
        if not plotly_installed():
            say(f"no report: its figures need plotly ({INSTALL}, then `bcnet report`)")
        elif write_page(path, [report_of(run, problem.config, lambda: problem)]):
            say(f"report: {path}")
    except (BcnetError, OSError) as reason:
        say(f"no report: {message_of(reason)}")
