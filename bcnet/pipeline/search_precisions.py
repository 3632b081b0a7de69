"""A search in several precisions. In: the request. Out: what was found in each, the best first.

Each precision is searched by its own table, inside the same budget in ms: a share refers to the original's
latency in the device's own precision. With several devices, a further precision is that of all of them, each
with a table and a budget of its own. Widths are scored in floating point for all precisions; the winners of
the precisions are compared as they would be delivered, after a brief fine-tuning if there are trials.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bcnet.errors import BudgetError
from bcnet.pipeline.inherit import ranked_sources, trained_for
from bcnet.pipeline.original import trained_network
from bcnet.pipeline.quantisation import delivered_score
from bcnet.pipeline.search_trials import Trials
from bcnet.pipeline.search_ways import Asked, Found, Scores, find, scores_for
from bcnet.pipeline.trained_scores import TrainedScores
from bcnet.pipeline.tuning import Tuning
from bcnet.plain import loss_text
from bcnet.progress import progress_bar, say
from bcnet.space.extract import with_state
from bcnet.traits import PrecisionName
from bcnet.width_search.device_limit import as_measured, in_ms
from bcnet.width_search.evolution import Candidate
from bcnet.width_search.scorer import Score, Scorer, Validation, best_first, loss_of

FRONT = 12  # number of a front's networks that are scored as they would be delivered


@dataclass(frozen=True)
class InPrecision:
    """What a search found in one precision; `score` is the winner's, as it would be delivered.

    It is None if only one precision was searched, since then nothing has to be compared.
    """

    asked: Asked
    found: Found
    score: Score | None = None

    @property
    def name(self) -> PrecisionName:
        """The precision's name."""
        return self.asked.problem.profile.precision


def find_in_all(asked: Asked) -> list[InPrecision]:
    """The best widths in every precision that the network may have, the best precision first.

    If no precision has a network inside the budget, raises the BudgetError of the device's own precision.
    """
    scores = scores_for(asked)
    first, reason = _tried(asked, scores)
    if len(asked.problem.precisions) == 1:
        if first is None:
            raise reason or BudgetError("nothing was found")
        return [InPrecision(asked, first)]
    budget = asked.budget
    if first is not None and first.result.budget_ms is not None:
        bounds = as_measured(budget.bounds, first.result.further_ms)
        budget = replace(budget, target_ms=first.result.budget_ms, bounds=bounds)
    budget = replace(budget, share=None, bounds=in_ms(budget.bounds))
    found = [] if first is None else [(asked, first)]
    for name in asked.problem.precisions[1:]:
        say(f"the same budget at {name}")
        further = replace(asked, problem=asked.problem.at(name), further=budget)
        own, other = _tried(further, scores)
        if own is None:
            say(f"{name}: {other}")
        else:
            found.append((further, own))
    if not found:
        raise reason or BudgetError("nothing was found")
    if reason is not None:
        say(f"{asked.problem.profile.precision}: {reason}")
    compared = [
        InPrecision(at, _with_front(at, own, scores), _delivered(at, own, scores)) for at, own in found
    ]
    compared.sort(key=lambda own: best_first(own.score or Score(0.0)))
    say(f"validation loss as delivered: {', '.join(map(_described, compared))}; {compared[0].name} wins")
    return compared


def _tried(asked: Asked, scores: Scores) -> tuple[Found | None, BudgetError | None]:
    """What was found, or the reason why nothing is inside the budget."""
    try:
        return find(asked, scores), None
    except BudgetError as reason:  # the next search shall measure again, since the machine may have been busy
        for path in asked.unfinished:
            path.unlink(missing_ok=True)
        return None, reason


def _described(own: InPrecision) -> str:
    assert own.score is not None
    return f"{own.name} {own.found.result.best.widths} {loss_text(loss_of(own.score))}"


def _delivered(asked: Asked, found: Found, scores: Scores) -> Score:
    """The winner's score as it would be delivered: after a trial if there are trials, else untrained."""
    problem, widths = asked.problem, found.result.best.widths
    search = problem.config.search
    if not isinstance(scores, TrainedScores):
        by = Validation(problem.data, search.recalibration_images, problem.task)
        trained = trained_for(problem, trained_network(asked.run, problem))
        source = ranked_sources(asked.supernets, widths, trained, by)[0]
        return delivered_score(
            problem, with_state(problem.model, problem.space, source.state), calibrate=True
        )
    tuning = Tuning.of(asked.run, problem, scores.importances, found.pruned)
    if asked.methods and search.trials and not problem.config.slice.from_scratch:
        return Trials(tuning, [widths]).end([widths], search.trial_epochs, scores)[widths]
    begun = with_state(problem.model, problem.space, tuning.begins(widths).state)
    return delivered_score(problem, begun, calibrate=True)


def _with_front(asked: Asked, found: Found, scores: Scores) -> Found:
    """The same, with the front's networks scored as they would be delivered without fine-tuning.

    Of a long front, networks at even intervals are scored.
    """
    problem, front = asked.problem, found.result.pareto
    if problem.profile.number_format.full or not front:
        return found
    scorer = scores if isinstance(scores, Scorer) else scores.scorer
    places = dict.fromkeys(np.linspace(0, len(front) - 1, FRONT).round().astype(int).tolist())
    rescored = list[Candidate]()
    with progress_bar(f"scoring the front at {problem.profile.precision}", len(places)) as advance:
        for own in (front[place] for place in places):
            pruned = found.pruned.get(own.widths)
            state = pruned.state if pruned else scorer.begun(own.widths)
            network = with_state(problem.model, problem.space, state)
            score = delivered_score(problem, network, calibrate=True)
            rescored.append(replace(own, score=score, expected=None))
            advance("")
    return replace(found, result=replace(found.result, pareto=tuple(_undominated(rescored))))


def _undominated(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that are more accurate than all faster ones, the fastest first."""
    found = list[Candidate]()
    for own in sorted(candidates, key=lambda c: (c.predicted_ms, -c.score.accuracy)):
        if not found or own.score.accuracy > found[-1].score.accuracy:
            found.append(own)
    return found
