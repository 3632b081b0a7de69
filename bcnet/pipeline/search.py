"""Stage 3, the search. In: a supernet's scores or the trained network's, a latency model, a budget. Out: the
best widths.

`search/`: result.json, history.json (every scored candidate), pareto.json; while searching state.jsonl or
scores.jsonl, and latencies.jsonl, from which a stopped search continues; of a method that trains its network
(see `pruned.py`).
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from bcnet.errors import BudgetError
from bcnet.hw_profiles.target import target_json
from bcnet.latency_tables.rows import Calibration
from bcnet.pipeline.configured_methods import settings_recorded
from bcnet.pipeline.further_devices import searched_devices, with_devices
from bcnet.pipeline.importance_file import IMPORTANCES_FILE
from bcnet.pipeline.kept import announce_replacement, say_replaced_search
from bcnet.pipeline.preprocessed import preprocessing_input
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.repeated import NOISY
from bcnet.pipeline.results import PrecisionFound, SearchSummary
from bcnet.pipeline.route import allocations, on_trained_network
from bcnet.pipeline.search_evolved import fastest_within
from bcnet.pipeline.search_inputs import not_measured_on, settings_of
from bcnet.pipeline.search_precisions import InPrecision, find_in_all
from bcnet.pipeline.search_state import scored_network
from bcnet.pipeline.search_ways import Asked, supernets_for
from bcnet.plain import milliseconds
from bcnet.progress import say
from bcnet.runs import Run, alone_in, digest, json_bytes
from bcnet.training.recipe import fine_tuning_digest, metric_digest
from bcnet.width_search.budget import Budget
from bcnet.width_search.device_limit import DeviceLimit, device_limits
from bcnet.width_search.evolution import SearchSettings


def stage_inputs(run: Run, problem: Problem) -> dict[str, str]:
    """What this stage's manifest records: the supernet, the table's rows that were used, the settings."""
    config = problem.config
    trained = run.stage("train").require(problem.inputs())
    methods = allocations(problem)
    return {
        "supernet": trained,
        **({"methods": ", ".join(own.name for own in methods)} if methods else {}),
        **_tables(problem, lambda own: own.table.latency_model().calibration),
        "device": problem.device_key,
        "search settings": digest(
            [
                _recorded(settings_of(problem)),
                *(_trial_settings(problem) if methods else ()),
                *(value for own in methods for value in settings_recorded(own, config.search)),
                config.search.recalibration_images,
                *(getattr(config.search, key) for key in ("max_params", "max_macs", "max_size_mb")),
                *([config.search.free_sets] if _assigned(problem) else ()),
            ]
        ),
        "metric": metric_digest(config),
        **preprocessing_input(problem),
    }


def _assigned(problem: Problem) -> bool:
    """Whether networks are scored by the best of several assignments of channels."""
    return problem.space.rule.free and not on_trained_network(problem)


def table_inputs(problem: Problem) -> dict[str, str]:
    """What the manifest records of the latency tables; no device is reached. Raises TableError."""
    return _tables(problem, lambda own: own.table.calibration)


def _tables(problem: Problem, fit_of: Callable[[Problem], Calibration | None]) -> dict[str, str]:
    """Hashes of everything that predictions depend on: in each precision, the tables of all devices."""
    found = dict[str, str]()
    for name in problem.precisions:
        fits = [fit_of(own) for own in problem.at(name).devices]
        tables = [asdict(own) if own else None for own in fits]
        key = f"table at {name}" if found else "latency table"
        found[key] = digest(tables if problem.further else tables[0])
    return found


def _recorded(settings: SearchSettings) -> dict[str, Any]:
    """The evolution's settings; one that does nothing is left out: results without it are not outdated."""
    budget = settings.budget
    found = asdict(replace(settings, budget=Budget()))
    del found["budget"]
    found |= {"budget_ms": budget.target_ms, "share": budget.share, "margin": budget.margin}
    if budget.p90:
        found["p90"] = True
    if devices := device_limits(budget.bounds):
        found["further"] = [[own.device, _held(own.budget)] for own in devices]
    without = [key for key in ("exchange", "prior_mutation") if not found[key]]
    return {key: found[key] for key in found if key not in without}


def _held(budget: Budget) -> list[Any]:
    return [budget.target_ms, budget.share, budget.margin, budget.p90]


def _trial_settings(problem: Problem) -> list[Any]:
    """What the trials of candidates depend on, beside the search's settings."""
    config = problem.config
    training = config.slice.decisive("epochs", "latency", "latency_ms")
    return [config.search.trials, config.search.trial_epochs, training, fine_tuning_digest(config)]


@alone_in("search")
def run(run: Run, problem: Problem) -> SearchSummary:
    """Search and save; continue a killed search of the same settings."""
    config = problem.config
    supernets = supernets_for(run, problem)
    asked = Asked(run, problem, stage_inputs(run, problem), supernets)
    settings, budget, latency = asked.settings, asked.budget, asked.latency
    limit = _checked(asked)
    announce_replacement(run, config, "search")
    say_replaced_search(run, asked.inputs)
    ways = find_in_all(asked)
    won, found = ways[0], ways[0].found
    if won.asked is not asked:
        limit, settings, budget, latency = None, won.asked.settings, won.asked.budget, won.asked.latency
    own_ms = asked.latency(problem.space.original())
    result = found.result
    replayed = [own.table.replayed for own in problem.devices]
    further = "nor on any further device" if asked.not_measured and problem.further else ""
    further = further or not_measured_on(problem)
    if asked.not_measured or further or any(replayed):
        added = f"the budget{problem.on_device} does not include pre-processing, which was not measured"
        unknown = added if asked.not_measured and problem.preprocessing else ""
        notes = result.note, asked.not_measured, further, *replayed, unknown
        result = replace(result, note="; ".join(note for note in notes if note))
    if result.note:
        say(result.note)
    widths, calibration = result.best.widths, latency.calibration
    sizes = {b.key.replace("max_", ""): b.cost(widths) / b.unit for b in budget.bounds if b.unit > 1}
    soft = result.budget_ms is None and budget.target_ms is not None  # a target that need not be kept
    front = tuple(with_devices(candidate, budget.bounds) for candidate in result.pareto)
    summary = SearchSummary(
        folder=str(asked.stage.folder),
        device=problem.profile.name,
        metric=config.task.metric,
        target=target_json(config),
        budget=None if result.budget_ms is None else asked.budget.stated(result.budget_ms),
        preprocess_ms=budget.added_ms or None,
        min_accuracy=result.min_accuracy,
        fitness=settings.fitness if soft else None,
        target_ms=budget.target_ms if soft else None,
        **{own.key: round(own.limit / own.unit, 6) for own in budget.bounds if not own.of_device},
        best=with_devices(result.best, budget.bounds),
        params=problem.space.params(widths),
        macs=problem.space.macs(widths),
        **sizes,
        limit_ms=limit,
        margin=budget.margin,
        noise=calibration.noise if calibration else None,
        pareto=len(front),
        front=front,
        searched_to_ms=settings.scored_ms,
        measured=tuple(with_devices(candidate, budget.bounds) for candidate in result.top),
        candidates=len(result.history),
        full_predicted_ms=round(own_ms, 5),
        estimate=latency.estimate,
        recorded=problem.profile.recording,
        table_error=calibration.mean_error if calibration else None,
        groups=tuple(group.name for group in problem.space.groups),
        seed=result.seed,
        note=result.note,
        method=found.method,
        methods=tuple(own.name for own in asked.methods),
        criterion=found.criterion,
        pruning_passes=found.passes,
        pruning_passes_of_all_rounds=found.passes_of_all,
        precision=won.name if len(problem.precisions) > 1 else None,
        precisions=tuple(map(_in_precision, ways)) if len(problem.precisions) > 1 else None,
        further=searched_devices(
            won.asked.problem, asked.budget.bounds, result.further_ms, searched=budget.bounds
        ),
    )
    files = {
        summary.FILE: summary.to_json(),
        "history.json": [scored_network(candidate).to_json() for candidate in result.history],
        "pareto.json": [own.to_json() for own in front],
    }
    contents = {name: json_bytes(value) for name, value in files.items()}
    contents |= found.files
    networks = asked.stage.folder.glob("*.safetensors")  # of this search, or of the one before
    earlier = [path for path in networks if path.name not in (IMPORTANCES_FILE, *contents)]
    unfinished = [*asked.unfinished]
    unfinished += [path for own in ways for path in (*own.asked.unfinished, *own.found.obsolete)]
    obsolete = [*unfinished, *earlier]
    asked.stage.finish(asked.inputs, contents, obsolete)
    return summary


def _checked(asked: Asked) -> float | None:
    """Report the latency limit; return it in ms, None if there is no budget or it is a share.

    If only one precision is searched, raises BudgetError for an impossible budget before any work is done.
    """
    problem, budget, latency = asked.problem, asked.budget, asked.latency
    try:
        _, lowest = fastest_within(problem.space, latency, budget)
    except BudgetError:
        if len(problem.precisions) > 1:
            return None
        raise
    for own in device_limits(budget.bounds):
        say(_device_said(own, measured=asked.measure_of is not None))
    if asked.measure_of is None:
        return None
    if budget.share is not None:
        _say_share(budget, budget.share)
        return None
    return _limit_said(budget, lowest, latency.noise)


def _in_precision(own: InPrecision) -> PrecisionFound:
    """What is stored about one of several precisions."""
    result, score = own.found.result, own.score
    assert score is not None
    return PrecisionFound(
        precision=own.name,
        best=with_devices(result.best, own.asked.budget.bounds),
        accuracy=score.accuracy,
        loss=score.loss,
        front=tuple(map(scored_network, result.pareto)),
        measured=tuple(with_devices(candidate, own.asked.budget.bounds) for candidate in result.top),
        candidates=len(result.history),
        full_predicted_ms=round(own.asked.latency(own.asked.problem.space.original()), 5),
        note=result.note,
    )


def _say_share(budget: Budget, share: float) -> None:
    """Report how far networks are searched, as a share of the original's measured latency."""
    limit = share / budget.within_margin
    less = f": {share:.1%} less a margin of {1 - limit / share:.1%}" if limit < share else ""
    alone = f", with {milliseconds(budget.added_ms)} ms of pre-processing in both" if budget.added_ms else ""
    latency = f"the original's measured latency{budget.on_device}"
    say(f"searching up to {limit:.1%} of {latency}{less}{alone}")


def _device_said(own: DeviceLimit, *, measured: bool) -> str:
    """The budget on a further device, as text."""
    budget, added_ms = own.budget.delivered.stated(), own.budget.added_ms
    assert budget is not None
    if not measured or own.measure_of is None:
        return f"on {own.device}: {budget.explained}, by its table alone"
    added = f"{milliseconds(added_ms)} ms of it for pre-processing, " if added_ms else ""
    return f"on {own.device}: {budget.explained}, {added}less a margin of {own.budget.margin:.1%}"


def _limit_said(budget: Budget, lowest_ms: float, noise: float) -> float | None:
    """Report the latency limit of the search, and return it in ms; None without a budget."""
    stated = budget.delivered.stated()
    if stated is None:
        return None
    limit = budget.searched_ms(lowest_ms)
    say(
        f"searching below {milliseconds(limit)} ms{budget.on_device}: {stated}, "
        + (f"{milliseconds(budget.added_ms)} ms of it for pre-processing, " if budget.added_ms else "")
        + f"margin {budget.margin:.1%}"
        + (f" (capped: the table's noise is {noise:.0%})" if noise > budget.margin == NOISY else "")
    )
    return round(limit, 5)
