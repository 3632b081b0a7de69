"""A point of a finished search's front. In: a latency budget of its own. Out: widths, measured first.

Nothing is searched again: `bcnet slice --latency-ms 5` takes what `bcnet search --pareto` has found. A search
for one budget has no front: only what is inside both budgets is taken, where that is its winner or as good.
"""

from collections.abc import Sequence
from dataclasses import replace

from bcnet.config import latency_share
from bcnet.errors import BudgetError
from bcnet.pipeline.finished import Chosen, as_searched, trained_supernets
from bcnet.pipeline.further_devices import further_budgets, with_held
from bcnet.pipeline.original import trained_state
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.results import SearchSummary, scored_networks
from bcnet.pipeline.route import on_trained_network
from bcnet.pipeline.search_inputs import (
    budget_ms,
    budget_of,
    measured_bounds,
    measuring,
    scoring,
    settings_of,
    with_margins,
)
from bcnet.pipeline.search_measured import measured_best
from bcnet.pipeline.search_state import candidate_of
from bcnet.pipeline.trained_scores import TrainedScores
from bcnet.plain import milliseconds
from bcnet.progress import say
from bcnet.runs import Run
from bcnet.space.importance import CRITERIA
from bcnet.width_search.budget import Budget
from bcnet.width_search.device_limit import below_margins, in_ms
from bcnet.width_search.evolution import Candidate, Evolution, ScoreOf, as_share, fastest

USED = 0.9  # of a budget: what is much faster than it is said to be


def point_inside(run: Run, problem: Problem) -> Chosen | None:
    """The front's most accurate point inside the budget of [slice]; None where that has none.

    Measured as a search measures its winner: where points are over the budget, the next ones are, and
    at last narrower ones. Raises BudgetError where no point is predicted or measured inside the budget, or
    where the search looked for another one.
    """
    own = problem.config.slice
    if not own.of_front:
        return None
    stage, supernet = run.stage("search"), run.stage("train").require(problem.inputs())
    stage.require({"supernet": supernet, "device": problem.device_key})
    in_own, problem = problem, as_searched(run, problem)
    latency = problem.table.latency_model()
    # A percentage refers to the original in the device's own precision, which is not measured beside others.
    budget = budget_ms(in_own, in_own.table.latency_model(), own.latency_ms, own.latency or "")
    share = None if own.latency is None or problem is not in_own else latency_share(own.latency)
    result = SearchSummary.read(stage)
    wanted = budget_of(problem, budget, share).with_added(result.preprocess_ms or 0.0)
    budget = wanted.target_ms or budget
    held = with_held(problem, wanted.bounds, result, stage)
    held = with_margins(problem, held if problem is in_own else in_ms(held))
    wanted = replace(wanted, bounds=held)
    not_measured = problem.table.not_measured(latency)
    if not not_measured:
        wanted = replace(wanted, bounds=measured_bounds(problem, wanted.bounds, lambda _, own: own))
    anchor = fastest(problem.space, latency, wanted.bounds)

    def read(file: str) -> list[Candidate]:
        found = [candidate_of(own, problem.space) for own in scored_networks(stage, file)]
        return [replace(c, predicted_ms=float(latency(c.widths))) for c in found]

    front = [c for c in read("pareto.json") if wanted.bounds_hold(c.widths)]
    flag = f"--latency {own.latency}" if own.latency else f"--latency-ms {own.latency_ms:g}"
    _require_front(result, budget, f"`{stage.command} --pareto`", f"`{stage.command} {flag}`")
    inside = tuple(c for c in front if c.predicted_ms <= budget)
    if not inside:
        least = min((c.predicted_ms for c in front), default=None)
        known = "none is within the bounds"
        if least is not None:
            known = f"the fastest takes {milliseconds(least)} ms{as_share(latency, problem.space, least)}"
        raise BudgetError(
            f"no point of the search's front is within {milliseconds(budget)} ms{problem.on_device}: "
            f"{known}; raise the budget, or search for this one with `{stage.command} {flag}`"
        )
    _say_what_is_unused(front, inside, budget)
    settings = replace(
        settings_of(problem),
        budget=wanted,
        min_accuracy=None,
        fitness="hard",
        over_budget=False,
        pareto=False,
    )
    lowest_ms = min(c.predicted_ms for c in inside)
    bounds = below_margins(wanted.bounds, anchor)
    tightened = replace(wanted, target_ms=wanted.searched_ms(lowest_ms), bounds=bounds)
    score_of: ScoreOf
    if on_trained_network(problem):
        score_of = TrainedScores(problem, trained_state(run, problem))
        score_of.criterion = next((own for own in CRITERIA if own == result.criterion), score_of.criterion)
    else:
        score_of = scoring(problem, trained_supernets(run, problem))
    evolution = Evolution(problem.space, latency, score_of, replace(settings, budget=tightened))
    evolution.fastest = anchor
    evolution.know(read("history.json"))
    further_ms: tuple[float, ...] = ()
    if not_measured:
        share, best = None, evolution.ranked(inside)[0]
        predicted = milliseconds(best.predicted_ms)
        say(f"{best.widths}, predicted {predicted} ms, is sliced: {not_measured}")
    else:
        # No larger ones follow: nothing is searched again.
        winner = measured_best(evolution, settings, inside, measuring(problem), least_used=0.0)
        best, budget, further_ms = winner.best, winner.budget_ms or budget, winner.further_ms
        assert best.measured is not None
        note = f" ({winner.note})" if winner.note else ""
        say(f"{best.widths}, measured at {milliseconds(best.measured.median_ms)} ms, is sliced{note}")
    further = further_budgets(wanted.bounds, best.widths, further_ms)
    return Chosen(best.widths, best.predicted_ms, Budget(budget, share, added_ms=wanted.added_ms), further)


def _require_front(result: SearchSummary, budget: float, whole: str, alone: str) -> None:
    """Raise BudgetError where a search for one budget is asked for a network of another, which it has not
    looked for. What it has found inside a lower one is as good as its winner where that is inside, too.

    `whole` and `alone` are the commands that search the front, and this budget.
    """
    searched = result.searched_to_ms
    if searched is None:
        return
    shown, asked = milliseconds(searched), milliseconds(budget)
    as_shown = (
        budget <= searched or asked == shown
    )  # the user may have typed the rounded value that was printed
    if not (min(result.best.predicted_ms, searched) <= budget and as_shown):
        raise BudgetError(
            f"this search looked for one budget of {shown} ms and has no front to take a network of {asked} "
            f"ms from: search the front with {whole}, or this budget with {alone}"
        )


def _say_what_is_unused(front: Sequence[Candidate], inside: Sequence[Candidate], budget: float) -> None:
    """Say it where the front's slowest, and so most accurate point inside is much faster than the budget."""
    used = max(c.predicted_ms for c in inside)
    if used < USED * budget:
        beyond = min((c.predicted_ms for c in front if c.predicted_ms > budget), default=None)
        more = "it has none beyond" if beyond is None else f"its next one takes {milliseconds(beyond)} ms"
        asked, takes = milliseconds(budget), milliseconds(used)
        say(f"the front's most accurate point inside {asked} ms takes {takes} ms: {more}")
