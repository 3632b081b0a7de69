"""`bcnet report`: one HTML file with figures and tables, whose numbers are those of the JSON."""

import json
import shutil
import struct
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bcnet.cli import main
from bcnet.report.charts import charts
from bcnet.report.content import run_report
from bcnet.report.page import page
from bcnet.runs import Run

PAGE = Path("runs/default/report/report.html")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FIGURES = [
    "networks",
    "search",
    "widths",
    "layers",
    "sensitivity",
    "predictions",
    "progress",
    "training",
    "tuning",
    "tuning-loss",
]

pytest.importorskip("plotly", reason="needs what draws the figures: pip install '.[report]'")


class Page(HTMLParser):
    """The elements of a page: figures with their data, the values of all tables, what is loaded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.figures: list[str] = []
        self.described: list[str] = []
        self.data: dict[str, Any] = {}
        self.values: list[str] = []
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.classes: list[str | None] = []
        self._of: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        self.classes.append(own.get("class"))
        self.tags.append(tag)
        self.loaded += [str(own[key]) for key in ("src", "href", "action") if key in own]
        if own.get("class") == "plot":
            self.figures.append(str(own["id"]))
            self.described.append(str(own["aria-label"]))
        if own.get("type") == "application/json":
            self._of = str(own["id"]).removesuffix("-data")
        if "data-value" in own:
            self.values.append(str(own["data-value"]))

    def handle_data(self, data: str) -> None:
        if self._of is not None:
            self.data[self._of], self._of = json.loads(data), None


def written(capfd: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capfd.readouterr()
    assert main(["report", *words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    return found


def test_a_report_is_one_small_file_with_every_figure_and_its_numbers_in_a_table(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = written(capfd)
    assert found["file"] == str(PAGE)
    assert PAGE.stat().st_size < 3_000_000
    own = Page(PAGE.read_text(encoding="utf-8"))
    assert own.loaded == []
    assert own.figures == [f"run0-{name}" for name in FIGURES] == list(own.data)
    assert all(len(text) > 40 for text in own.described)
    (run,) = found["runs"]
    shown = [network["latency"]["median_ms"] for network in run["networks"]]
    shown += [layer["before_ms"] for layer in run["layers"]] + [step["saved_ms"] for step in run["steps"]]
    assert set(map(str, shown)) - set(own.values) == set()
    x = own.data["run0-networks"]["data"]
    assert [trace["x"] for trace in x] == [[network["latency"]["median_ms"]] for network in run["networks"]]
    before, after = own.data["run0-widths"]["data"]
    assert before["x"] == [group["before"] for group in run["widths"]]
    assert after["x"] == [group["after"] for group in run["widths"]]


def test_bcnet_run_has_written_the_page_that_bcnet_report_writes(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = Page(PAGE.read_text(encoding="utf-8"))
    assert main(["report"]) == 0
    out = capfd.readouterr().out.splitlines()
    assert out[0].startswith("default: ")
    assert out[-1] == f"report: {PAGE}"
    assert Page(PAGE.read_text(encoding="utf-8")).data == before.data


def test_runs_stand_side_by_side(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("runs/default", "runs/other")
    shutil.rmtree("runs/other/compare")
    found = written(capfd, "--run", "default", "--run", "other", "--output", "both.html")
    assert [run["run"] for run in found["runs"]] == ["default", "other"]
    text = Path("both.html").read_text(encoding="utf-8")
    own = Page(text)
    assert own.figures[0] == "all-runs"
    assert [trace["name"] for trace in own.data["all-runs"]["data"]] == ["default", "other"]
    assert {"run0-networks", "run0-search", "run1-search"} <= set(own.figures)
    assert "run1-networks" not in own.figures
    assert "problems" not in own.classes
    assert '<ul class="notes">\n' in text
    assert "<li>a comparison with other networks was not asked for; `bcnet run --compare --run other " in text


def test_names_of_users_are_text_and_never_elements(project: Path) -> None:
    report = run_report(Run.named("default"), "none", {"model.name": "<script>alert(1)</script>"})
    name = '</script><img src=x onerror=alert(1)>"\x1b[31m'
    groups = tuple(own.model_copy(update={"name": name}) for own in report.widths)
    own = Page(
        page([report.model_copy(update={"widths": groups, "headline": name, "device": name})]).decode()
    )
    assert own.loaded == []
    assert "img" not in own.tags
    assert own.tags.count("script") == 2 + len(own.figures)
    labels = own.data["run0-widths"]["data"][0]["y"]
    assert labels[0].startswith("&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;")
    assert "\x1b" not in labels[0]


def test_infinite_losses_are_left_out_of_the_figures(project: Path) -> None:
    report = run_report(Run.named("default"), "none", {})
    whole = tuple(own.model_copy(update={"loss": None}) for own in report.candidates)
    assert "progress" not in [own.name for own in charts(report.model_copy(update={"candidates": whole}))]


def test_without_plotly_one_line_says_how_to_install_it(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert main(["report"]) == 1
    error = "bcnet: a report needs plotly for its figures: pip install 'bcnet[report]'"
    assert capfd.readouterr().err.splitlines()[-1] == error
    assert main(["run"]) == 0
    wanted = "no report: its figures need plotly (pip install 'bcnet[report]', then `bcnet report`)"
    assert capfd.readouterr().err.splitlines()[-1] == wanted


def test_a_run_that_is_not_there_is_wrong_usage(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--run", "nigth"]) == 2
    assert capfd.readouterr().err == "bcnet: there is no run 'nigth'; available: default\n"


@pytest.mark.skipif(BROWSER is None, reason="needs a Chromium on the path")
def test_a_browser_draws_every_figure_without_an_error(project: Path, tmp_path: Path) -> None:
    assert main(["report", "--output", "page.html"]) == 0
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=20000", "--dump-dom"]
    done = subprocess.run(
        [*command, Path("page.html").resolve().as_uri()], capture_output=True, text=True, timeout=120
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    assert 'data-drawn="yes"' in done.stdout
    assert done.stdout.count('class="main-svg"') == 3 * len(FIGURES)


def test_figures_for_slides_are_as_large_as_a_screen(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    found = written(capfd, "--png")
    assert found["figures"] == [str(PAGE.parent / f"figures/{name}.png") for name in FIGURES]
    for path in map(Path, found["figures"]):
        header = path.read_bytes()[:24]
        assert header.startswith(b"\x89PNG")
        assert struct.unpack(">II", header[16:]) == (1920, 1080)
