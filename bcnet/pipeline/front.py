"""A point of a finished search's front. In: a latency budget of its own. Out: widths, measured first.

Nothing is searched again: `bcnet slice --latency-ms 5` takes what any search has found.
"""

from dataclasses import replace
from pathlib import Path

from bcnet.artifacts import Run, read_json
from bcnet.config import Config
from bcnet.errors import BudgetError
from bcnet.pipeline.original import trained_state
from bcnet.pipeline.route import on_trained_network
from bcnet.pipeline.search_evolved import measured_best
from bcnet.pipeline.search_inputs import bounds_of, budget_ms, measuring, scoring, settings_of
from bcnet.pipeline.search_state import candidate_from_json
from bcnet.pipeline.trained_scores import TrainedScores
from bcnet.progress import say
from bcnet.supernet.evolution import Candidate, Evolution, ScoreOf, fastest
from bcnet.supernet.project import load_project
from bcnet.supernet.saved import Chosen, trained_supernets


def point_inside(run: Run, config: Config) -> Chosen | None:
    """The front's most accurate point inside the budget of [slice]; None where that has none.

    Measured as a search measures its winner: where points are over the budget, the next ones are, and
    at last narrower ones. Raises BudgetError where no point is predicted or measured inside the budget.
    """
    own = config.slice
    if not own.of_front:
        return None
    project = load_project(config)
    latency = project.latency_model()
    stage, supernet = run.stage("search"), run.stage("train").require(project.inputs())
    stage.require({"supernet": supernet, "device": project.device_key})
    budget = budget_ms(project, latency, own.latency_ms, own.latency or "")
    bounds = bounds_of(project)

    def read(file: str) -> list[Candidate]:
        found = [candidate_from_json(v, project.space) for v in read_json(stage.path(file), stage.command)]
        return [replace(c, predicted_ms=float(latency(c.widths))) for c in found]

    front = [c for c in read("pareto.json") if all(bound.holds(c.widths) for bound in bounds)]
    inside = tuple(c for c in front if c.predicted_ms <= budget)
    if not inside:
        least = min((c.predicted_ms for c in front), default=None)
        known = "none is within the bounds" if least is None else f"the fastest takes {least:.4g} ms"
        raise BudgetError(
            f"no point of the search's front is within {budget:.4g} ms: {known}; raise the budget, or search "
            f"again with `{stage.command} --pareto`"
        )
    _say_where_it_ends(stage.path("result.json"), stage.command, budget)
    settings = replace(
        settings_of(project),
        budget_ms=budget,
        min_accuracy=None,
        fitness="hard",
        over_budget=False,
        pareto=False,
    )
    pressed = max(min(c.predicted_ms for c in inside), settings.limit_ms(budget))
    score_of: ScoreOf
    if on_trained_network(project):
        score_of = TrainedScores(project, trained_state(run, project))
        score_of.criterion = read_json(stage.path("result.json"), stage.command)["criterion"]
    else:
        score_of = scoring(project, trained_supernets(run, project))
    evolution = Evolution(project.space, latency, score_of, replace(settings, budget_ms=pressed), bounds)
    evolution.anchor = fastest(project.space, latency, bounds)
    evolution.know(read("history.json"))
    not_measured = project.not_measured(latency)
    if not_measured:
        best = evolution.ranked(inside)[0]
        say(f"{best.widths}, predicted {best.predicted_ms:.4g} ms, is sliced: {not_measured}")
    else:
        result = measured_best(evolution, settings, inside, measuring(project))
        best = result.best
        assert best.measured is not None
        note = f" ({result.note})" if result.note else ""
        say(f"{best.widths}, measured at {best.measured.median_ms:.4g} ms, is sliced{note}")
    return Chosen(best.widths, best.predicted_ms, budget)


def _say_where_it_ends(path: Path, mend: str, budget: float) -> None:
    """Say it where the search has scored nothing as slow as the budget: the front may go on."""
    reached = read_json(path, mend).get("searched_to_ms")
    if reached is not None and budget > reached:
        say(
            f"the search scored nothing above {reached:.4g} ms; for the front up to {budget:.4g} ms, run "
            f"`{mend} --pareto` again"
        )
