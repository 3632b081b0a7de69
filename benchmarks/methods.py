"""Write the table of all methods in docs/benchmarks/methods.md, from the records of what was measured.

    python benchmarks/methods.py

In: results/methods.json, which names the records of each method in results/, and bcnet's own descriptions. A
figure without a record is a dash.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bcnet.registry import METHODS, SUPERNETS

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parent / "docs/benchmarks/methods.md"
BEGIN, END = "<!-- by benchmarks/methods.py -->\n", "<!-- end -->\n"
BUDGET = 0.5  # of the original's latency
FAR = 0.03  # from the budget: a share further off is shown beside the accuracy
HEAD = ("method", "idea", "paper", "passes", "tau", "regret in points", "CIFAR-10", "photographs")
ARENAS = ("cifar10", "photographs")


def read(file: str) -> Any:
    """A record."""
    return json.loads((RESULTS / file).read_text(encoding="utf-8"))


def described(row: Mapping[str, Any]) -> tuple[str, str]:
    """The idea and the paper of a method: as it is registered, or the row's own where it is not."""
    if "idea" in row:
        return row["idea"], row["paper"]
    registry = SUPERNETS if row["kind"] == "supernet" else METHODS
    found = registry[row["method"]]
    return found.summary, found.paper


def ranking(files: Sequence[str]) -> tuple[str, str, str]:
    """Passes, Kendall's tau, and mean regret at the four budgets, of reports that differ in their seed."""
    reports = [read(f"channel_bench_macro/{file}.json") for file in files]
    (passes,) = {report["passes"] for report in reports}
    figures = [report["figures"]["expected"] for report in reports]
    taus = sorted(own["kendall"] for own in figures)
    shown = f"{taus[0]:.2f} to {taus[-1]:.2f} ({len(taus)} seeds)" if len(taus) > 1 else f"{taus[0]:.2f}"
    regrets = (statistics.mean(own) for own in zip(*(own["regret"] for own in figures), strict=True))
    return str(passes), shown, " / ".join(f"{own:.2f}" for own in regrets)


def accuracy(file: str, name: str, mark: str = "") -> str:
    """The accuracy of a row of an arena in per cent, and its latency if that is far from the budget."""
    (budget,) = (own for own in read(f"arena/{file}.json")["budgets"] if own["budget"] == BUDGET)
    (row,) = (own for own in budget["rows"] if own["row"] == name)
    share = f" ({row['share']:.2f})" if abs(row["share"] - BUDGET) > FAR else ""
    return f"{100 * row['accuracy']:.2f} %{share}{mark}"


def cells(row: Mapping[str, Any]) -> list[str]:
    """The cells of a method's row."""
    passes, tau, regret = ranking(row["ranking"]) if "ranking" in row else (row.get("passes", "-"), "-", "-")
    reached = [accuracy(*row[arena]) if arena in row else "-" for arena in ARENAS]
    name = row["method"] if " " in row["method"] else f"`{row['method']}`"
    return [name + row.get("mark", ""), *described(row), passes, tau, regret, *reached]


def table() -> str:
    """The table's lines."""
    rows = [HEAD, ["---"] * len(HEAD), *map(cells, read("methods.json"))]
    return "".join(f"| {' | '.join(cell or '-' for cell in row)} |\n" for row in rows)


def page(text: str) -> str:
    """The page with the table that the records give."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
