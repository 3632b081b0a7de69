"""The evolution's winner. In: a space, latencies, scores, a budget. Out: the best widths, measured.

Only networks that fit the budget and the bounds are ever scored, none twice, and every loop ends. The best
few are measured as whole networks on the device before one of them wins.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bcnet.allocation.limits import Limits
from bcnet.errors import BudgetError
from bcnet.latency_tables.failed import SLOWEST_MS
from bcnet.pipeline.alternating import MeasureOf, alternating
from bcnet.pipeline.beside_original import BesideOriginal
from bcnet.pipeline.measured import ROUNDS
from bcnet.pipeline.search_measured import Winner, fastest_measured, measured_alone, measured_best
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.width_search.budget import Budget
from bcnet.width_search.device_limit import below_margins
from bcnet.width_search.evolution import Candidate, Evolution, LatencyOf, Prior, ScoreOf, SearchSettings

NOT_MEASURED = "not measured: the latency is the table's prediction"


@dataclass(frozen=True)
class SearchResult:
    """The winner and what it was chosen from. `note` is what a user should know.

    `budget_ms` is the budget as measured, `further_ms` are those of further devices.
    """

    best: Candidate
    top: tuple[Candidate, ...]
    pareto: tuple[Candidate, ...]
    history: tuple[Candidate, ...]
    budget_ms: float | None
    min_accuracy: float | None
    seed: int
    note: str = ""
    further_ms: tuple[float, ...] = ()


def search(  # noqa: PLR0913 - functions of the caller's own, most of them optional
    space: WidthSpace,
    latency_of: LatencyOf,
    score_of: ScoreOf,
    settings: SearchSettings,
    *,
    priors: Sequence[Prior] = (),
    measure_of: MeasureOf | None = None,
    resume: Sequence[Candidate] = (),
    on_generation: Callable[[Sequence[Candidate]], None] | None = None,
) -> SearchResult:
    """The most accurate widths within a budget, or the fastest that are accurate enough.

    `latency_of` gives ms, `score_of` an accuracy or a Score; `priors` hold each group's probabilities for the
    first generation, which is drawn from them in turn; `measure_of` times whole networks, which are then
    looked for by the margin below the budget. `on_generation` gets all candidates so far, and `resume`
    takes them: a continued search reaches the same candidates as one that was not killed.
    Raises BudgetError: a budget or bound is below the least possible, or no candidate meets the demand.
    """
    asked_for, budget = settings.budget, settings.budget.target_ms
    if budget is not None and settings.min_accuracy is not None:
        raise BudgetError("a search takes a latency budget or a minimum accuracy, not both")
    if budget is None and settings.min_accuracy is None and not asked_for.bounds and not settings.pareto:
        raise BudgetError("a search needs a latency budget, a minimum accuracy or a bound")
    if budget is None and settings.fitness == "soft":
        raise BudgetError("a soft fitness needs a latency budget: latencies are taken relative to it")
    narrowest, lowest = fastest_within(space, latency_of, asked_for)
    full, tightened = space.largest(), settings
    if budget is not None and measure_of is not None:
        bounds = below_margins(asked_for.bounds, narrowest)
        below = replace(asked_for, target_ms=asked_for.searched_ms(lowest), bounds=bounds)
        tightened = replace(settings, budget=below)
    evolution = Evolution(space, latency_of, score_of, tightened)
    evolution.fastest = narrowest
    whole = Evolution(space, latency_of, score_of, settings)
    if settings.fills_budget and whole.fits(full, SLOWEST_MS if budget is None else budget):
        kept = _kept_whole(evolution.scored(full, 0), space.original(), settings, measure_of)
        if kept is not None:
            return replace(result_of(settings, kept), pareto=(kept.best,))
    candidates = evolution.run(priors, resume, on_generation)
    result = _winner(evolution, settings, candidates, measure_of)
    history = {candidate.widths: candidate for candidate in (*candidates, *result.history)}
    return replace(result, history=tuple(history.values()), pareto=evolution.front(tuple(history.values())))


def _kept_whole(
    full: Candidate, original: Widths, settings: SearchSettings, measure_of: MeasureOf | None
) -> Winner | None:
    """The full network as the winner, if it is predicted within all limits; None if measured above one."""
    budget, further = settings.budget, tuple[float, ...]()
    if budget.target_ms is None:
        if measure_of is not None:
            full = replace(full, measured=alternating(measure_of, [full.widths, original])[full.widths])
        kept, asked = "every bound is above the full network's: kept whole", None
    else:
        asked, kept = budget.target_ms, f"the {budget.stated()} is"
        if measure_of is not None:
            beside = BesideOriginal(measure_of, original, budget)
            (own,), originals = beside([full])
            if not own.within(beside.without_margins):
                return None
            full, budgets = own.candidate, beside.asked(originals)
            asked, kept = budgets[0].ms, f"the {budgets[0]} is"
            further = tuple(own.ms for own in budgets[1:])
        kept = f"{kept} above the full network's latency: kept whole"
    kept = kept if full.measured else f"{kept}, {NOT_MEASURED}"
    return Winner(full, (full,), (full,), asked, kept, further)


def fastest_within(space: WidthSpace, latency_of: LatencyOf, budget: Budget) -> tuple[Widths, float]:
    """The fastest widths within the bounds, and their latency. Raises BudgetError (see `Limits.fastest`)."""
    limit_ms = math.inf if budget.target_ms is None else budget.target_ms
    found = Limits(space, latency_of, limit_ms, budget.bounds).fastest()
    return found, latency_of(found)


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
    limit, free = evolution.settings.budget.target_ms, settings.over_budget and settings.fitness == "soft"
    if limit is not None and not free:
        inside = tuple(c for c in candidates if c.predicted_ms <= limit)
        candidates = inside or _led_inside(evolution, ranked[: settings.measured], limit)
        ranked = evolution.ranked(candidates)
    top = tuple(ranked[: settings.measured])
    budget = settings.budget.target_ms
    if measure_of is None:
        winner = Winner(top[0], top, candidates, budget, NOT_MEASURED)
    elif settings.min_accuracy is not None:
        winner = fastest_measured(evolution, settings, candidates, measure_of)
    elif limit is None or free:
        top = measured_alone(top, measure_of)
        winner = Winner(top[0], top, candidates, budget)
    else:
        winner = measured_best(evolution, settings, candidates, measure_of)
    result = result_of(settings, winner)
    if free:
        target = f"the {settings.budget.stated()} is a target that need not be kept (over_budget)"
        result = replace(result, budget_ms=None, note="; ".join(filter(None, (target, result.note))))
    return result


def _led_inside(evolution: Evolution, best: Sequence[Candidate], limit_ms: float) -> tuple[Candidate, ...]:
    """The best, narrowed until they fit: where all that were scored are over the budget."""
    settings = evolution.settings
    rng = np.random.default_rng((settings.seed, settings.generations + ROUNDS))  # drawn by no other
    fitting = dict.fromkeys(evolution.repaired(candidate.widths, rng, limit_ms) for candidate in best)
    return tuple(evolution.scored(widths, settings.generations + 1) for widths in fitting)


def result_of(settings: SearchSettings, winner: Winner) -> SearchResult:
    """A result without its front."""
    return SearchResult(
        best=winner.best,
        top=winner.top,
        pareto=(),  # that of all candidates: `search` fills it in
        history=winner.candidates,
        budget_ms=winner.budget_ms,
        min_accuracy=settings.min_accuracy,
        seed=settings.seed,
        note=winner.note,
        further_ms=winner.further_ms,
    )
