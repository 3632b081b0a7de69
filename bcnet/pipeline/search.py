"""Stage 3, evolutionary search. In: a supernet's scores, a latency model, a budget. Out: the best widths.

Only networks that fit the budget and the bounds are ever scored, none twice, and every loop ends. The best
few are measured as whole networks on the device before one of them wins.

`search/`: result.json, history.json (every scored candidate), pareto.json, and while searching state.jsonl,
from which a killed search continues; of group-fisher the network that it trained (see `pruned.py`).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bcnet.artifacts import Run, alone_in, digest, json_bytes
from bcnet.config import Config
from bcnet.errors import BudgetError
from bcnet.hw_profiles.target import target_of
from bcnet.latency_tables.model import LatencyModel
from bcnet.latency_tables.rows import FAILED_MS, LatencyStat
from bcnet.methods.uniform import allocate_uniformly
from bcnet.pipeline.kept import announce_replacement
from bcnet.pipeline.original import trained_network, trained_state
from bcnet.pipeline.pruned import PRUNED_FILE, PrunedNetworks
from bcnet.pipeline.repeated import NOISY
from bcnet.pipeline.route import GROUP_FISHER, allocations, on_trained_network
from bcnet.pipeline.search_inputs import (
    MeasureOf,
    bounds_of,
    measuring,
    priors_of,
    scoring,
    settings_of,
    share_of,
)
from bcnet.pipeline.search_state import SearchState, candidate_json
from bcnet.pipeline.search_trained import (
    Proposals,
    Target,
    best_measured,
    finalists,
    report_losses,
    report_winner,
    tried,
)
from bcnet.pipeline.trained_scores import TrainedScores
from bcnet.pipeline.tuning import Tuning
from bcnet.progress import announce, say, working
from bcnet.supernet.costs import Bound
from bcnet.supernet.evolution import (
    Candidate,
    Evolution,
    LatencyOf,
    Prior,
    ScoreOf,
    SearchSettings,
    fastest,
)
from bcnet.supernet.fit import metric_digest, training_digest
from bcnet.supernet.project import Project, load_project
from bcnet.supernet.saved import trained_supernets
from bcnet.supernet.score import Score, best_first
from bcnet.supernet.space import Widths, WidthSpace

NOT_MEASURED = "not measured: the latency is the table's prediction"
SCORES = "scores.jsonl"  # of networks that were scored on the trained network, while searching
ROUNDS = 4  # batches of candidates that are measured, before the search gives up


@dataclass(frozen=True)
class SearchResult:
    """The winner and what it was chosen from. `note` says what a user should know."""

    best: Candidate
    top: tuple[Candidate, ...]
    pareto: tuple[Candidate, ...]
    history: tuple[Candidate, ...]
    budget_ms: float | None
    min_accuracy: float | None
    seed: int
    note: str = ""


def search(
    space: WidthSpace,
    latency_of: LatencyOf,
    score_of: ScoreOf,
    settings: SearchSettings,
    *,
    priors: Sequence[Prior] = (),
    bounds: Sequence[Bound] = (),
    measure_of: MeasureOf | None = None,
    resume: Sequence[Candidate] = (),
    on_generation: Callable[[Sequence[Candidate]], None] | None = None,
) -> SearchResult:
    """The most accurate widths within a latency budget and bounds, or the fastest that are accurate enough.

    `latency_of` gives ms, `score_of` an accuracy or a Score; `priors` hold each group's probabilities for the
    first generation, which is drawn from them in turn; `measure_of` times whole networks, which are then
    looked for `settings.margin` below the budget. `on_generation` gets all candidates so far, and `resume`
    takes them: a continued search reaches the same candidates as one that was not killed.
    Raises BudgetError: a budget or bound is below the least possible, or no candidate meets the demand.
    """
    budget = settings.budget_ms
    if budget is not None and settings.min_accuracy is not None:
        raise BudgetError("a search takes a latency budget or a minimum accuracy, not both")
    if budget is None and settings.min_accuracy is None and not bounds and not settings.pareto:
        raise BudgetError("a search needs a latency budget, a minimum accuracy or a bound")
    if budget is None and settings.fitness == "soft":
        raise BudgetError("a soft fitness needs a latency budget: latencies are taken relative to it")
    narrowest, lowest = _fastest(space, latency_of, bounds, budget)
    full, pressed = space.largest(), settings
    if budget is not None and measure_of is not None:
        pressed = replace(settings, budget_ms=effective_limit_ms(settings, budget, lowest))
    evolution = Evolution(space, latency_of, score_of, pressed, bounds)
    evolution.anchor = narrowest
    if settings.presses and evolution.fits(
        full, float(np.nextafter(FAILED_MS, 0)) if budget is None else budget
    ):
        measured = measure_of(full) if measure_of else None
        if budget is None or measured is None or measured.median_ms <= budget:
            best = replace(evolution.scored(full, 0), measured=measured)
            kept = "every bound is" if budget is None else f"the budget of {budget:.4g} ms is"
            kept = f"{kept} above the full network's{'' if budget is None else ' latency'}: kept whole"
            kept = kept if measured else f"{kept}, {NOT_MEASURED}"
            return replace(_result(settings, best, (best,), (best,), kept), pareto=(best,))
    candidates = evolution.run(priors, resume, on_generation)
    result = _winner(evolution, settings, candidates, measure_of)
    history = {candidate.widths: candidate for candidate in (*candidates, *result.history)}
    return replace(result, history=tuple(history.values()), pareto=evolution.front(tuple(history.values())))


def effective_limit_ms(settings: SearchSettings, budget_ms: float, lowest_ms: float) -> float:
    """The latency limit for measured networks, in ms: the budget without the margin, if any is that fast."""
    return max(lowest_ms, settings.limit_ms(budget_ms))


def _fastest(
    space: WidthSpace, latency_of: LatencyOf, bounds: Sequence[Bound], budget_ms: float | None
) -> tuple[Widths, float]:
    """The fastest widths within the bounds, and their latency.

    Raises BudgetError where there are none, or where they exceed the budget.
    """
    for bound in bounds:
        least = bound.cost(space.smallest())
        if least > bound.limit:
            raise BudgetError(
                f"no network has at most {bound.limit / bound.unit:,.10g} {bound.name}: the narrowest has "
                f"{bound.shown(least)}; raise search.{bound.key}, or widen the choices (space.min_width, "
                "space.bins)"
            )
    narrowest = fastest(space, latency_of, bounds)
    lowest = latency_of(narrowest)
    if lowest >= FAILED_MS:
        raise BudgetError(
            f"the runtime runs no network of this space{' within the bounds' if bounds else ''}; "
            "the table's rows show which layers fail"
        )
    if budget_ms is not None and lowest > budget_ms:
        raise BudgetError(
            f"no network meets {budget_ms:.4g} ms: the fastest takes {lowest:.4g} ms"
            f"{' within the other bounds' if bounds else ''}; "
            "raise the budget, or widen the choices (space.min_width, space.bins)"
        )
    return narrowest, lowest


def _winner(
    evolution: Evolution,
    settings: SearchSettings,
    candidates: tuple[Candidate, ...],
    measure_of: MeasureOf | None,
) -> SearchResult:
    """The winner of all candidates that may win, measured where that is possible."""
    ranked = evolution.ranked(candidates)
    if settings.min_accuracy is not None and ranked[0].score.accuracy < settings.min_accuracy:
        best_accuracy = max(candidate.score.accuracy for candidate in candidates)
        raise BudgetError(
            f"no candidate reaches an accuracy of {settings.min_accuracy:.4g} in the supernet: the best has "
            f"{best_accuracy:.4g}; lower it, or train the supernet longer"
        )
    limit, free = evolution.settings.budget_ms, settings.over_budget and settings.fitness == "soft"
    if limit is not None and not free:
        inside = tuple(c for c in candidates if c.predicted_ms <= limit)
        candidates = inside or _led_inside(evolution, ranked[: settings.measured], limit)
        ranked = evolution.ranked(candidates)
    top = tuple(ranked[: settings.measured])
    if measure_of is not None and settings.min_accuracy is None and (limit is None or free):
        top = _measured(top, measure_of)
        result = _result(settings, top[0], top, candidates, "")
    elif measure_of is not None:
        result = measured_best(evolution, settings, candidates, measure_of)
    else:
        result = _result(settings, top[0], top, candidates, NOT_MEASURED)
    if free:
        target = f"the budget of {settings.budget_ms:.4g} ms is a target that need not be kept (over_budget)"
        result = replace(result, budget_ms=None, note="; ".join(filter(None, (target, result.note))))
    return result


def _led_inside(evolution: Evolution, best: Sequence[Candidate], limit_ms: float) -> tuple[Candidate, ...]:
    """The best, narrowed until they fit: where all that were scored are over the budget."""
    settings = evolution.settings
    rng = np.random.default_rng((settings.seed, settings.generations + ROUNDS))
    fitting = dict.fromkeys(evolution.repaired(candidate.widths, rng, limit_ms) for candidate in best)
    return tuple(evolution.scored(widths, settings.generations + 1) for widths in fitting)


def measured_best(
    evolution: Evolution, settings: SearchSettings, candidates: Sequence[Candidate], measure_of: MeasureOf
) -> SearchResult:
    """Measure the best few; the best that really is inside the budget, by the margin, wins.

    The winner is measured once more, after all others, and has to fit again; the slower measurement counts.
    The best of several that press against the budget is otherwise likely one that was measured too fast.
    Where all of them miss it, the table is off by some factor here: the next ones are made to fit a budget
    that is tighter by as much. In the end, one that is inside the budget without the margin will do.
    """
    found = {candidate.widths: candidate for candidate in candidates}
    if settings.min_accuracy is not None:
        wanted = evolution.ranked([c for c in candidates if c.score.accuracy >= settings.min_accuracy])
        top = _measured(wanted[: settings.measured], measure_of)
        best = min(top, key=lambda c: c.measured.median_ms if c.measured else 0.0)
        return _result(settings, best, top, candidates, "")
    assert settings.budget_ms is not None
    assert evolution.settings.budget_ms is not None
    assert evolution.anchor is not None
    lowest, wanted_ms = evolution.latency_of(evolution.anchor), settings.limit_ms(settings.budget_ms)
    limit, measured, note = evolution.settings.budget_ms, dict[Widths, Candidate](), ""

    def inside(candidate: Candidate, bound_ms: float) -> bool:
        return candidate.measured is not None and candidate.measured.median_ms <= bound_ms

    for number in range(ROUNDS):
        waiting = [c for c in evolution.ranked(tuple(found.values())) if c.widths not in measured]
        if number:
            rng = np.random.default_rng((settings.seed, settings.generations + number))
            for candidate in waiting[: settings.measured]:
                widths = evolution.repaired(candidate.widths, rng, limit)
                if widths not in found:
                    found[widths] = evolution.scored(widths, settings.generations + number)
            waiting = [c for c in evolution.ranked(tuple(found.values())) if c.widths not in measured]
            note = f"candidates were slower than predicted: narrowed to a predicted {limit:.4g} ms"
        batch = _measured([c for c in waiting if c.predicted_ms <= limit][: settings.measured], measure_of)
        measured |= {c.widths: c for c in batch}
        for candidate in evolution.ranked(tuple(measured.values())):
            if inside(candidate, wanted_ms):
                confirmed = _slower(candidate, measure_of(candidate.widths))
                measured[candidate.widths] = confirmed
                if inside(confirmed, wanted_ms):
                    tops = tuple(measured.values())
                    return _result(settings, confirmed, tops, tuple(found.values()), note)
        if not batch:
            break
        counted = [measured[c.widths] for c in batch]
        ratios = [c.measured.median_ms / c.predicted_ms for c in counted if c.measured]
        limit = max(lowest, min(limit, wanted_ms / float(np.median(ratios))))
    for candidate in evolution.ranked([c for c in measured.values() if inside(c, settings.budget_ms)]):
        confirmed = _slower(candidate, measure_of(candidate.widths))
        measured[candidate.widths] = confirmed
        if inside(confirmed, settings.budget_ms):
            note = f"inside the budget, but by less than the machine's noise of {settings.margin:.1%}"
            return _result(settings, confirmed, tuple(measured.values()), tuple(found.values()), note)
    closest = min(c.measured.median_ms for c in measured.values() if c.measured)
    raise BudgetError(
        f"none of the {len(measured)} best candidates, measured as whole networks, is within "
        f"{settings.budget_ms:.4g} ms; the closest takes {closest:.4g}. The machine may be busy: "
        "search again, or measure the table anew with `bcnet build-lut --again`"
    )


def _measured(candidates: Sequence[Candidate], measure_of: MeasureOf) -> tuple[Candidate, ...]:
    with working("measuring the best candidates as whole networks"):
        return tuple(replace(c, measured=measure_of(c.widths)) for c in candidates)


def _slower(candidate: Candidate, again: LatencyStat) -> Candidate:
    """The candidate with the slower of its measurement and another one."""
    if candidate.measured is not None and candidate.measured.median_ms >= again.median_ms:
        return candidate
    return replace(candidate, measured=again)


def _result(
    settings: SearchSettings,
    best: Candidate,
    top: Sequence[Candidate],
    candidates: Sequence[Candidate],
    note: str,
) -> SearchResult:
    return SearchResult(
        best=best,
        top=tuple(top),
        pareto=(),  # that of all candidates: `search` fills it in
        history=tuple(candidates),
        budget_ms=settings.budget_ms,
        min_accuracy=settings.min_accuracy,
        seed=settings.seed,
        note=note,
    )


def stage_inputs(run: Run, config: Config) -> dict[str, str]:
    """What this stage's manifest records: the supernet, the table's rows that were used, the settings."""
    project = load_project(config)
    trained = run.stage("train").require(project.inputs())
    calibration = project.latency_model().calibration
    methods = allocations(project)
    return {
        "supernet": trained,
        **({"methods": ", ".join(methods)} if methods else {}),
        "latency table": digest(asdict(calibration) if calibration else None),
        "device": project.device_key,
        "search settings": digest(
            [
                asdict(settings_of(project)),
                *(_trial_settings(project) if methods else ()),
                *((config.search.prune_epochs, config.search.prune_by) if GROUP_FISHER in methods else ()),
                config.search.recalibration_images,
                *(getattr(config.search, key) for key in ("max_params", "max_macs", "max_size_mb")),
            ]
        ),
        "metric": metric_digest(config),
    }


def _trial_settings(project: Project) -> list[Any]:
    """What the trials of candidates depend on, beside the search's settings."""
    config = project.config
    training = config.slice.model_dump(exclude={"epochs", "latency", "latency_ms"})
    return [config.search.trials, config.search.trial_epochs, training, training_digest(config)]


@alone_in("search")
def run(run: Run, config: Config) -> dict[str, Any]:
    """Search and save; continue a killed search of the same settings. Returns a summary."""
    project = load_project(config)
    own = trained_state(run, project) if on_trained_network(project) else None
    supernets = () if own is not None else trained_supernets(run, project)
    methods = allocations(project)
    latency = project.latency_model()
    settings, bounds = settings_of(project), bounds_of(project)
    stage, inputs = run.stage("search"), stage_inputs(run, config)
    not_measured = project.not_measured(latency)
    # Reports what is impossible before any work is done.
    _, lowest = _fastest(project.space, latency, bounds, settings.budget_ms)
    measure_of = None if not_measured else measuring(project)
    share = None if not_measured else share_of(config.search)
    limit = None
    if measure_of is not None:
        if methods and share is not None:
            target = Target(settings.budget_ms or 0.0, share, settings.margin)
            limit_share = target.limit_ms(1.0)
            less = f": {share:.1%} less a margin of {1 - limit_share / share:.1%}" if share < 1 else ""
            say(f"searching up to {limit_share:.1%} of the original's measured latency{less}")
        else:
            limit = _limit_said(settings, lowest, latency.noise)
    announce_replacement(run, config, "search")
    scores, kept, method, pruned = None, list[Path](), None, None
    if own is not None:
        scores = TrainedScores(project, own, stage.path(SCORES), inputs)
        if methods != (GROUP_FISHER,):  # which scores its own weights
            scores.choose_criterion(_typical(scores.space, latency, settings, bounds))
        kept = [stage.path(SCORES)]
    if scores is not None and methods:
        network = trained_network(run, project) if GROUP_FISHER in methods else None
        pruned = None if network is None else PrunedNetworks(project, network, stage.folder, inputs)
        proposals = Proposals(methods, scores, latency, bounds, pruned)
        result = _proposed(run, proposals, settings, share, measure_of)
        method = proposals.origin[result.best.widths]
    else:
        state = SearchState(stage, inputs, project.space)
        kept += state.files
        score_of = scores or scoring(project, supernets)
        announce("searching", _seconds(project, score_of, settings))
        result = search(
            project.space,
            latency,
            score_of,
            settings,
            priors=() if scores else priors_of(project, run, settings, bounds),
            bounds=bounds,
            measure_of=measure_of,
            resume=state.candidates,
            on_generation=state.keep,
        )
    if not_measured or project.replayed:
        notes = result.note, not_measured, project.replayed
        result = replace(result, note="; ".join(note for note in notes if note))
    if result.note:
        say(result.note)
    summary = {
        "stage": "search",
        "folder": str(stage.folder),
        "device": project.profile.name,
        "metric": config.task.metric,
        "target": target_of(config).to_json(config.host),
        "budget_ms": result.budget_ms,
        "budget_share": share if result.budget_ms is not None else None,
        "min_accuracy": result.min_accuracy,
        **(
            {"fitness": settings.fitness, "target_ms": settings.budget_ms}
            if result.budget_ms is None and settings.budget_ms is not None
            else {}
        ),
        **{bound.key: round(bound.limit / bound.unit, 6) for bound in bounds},
        "best": candidate_json(result.best),
        "params": project.space.params(result.best.widths),
        "macs": project.space.macs(result.best.widths),
        **{
            bound.key.replace("max_", ""): bound.cost(result.best.widths) / bound.unit
            for bound in bounds
            if bound.unit > 1
        },
        "limit_ms": limit,
        "margin": settings.margin,
        "noise": latency.calibration.noise if latency.calibration else None,
        "pareto": len(result.pareto),
        "front": [candidate_json(c) for c in result.pareto],
        "searched_to_ms": settings.scored_ms,
        "measured": [candidate_json(c) for c in result.top],
        "candidates": len(result.history),
        "full_predicted_ms": round(latency(project.space.original()), 5),
        "estimate": latency.estimate,
        "recorded": project.profile.recording,
        "table_error": latency.calibration.mean_error if latency.calibration else None,
        "groups": [group.name for group in project.space.groups],
        "seed": result.seed,
        "note": result.note,
        "method": method,
        "methods": list(methods),
        "criterion": scores.criterion if scores and pruned is None else None,
        "pruning_passes": pruned.found[result.best.widths].passes if pruned else 0,
        "pruning_passes_of_all_rounds": pruned.passes if pruned else 0,
    }
    files = {
        "result.json": summary,
        "history.json": [candidate_json(c) for c in result.history],
        "pareto.json": [candidate_json(c) for c in result.pareto],
    }
    contents = {name: json_bytes(value) for name, value in files.items()}
    if pruned is not None:
        contents[PRUNED_FILE] = pruned.found[result.best.widths].sealed(pruned.inputs)
    kept += stage.folder.glob("pruned-*.safetensors")
    kept += [stage.path(PRUNED_FILE)] if pruned is None else []  # of an earlier search
    stage.finish(inputs, contents, kept)
    return summary


def _typical(
    space: WidthSpace, latency: LatencyModel, settings: SearchSettings, bounds: Sequence[Bound]
) -> Widths:
    """Widths as those that are looked for: uniform ones of the budget, or each group's middle choice."""
    try:
        if settings.budget_ms is not None:
            return allocate_uniformly(space, (), latency, settings.budget_ms, bounds)
    except BudgetError:
        pass  # no uniform network fits
    return Widths(group.choices[len(group.choices) // 2] for group in space.groups)


def _proposed(
    run: Run,
    proposals: Proposals,
    settings: SearchSettings,
    share: float | None,
    measure_of: MeasureOf | None,
) -> SearchResult:
    """The best of the networks that the configured methods propose, measured beside the original.

    The best few are fine-tuned briefly before one wins: losses of cut networks order them only roughly.
    """
    space, latency = proposals.scores.space, proposals.latency
    assert settings.budget_ms is not None
    original = space.original()
    if measure_of is None:
        found = proposals.propose(settings.budget_ms, 0)
        best, budget, note = min(found, key=lambda c: best_first(c.score)), settings.budget_ms, NOT_MEASURED
        top: tuple[Candidate, ...] = (best,)
    else:
        target = Target(settings.budget_ms, share, settings.margin)
        measured = best_measured(proposals, target, original, measure_of, settings.measured)
        project = proposals.scores.project
        search = project.config.search
        winner = measured.inside[0]
        report_losses(proposals)
        last = finalists(proposals, measured, search.trials) if search.trials else []
        if len(last) > 1 and not project.config.slice.from_scratch:
            own = proposals.pruned.found if proposals.pruned else {}
            tuning = Tuning.of(run, project, proposals.scores.importances, own)
            winner = tried(proposals, last, tuning, search.trial_epochs)
        report_winner(proposals, winner)
        top = tuple(own.candidate for own in measured.timed)
        best, budget, note = winner.candidate, measured.budget_ms, measured.note
    candidates = tuple(proposals.found.values())
    evolution = Evolution(space, latency, proposals.scores, replace(settings, smooth=False))
    result = _result(settings, best, top, candidates, note)
    return replace(result, budget_ms=budget, pareto=evolution.front(candidates))


def _limit_said(settings: SearchSettings, lowest_ms: float, noise: float) -> float | None:
    """Report the latency limit of the search, and return it in ms; None without a budget."""
    if settings.budget_ms is None:
        return None
    limit = effective_limit_ms(settings, settings.budget_ms, lowest_ms)
    say(
        f"searching below {limit:.4g} ms: budget {settings.budget_ms:.4g} ms, margin {settings.margin:.1%}"
        + (f" (capped: the table's noise is {noise:.0%})" if noise > settings.margin == NOISY else "")
    )
    return round(limit, 5)


def _seconds(project: Project, score_of: Callable[[Widths], Score], settings: SearchSettings) -> float:
    start = time.perf_counter()
    score_of(project.space.uniform(0.6))
    return (time.perf_counter() - start) * settings.population * (settings.generations + 1)
