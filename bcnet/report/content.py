"""What a report states of a run. In: the results of its stages, its latency model. Out: `RunReport`.

Nothing is drawn here: `charts` chooses the figures, `page.py` and `figures.py` draw them.
"""

import json
from collections.abc import Mapping
from typing import Any

from bcnet.errors import TableError
from bcnet.latency_tables.rows import LatencyStat
from bcnet.pipeline.results import (
    ComparedNetwork,
    Figure,
    PrecisionFound,
    ScoredNetwork,
    SearchSummary,
    TableSummary,
    Values,
)
from bcnet.plain import milliseconds
from bcnet.report.found import Found, Problem, TuningEpoch, found_in
from bcnet.report.headline import accuracy_lost, headline, reference, speedup
from bcnet.report.layers import LayerTime, Prices, Step
from bcnet.report.reasons import Reason, reasons_of
from bcnet.report.repeat import commands_of, deployment_of, environment_of, run_again
from bcnet.runs import Run
from bcnet.show.comparison import difference_lines
from bcnet.width_search.latency_budget import LatencyBudget


class Candidate(Values):
    """A network that the search scored, as in `ScoredNetwork`; `loss` is None where it was not finite.

    `accuracy` is on the validation images, before fine-tuning.
    """

    widths: tuple[int, ...]
    predicted_ms: float
    measured: LatencyStat | None
    accuracy: float
    expected_accuracy: float | None
    loss: Figure
    generation: int
    front: bool
    winner: bool


class GroupWidths(Values):
    """The channels of a group in the original (None where that is unknown) and in the found network."""

    name: str
    before: int | None
    after: int


class FurtherReport(Values):
    """The delivered network on a further device; `measured` is from its export."""

    device: str
    budget: LatencyBudget | None
    predicted_ms: float
    measured: LatencyStat | None


class RunReport(Values):
    """A run as its stages left it.

    `problems` are what must be stated first. `accuracy_lost` and `speedup` are against `reference`.
    `predicted_ms` is that of the delivered network, `measured` its latency on the device. The milliseconds of
    a budget that is a share are from where the original was measured: `budget` beside the delivered file,
    `compared_budget` in the comparison, `search_budget` beside the candidates. The last one is what the
    budget leaves for the network alone if the delivered file pre-processes its images. `layers` and `steps`
    are predictions of the latency table; `no_layers` says why there are none.
    """

    run: str
    folder: str
    headline: str
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    device: str | None
    metric: str
    reference: str
    budget: LatencyBudget | None
    search_budget: LatencyBudget | None
    compared_budget: LatencyBudget | None
    predicted_ms: float | None
    measured: LatencyStat | None
    speedup: float | None
    accuracy: float | None
    accuracy_lost: float | None
    verified: bool
    further: tuple[FurtherReport, ...]
    networks: tuple[ComparedNetwork, ...]
    candidates: tuple[Candidate, ...]
    precisions: tuple[PrecisionFound, ...]
    widths: tuple[GroupWidths, ...]
    layers: tuple[LayerTime, ...]
    steps: tuple[Step, ...]
    reasons: tuple[Reason, ...]
    no_layers: str | None
    table_error: float | None
    curve: tuple[float, ...]
    tuning: tuple[TuningEpoch, ...]
    environment: Mapping[str, str]
    settings: Mapping[str, str]
    commands: tuple[str, ...]
    deployment: tuple[str, ...]


def run_report(run: Run, prices: Prices | str, settings: Mapping[str, Any]) -> RunReport:
    """All that is reported of a run.

    `prices` are those of the run's networks, or the reason why there are none; `settings` are those of
    the configuration as it is now, by their dotted names.
    """
    found = found_in(run)
    search, export = found.search, found.export
    widths = _widths(found, prices)
    layers, saved, no_layers = _priced(widths, prices)
    sliced = found.slice
    predicted_ms = sliced.predicted_ms if sliced else search.best.predicted_ms if search else None
    added_ms = (search.preprocess_ms or 0.0) if search else 0.0
    if predicted_ms is not None:
        predicted_ms += added_ms
    alone = search.budget if search else None
    whole = alone and alone.model_copy(update={"ms": alone.ms + added_ms})
    budget = export.budget if export else whole
    accuracy = export.accuracy if export else sliced.test_accuracy_after if sliced else None
    return RunReport(
        run=run.folder.name,
        folder=str(run.folder),
        headline=headline(found),
        problems=found.problems,
        notes=_notes(found),
        device=search.device if search else found.table.device if found.table else None,
        metric=search.metric if search else "accuracy",
        reference=reference(found),
        budget=budget,
        search_budget=alone if alone or added_ms else budget,
        compared_budget=found.compare.budget if found.compare else None,
        predicted_ms=predicted_ms,
        measured=export.measured if export else None,
        speedup=speedup(found),
        accuracy=accuracy,
        accuracy_lost=accuracy_lost(found),
        verified=export is not None and export.verified and not found.is_outdated("export"),
        further=further_devices(found),
        networks=found.compare.networks if found.compare else (),
        candidates=_candidates(search, found.history) if search else (),
        precisions=(search.precisions or ()) if search else (),
        widths=widths,
        layers=layers,
        steps=saved,
        reasons=reasons_of(saved, found.losses),
        no_layers=no_layers,
        table_error=found.table.calibration.mean_error if isinstance(found.table, TableSummary) else None,
        curve=found.curve,
        tuning=found.tuning,
        environment=environment_of(found),
        settings={key: _text(value) for key, value in settings.items()},
        commands=commands_of(found),
        deployment=deployment_of(found),
    )


def further_devices(found: Found) -> tuple[FurtherReport, ...]:
    """The network on further devices, according to the last finished stage."""
    if found.export and found.export.further:
        return tuple(
            FurtherReport(**{key: getattr(own, key) for key in FurtherReport.model_fields})
            for own in found.export.further
        )
    if found.slice and found.slice.further:
        return tuple(FurtherReport(**dict(own), measured=None) for own in found.slice.further)
    search = found.search
    best = {own.device: own for own in search.best.further or ()} if search else {}
    return tuple(
        FurtherReport(
            device=own.device,
            budget=own.budget,
            predicted_ms=best[own.device].predicted_ms,
            measured=None,
        )
        for own in (search.further if search else None) or ()
    )


def _priced(
    widths: tuple[GroupWidths, ...], prices: Prices | str
) -> tuple[tuple[LayerTime, ...], tuple[Step, ...], str | None]:
    """The layers and steps of the found network, and why there are none."""
    if isinstance(prices, str) or not widths:
        return (), (), prices if isinstance(prices, str) else None
    if len(prices.latency.choices) != len(widths):
        return (), (), "the run is of a network with other groups than the configured one"
    before, after = [own.before for own in widths], [own.after for own in widths]
    known = [width for width in before if width is not None]
    try:
        saved = prices.steps([own.name for own in widths], after)
        return prices.layers(known, after) if len(known) == len(after) else (), saved, None
    except TableError as reason:  # widths that are not among the choices of today's configuration
        return (), (), str(reason)


def _candidates(search: SearchSummary, history: tuple[ScoredNetwork, ...]) -> tuple[Candidate, ...]:
    """All scored networks, in the order in which they were scored; with what was measured of them."""
    known = {own.widths: own for own in (*search.front, *search.measured, search.best)}
    measured = {own.widths: own.measured for own in (*search.measured, search.best) if own.measured}
    front = {own.widths: own.expected_accuracy for own in search.front}
    listed = {own.widths for own in history}
    further = [own for widths, own in known.items() if widths not in listed]
    return tuple(
        Candidate(
            **{
                **dict(own),
                "measured": own.measured or measured.get(own.widths),
                "expected_accuracy": front.get(own.widths),
                "front": own.widths in front,
                "winner": own.widths == search.best.widths,
            }
        )
        for own in (*history, *further)
    )


def _widths(found: Found, prices: Prices | str) -> tuple[GroupWidths, ...]:
    after = found.widths
    if after is None or found.search is None:
        return ()
    names = found.search.groups
    if len(names) != len(after):  # an earlier version's, or of another search than the network
        names = tuple(f"group {number}" for number in range(1, len(after) + 1))
    whole = found.compare.networks[0].widths if found.compare else ()
    if not whole and isinstance(prices, Prices):
        whole = tuple(choices[-1] for choices in prices.latency.choices)
    before = whole if len(whole) == len(after) else (None,) * len(after)
    return tuple(
        GroupWidths(name=name, before=wide, after=narrow)
        for name, wide, narrow in zip(names, before, after, strict=True)
    )


def _notes(found: Found) -> tuple[str, ...]:
    compare = found.compare
    own = found.slice
    notes = [found.search.note if found.search else "", *(found.export.notes if found.export else ())]
    if found.search is not None and found.search.preprocess_ms is not None:
        notes.append(
            "latencies of the delivered file and of what it is compared with include its pre-processing, "
            f"{milliseconds(found.search.preprocess_ms)} ms; those of the search are of networks alone"
        )
    if own is not None and own.discarded_epochs:
        notes.append("fine-tuning made the network worse and was discarded: its curve is of other weights")
    elif own is not None and own.lower_rate is not None:
        notes.append(f"fine-tuned at a rate of {own.lower_rate:g}, since a higher one made the network worse")
    if compare is not None:
        if compare.difference is not None:
            notes.append(" ".join(line.strip() for line in difference_lines(compare.difference)))
        notes += compare.notes
        notes += [f"latency not separable: {first} / {second}" for first, second in compare.not_separable]
        if compare.better:
            lines = ", ".join(f"{key} = {json.dumps(value)}" for key, value in compare.better.items())
            notes.append(
                f"its widths are better when trained from scratch: set {lines} under [slice], and run again"
            )
    if found.uncompared:
        command = run_again(found, compared=True)
        notes.append(f"a comparison with other networks was not asked for; `{command}` makes it")
    return tuple(note for note in notes if note)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
