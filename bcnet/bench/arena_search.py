"""Widths searched in a supernet, for the arena's rows that are named after a method of `train.method`.

In: the arena's problem, a method, a budget. Out: the widths that `bcnet train` and `bcnet search` find with
`search.method = "evolution"`. The supernet is initialised with the trained weights, distilled from the
original at a low rate, and trained for as many passes over the images as `train.epochs` says, each path
counted. Its run is in `supernets/METHOD`, with a search for each budget: a stopped arena continues there.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bcnet.bench.outside_job import Failed
from bcnet.config import Config
from bcnet.errors import ConfigError, TableError
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.results import SearchSummary
from bcnet.pipeline.stage import STAGES
from bcnet.pipeline.train_network import FINE_TUNING_RATE
from bcnet.plain import counted
from bcnet.progress import say
from bcnet.registry import EVOLUTION, SUPERNETS
from bcnet.runs import Run, Stage
from bcnet.training.shared_work import by_itself
from bcnet.training.step_plan import StepPlan


@dataclass(frozen=True)
class SupernetRun(Run):
    """The run of one supernet inside an arena; `budget` names the folder of the search.

    `again` is the command that repairs its files.
    """

    budget: str = ""
    again: str = ""

    def stage(self, name: str) -> Stage:
        """The folder of the stage called `name`."""
        folder = f"search-{self.budget}" if name == "search" else name
        return Stage(self.folder / folder, name, self.again)


def searched_widths(run: Run, problem: Problem, method: str, budget: str, folder: Path) -> dict[str, Any]:
    """What an arena records of the widths found at a budget, such as "50%"; `folder` is the arena's.

    A supernet is trained unless it is there, which only this process does. Raises BudgetError where no
    network fits, Failed where the method cannot train a supernet with the configured settings.
    """
    again = run.stage("bench").command.replace("bench", "bench arena", 1)
    own_run = SupernetRun(folder / "supernets" / method, run.config, budget.rstrip("%"), again)
    try:
        config, passes = supernet_config(problem.config, method, budget)
        own = replace(open_problem(config, pixels=False), data=problem.data)
        say(f"{method}: widths for {budget} are searched in a supernet of {passes}")
        with by_itself():
            for name in ("train", "build-lut", "search"):
                stage = STAGES[name]
                if own_run.stage(name).outdated(stage.stage_inputs(own_run, own)) is not None:
                    stage.run(own_run, own)
    except (ConfigError, TableError) as reason:
        raise Failed(str(reason)) from None
    found = SearchSummary.read(own_run.stage("search"))
    best, limit = found.best, found.budget
    assert limit is not None
    return {
        "widths": list(best.widths),
        "found_by": f"{method}, a supernet of {passes}",
        "predicted_ms": best.predicted_ms,
        "measured_ms": best.measured.median_ms if best.measured else None,
        "original_ms": round(limit.ms / (limit.share or 1.0), 5),
        "note": found.note,
    }


def supernet_config(config: Config, method: str, budget: str) -> tuple[Config, str]:
    """The configuration of the supernet's training and its search, and how many passes that training takes.

    Raises ConfigError where the method cannot be trained with the configured steps.
    """
    training = config.train.model_copy(update={"method": method})
    an_epoch = StepPlan.of(training).passes(len(SUPERNETS[method].sides)) * training.supernets
    epochs = max(1, round(config.train.epochs / an_epoch))
    other_budgets = dict.fromkeys(config.search.budgets)
    searching = {"method": EVOLUTION, **other_budgets, "latency": budget, "margin": 0.0}
    found = config.model_copy(
        update={
            "train": training.model_copy(update={"epochs": epochs, "learning_rate": FINE_TUNING_RATE}),
            "search": config.search.model_copy(update=searching),
        }
    )
    return found, counted(round(epochs * an_epoch), "pass", "passes")
