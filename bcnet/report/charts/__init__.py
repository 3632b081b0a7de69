"""Which figures a report has. In: `RunReport`. Out: charts as values, each with the same numbers as a table.

`page.py` draws them in a browser, `figures.py` as PNG files.
"""

from bcnet.report.chart import Chart
from bcnet.report.charts.delivered import devices, overview
from bcnet.report.charts.networks import network_charts
from bcnet.report.charts.search import precision_charts, prediction_charts, progress_charts, search_charts
from bcnet.report.charts.training import training_charts, tuning_charts
from bcnet.report.charts.widths import layer_charts, step_charts, width_charts
from bcnet.report.content import RunReport

__all__ = ["charts", "devices", "overview"]


def charts(report: RunReport) -> tuple[Chart, ...]:
    """The figures of a run, without those for which there is nothing."""
    makers = (
        network_charts,
        search_charts,
        precision_charts,
        width_charts,
        layer_charts,
        step_charts,
        prediction_charts,
        progress_charts,
        training_charts,
        tuning_charts,
    )
    return tuple(chart for maker in makers for chart in maker(report))
