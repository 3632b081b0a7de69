"""Training, epoch by epoch: of the supernet, and of the small network."""

from collections.abc import Iterator

from bcnet.report.chart import Chart, Series, Table
from bcnet.report.charts.axes import scale_of
from bcnet.report.content import RunReport


def training_charts(report: RunReport) -> Iterator[Chart]:
    """The supernet's loss by epoch."""
    if not report.curve:
        return
    epochs = tuple(range(1, len(report.curve) + 1))
    yield Chart(
        "training",
        "Training of the supernet",
        "Mean loss over the paths of each epoch.",
        "epoch",
        "loss",
        (Series("loss", "found", "line", epochs, report.curve),),
        Table(("epoch", "loss"), tuple(zip(epochs, report.curve, strict=True))),
    )


def tuning_charts(report: RunReport) -> Iterator[Chart]:
    """Metric and loss of the small network by epoch."""
    if not report.tuning:
        return
    scale, unit = scale_of(report.metric)
    epochs = tuple(own.epoch for own in report.tuning)
    values = tuple(scale * own.accuracy for own in report.tuning)
    texts = tuple(f"epoch {own.epoch}: loss {own.loss:.4g}, rate {own.rate:.3g}" for own in report.tuning)
    losses = tuple(own.loss for own in report.tuning)
    headings = "epoch", "loss", f"validation {report.metric}{unit}", "learning rate"
    rows = zip(epochs, losses, values, (own.rate for own in report.tuning), strict=True)
    table = Table(headings, tuple(rows))
    yield Chart(
        "tuning",
        "Training of the small network",
        "The metric on the validation images after each epoch, of the weights as they were then.",
        "epoch",
        f"validation {report.metric}{unit}",
        (Series(f"validation {report.metric}", "found", "line", epochs, values, texts),),
        table,
    )
    yield Chart(
        "tuning-loss",
        "Loss of the small network's training",
        "Mean of each epoch; with a teacher it includes what is learned from it.",
        "epoch",
        "loss",
        (Series("loss", "found", "line", epochs, losses, texts),),
        Table(("epoch", "loss"), tuple(zip(epochs, losses, strict=True))),
    )
