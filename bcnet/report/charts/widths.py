"""The found widths: before and after, the milliseconds of each layer, and what each step saves."""

from collections.abc import Iterator, Sequence

from bcnet.plain import milliseconds
from bcnet.report.chart import Chart, Series, Table
from bcnet.report.content import RunReport
from bcnet.report.reasons import basis_of

MOST_BARS = 40  # of a figure; its table has all


def width_charts(report: RunReport) -> Iterator[Chart]:
    """Channels of each group before and after."""
    if not report.widths:
        return
    names = tuple(own.name for own in report.widths)
    after = Series("found", "found", "bars", tuple(own.after for own in report.widths), names)
    known = all(own.before is not None for own in report.widths)
    wide = tuple(own.before or 0 for own in report.widths)
    before = (Series("original", "original", "bars", wide, names),) if known else ()
    why = {own.group: own.sentence for own in report.reasons}
    kept = [100 * own.after / own.before if own.before else None for own in report.widths]
    rows = [
        (own.name, own.before, own.after, share, why.get(own.name))
        for own, share in zip(report.widths, kept, strict=True)
    ]
    headings = "group", "original", "found", "kept (%)", "next choices"
    basis = f" Of the next choices {basis_of(report.reasons)}." if why else ""
    yield Chart(
        "widths",
        "Widths before and after",
        f"Channels of each group, in the order of the network.{basis}",
        "channels",
        "",
        (*before, after),
        Table(headings, tuple(rows)) if why else Table(headings[:-1], tuple(row[:-1] for row in rows)),
        flat=True,
    )


def layer_charts(report: RunReport) -> Iterator[Chart]:
    """Milliseconds by layer."""
    if not report.layers:
        return
    shown = report.layers[:MOST_BARS]
    names = tuple(_unique([own.name for own in shown]))
    hidden = f" The {MOST_BARS} slowest; the table has all." if len(report.layers) > MOST_BARS else ""
    first = tuple(own.before_ms or 0.0 for own in shown), tuple(own.after_ms or 0.0 for own in shown)
    yield Chart(
        "layers",
        "Milliseconds by layer",
        "Predicted by the latency table: its rows, times the scale of its calibration; what a whole network "
        f"takes beside its layers is not included. The slowest first.{hidden}",
        "ms",
        "",
        (
            Series("original", "original", "bars", first[0], names, tuple(own.before for own in shown)),
            Series("found", "found", "bars", first[1], names, tuple(own.after for own in shown)),
        ),
        Table(
            ("layer", "original", "found", "original (ms)", "found (ms)", "saved (ms)"),
            tuple(
                (
                    own.name,
                    own.before,
                    own.after,
                    own.before_ms,
                    own.after_ms,
                    None if own.before_ms is None or own.after_ms is None else own.before_ms - own.after_ms,
                )
                for own in report.layers
            ),
        ),
        flat=True,
    )


def step_charts(report: RunReport) -> Iterator[Chart]:
    """What each step of a group saves."""
    if not report.steps:
        return
    order = list(dict.fromkeys(own.group for own in report.steps))
    by_group = {name: [own for own in report.steps if own.group == name] for name in order}
    series = []
    for number in range(max(map(len, by_group.values()))):
        for taken, role in ((True, "found"), (False, "open")):
            own = [steps[number] for steps in by_group.values() if len(steps) > number]
            own = [step for step in own if step.taken is taken]
            if own:
                name = "saved already" if taken else "could still be saved"
                texts = tuple(
                    f"{step.wider} to {step.narrower}: {milliseconds(step.saved_ms or 0.0)} ms"
                    for step in own
                )
                ms, groups = tuple(step.saved_ms or 0.0 for step in own), tuple(step.group for step in own)
                series.append(Series(name, role, "bars", ms, groups, texts))  # type: ignore[arg-type]
    yield Chart(
        "sensitivity",
        "What each step of a group saves",
        "Predicted milliseconds from each choice of a group to the next narrower one, at the found widths of "
        "all others; a segment a step, the widest first. Long segments are the device's cliffs.",
        "ms saved",
        "",
        tuple(series),
        Table(
            ("group", "from", "to", "saves (ms)", "taken"),
            tuple(
                (
                    own.group,
                    own.wider,
                    own.narrower,
                    own.saved_ms,
                    "saved already" if own.taken else "could be",
                )
                for own in report.steps
            ),
        ),
        flat=True,
        stacked=True,
    )


def _unique(names: Sequence[str]) -> Iterator[str]:
    """The names, with a number where one is repeated: an axis tells its categories apart by their text."""
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        yield name if seen[name] == 1 else f"{name} ({seen[name]})"
