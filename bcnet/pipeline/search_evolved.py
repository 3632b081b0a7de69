"""The evolution's winner. In: a space, latencies, scores, a budget. Out: the best widths, measured.

Only networks that fit the budget and the bounds are ever scored, none twice, and every loop ends. The best
few are measured as whole networks on the device before one of them wins.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bcnet.errors import BudgetError
from bcnet.latency_tables.rows import FAILED_MS, LatencyStat
from bcnet.methods.limits import Limits
from bcnet.pipeline.search_inputs import MeasureOf
from bcnet.progress import working
from bcnet.supernet.costs import Bound
from bcnet.supernet.evolution import Candidate, Evolution, LatencyOf, Prior, ScoreOf, SearchSettings
from bcnet.supernet.space import Widths, WidthSpace

NOT_MEASURED = "not measured: the latency is the table's prediction"
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
    narrowest, lowest = fastest_within(space, latency_of, bounds, budget)
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
            return replace(result_of(settings, best, (best,), (best,), kept), pareto=(best,))
    candidates = evolution.run(priors, resume, on_generation)
    result = _winner(evolution, settings, candidates, measure_of)
    history = {candidate.widths: candidate for candidate in (*candidates, *result.history)}
    return replace(result, history=tuple(history.values()), pareto=evolution.front(tuple(history.values())))


def fastest_within(
    space: WidthSpace, latency_of: LatencyOf, bounds: Sequence[Bound], budget_ms: float | None
) -> tuple[Widths, float]:
    """The fastest widths within the bounds, and their latency. Raises BudgetError (see `Limits.fastest`)."""
    found = Limits(space, latency_of, math.inf if budget_ms is None else budget_ms, bounds).fastest()
    return found, latency_of(found)


def effective_limit_ms(settings: SearchSettings, budget_ms: float, lowest_ms: float) -> float:
    """The latency limit for measured networks, in ms: the budget without the margin, if any is that fast."""
    return max(lowest_ms, settings.limit_ms(budget_ms))


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
        result = result_of(settings, top[0], top, candidates, "")
    elif measure_of is not None:
        result = measured_best(evolution, settings, candidates, measure_of)
    else:
        result = result_of(settings, top[0], top, candidates, NOT_MEASURED)
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
        return result_of(settings, best, top, candidates, "")
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
                    return result_of(settings, confirmed, tops, tuple(found.values()), note)
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
            return result_of(settings, confirmed, tuple(measured.values()), tuple(found.values()), note)
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


def result_of(
    settings: SearchSettings,
    best: Candidate,
    top: Sequence[Candidate],
    candidates: Sequence[Candidate],
    note: str,
) -> SearchResult:
    """A result without its front."""
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
