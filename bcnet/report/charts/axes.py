"""What figures have in common: a metric's scale, a budget's mark, widths as text, the colours of runs."""

from collections.abc import Sequence

from bcnet.report.chart import Role
from bcnet.width_search.latency_budget import LatencyBudget

RUNS: tuple[Role, ...] = ("found", "uniform", "front", "original")  # of several runs, in turn


def scale_of(metric: str) -> tuple[float, str]:
    """The factor of a metric's values in a figure, and the unit on its axis: accuracy is in percent."""
    return (100.0, " (%)") if metric == "accuracy" else (1.0, "")


def listed(widths: Sequence[int]) -> str:
    """Widths as text."""
    return "-".join(map(str, widths))


def marked(budget: LatencyBudget | None) -> tuple[tuple[str, float], ...]:
    """A line at the budget."""
    return () if budget is None else ((str(budget), budget.ms),)
