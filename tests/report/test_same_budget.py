"""Budgets, parameters and MACs read the same wherever they are printed: one function makes text of each."""

import json

import pytest
from result_examples import BUDGET, EXPORT, SEARCH, SLICE, compared, comparison

from bcnet.cli import main
from bcnet.pipeline.results import SearchSummary, SliceSummary
from bcnet.plain import milliseconds
from bcnet.report.chart import cell
from bcnet.report.charts import charts
from bcnet.report.content import run_report
from bcnet.report.page import page
from bcnet.runs import Run, json_bytes
from bcnet.show import show_summary
from bcnet.width_search.budget import Budget
from bcnet.width_search.latency_budget import LatencyBudget

ASKED = LatencyBudget(ms=0.412345)
SHOWN = "budget 0.412 ms"


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0.0, "0.000"), (0.00312, "0.0031"), (1e-6, "1e-06"), (0.41, "0.410"), (5, "5.000"), (123.456, "123.5")],
)
def test_milliseconds_have_three_decimals_and_less_than_a_hundredth_two_digits(ms: float, text: str) -> None:
    assert milliseconds(ms) == text


def finished(folder: str, budget: LatencyBudget) -> Run:
    """A run with this budget in all of its results."""
    run = Run.named(folder)
    latest = {"budget": budget}
    results = {
        "search": SEARCH.model_copy(update=latest),
        "slice": SLICE.model_copy(update=latest),
        "export": EXPORT.model_copy(update=latest),
        "compare": comparison(
            compared("original", 0.67, None), compared("found (inherited)", 0.39), **latest
        ),
    }
    for name, found in results.items():
        files = {found.FILE: json_bytes(found.to_json())}
        run.stage(name).finish({}, files | ({"history.json": b"[]"} if name == "search" else {}))
    return run


@pytest.mark.usefixtures("folder")
def test_a_budget_reads_the_same_in_each_stage_the_comparison_the_report_and_the_difference(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = finished("a", ASKED)
    finished("b", LatencyBudget(ms=8.0, p90=True))
    latest = {"budget": ASKED}
    for found in (SEARCH, SLICE, EXPORT, comparison(compared("original", 0.67), budget=ASKED)):
        show_summary(found.model_copy(update=latest))
        assert SHOWN in capsys.readouterr().out
    assert main(["diff", "a", "b"]) == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("budget"))
    assert row.split() == ["budget", "0.412", "ms", "p90", "8.000", "ms"]
    assert main(["diff", "a", "b", "--json"]) == 0
    assert [own["ms"] for own in json.loads(capsys.readouterr().out)["budgets"]] == [0.412345, 8.0]
    assert main(["runs"]) == 0
    assert "0.412 ms" in " ".join(capsys.readouterr().out.split())
    report = run_report(run, "not asked for", {})
    assert f"; {SHOWN}, measured 0.393 ms." in report.headline
    assert next(chart.marks for chart in charts(report) if chart.name == "networks") == ((SHOWN, ASKED.ms),)
    assert cell(report.budget.ms if report.budget else None, "budget (ms)") == "0.412"


@pytest.mark.usefixtures("folder")
def test_the_page_of_several_runs_has_the_same_digits_in_its_table_and_its_figures() -> None:
    pytest.importorskip("plotly")
    runs = [finished("a", ASKED), finished("b", LatencyBudget(ms=8.0, p90=True))]
    text = page([run_report(run, "not asked for", {}) for run in runs]).decode()
    assert f"; {SHOWN}, " in text
    assert f'"text":"{SHOWN}"' in text
    assert '"text":"p90 budget 8.000 ms"' in text
    assert 'data-value="0.412345">0.412</td>' in text


@pytest.mark.usefixtures("folder")
def test_all_numbers_of_parameters_and_macs_in_a_report_have_one_form() -> None:
    run = finished("a", ASKED)
    found = comparison(
        compared("original", 0.67, None, params=223_118, macs=4_100_352),
        compared("found (inherited)", 0.39, params=89_386, macs=946),
    )
    run.stage("compare").finish({}, {found.FILE: json_bytes(found.to_json())})
    (table,) = (own.table for own in charts(run_report(run, "none", {})) if own.name == "networks")
    at = [table.headings.index(name) for name in ("parameters", "MACs")]
    shown = [[cell(row[n], table.headings[n]) for n in at] for row in table.rows]
    assert shown == [["223k", "4.10M"], ["89.4k", "946"]]


@pytest.mark.parametrize(
    ("budget", "text", "option"),
    [
        (LatencyBudget(ms=5.0), "budget 5.000 ms", ("--latency-ms", "5")),
        (LatencyBudget(ms=8.0, p90=True), "p90 budget 8.000 ms", ("--p90-ms", "8")),
        (
            LatencyBudget(ms=0.41, share=0.5),
            "budget 0.410 ms, 50% of the original's latency",
            ("--latency", "50%"),
        ),
        (
            LatencyBudget(ms=100 / 3, fps=30.0),
            "budget 33.333 ms, 30 images a second",
            ("--fps", "30"),
        ),
    ],
)
def test_a_budget_keeps_the_form_in_which_it_was_asked_for(
    budget: LatencyBudget, text: str, option: tuple[str, str]
) -> None:
    assert budget.explained == text
    assert budget.option == option
    assert Budget.of(budget).stated() == budget


def test_budgets_of_earlier_versions_are_read_from_their_own_keys() -> None:
    own = {**SLICE.to_json(), "budget_ms": 0.41, "budget_share": 0.5, "budget_p90": True}
    del own["budget"]
    assert SliceSummary.model_validate_json(json.dumps(own)).budget == LatencyBudget(
        ms=0.41, share=0.5, p90=True
    )
    own = {**SEARCH.to_json(), "budget_ms": None, "min_accuracy": 0.9}
    del own["budget"]
    assert SearchSummary.model_validate_json(json.dumps(own)).budget is None
    assert SEARCH.budget == BUDGET
