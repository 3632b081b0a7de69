"""`bcnet search`: find the best widths in the budget."""

from typing import TYPE_CHECKING

import typer

from bcnet.commands.in_run import Command, reuse_supernet_of_default, run_stage
from bcnet.commands.options import BUDGET, TARGET, Given, Json, RunName, with_settings
from bcnet.commands.start import InProcesses, start_processes

if TYPE_CHECKING:
    from bcnet.pipeline.problem import Problem
    from bcnet.pipeline.results import StageResult
    from bcnet.runs import Run


@with_settings(
    *BUDGET,
    "search.max_params",
    "search.max_macs",
    "search.max_size_mb",
    "search.pareto",
    "search.precisions",
    *TARGET,
    "search.population",
    "search.generations",
    "seed",
    several=True,
)
def search(
    given: Given,
    context: typer.Context,
    run: RunName = None,
    processes: InProcesses = None,
    as_json: Json = False,
) -> None:
    """Stage 3: search the best widths in the budget. The most accurate few are measured on the device before
    one of them wins; an interrupted search continues where it stopped. With trained weights, the methods of
    search.method propose networks, and the best of them are fine-tuned briefly. With bounds on parameters,
    multiply-accumulates or size and no latency budget, latency is not limited. Device, host, batch, threads
    and precision default to those of the table that was built last."""
    start_processes(context, given, processes)
    from bcnet.pipeline import search as stage

    def searched(run: "Run", problem: "Problem") -> "StageResult":
        reuse_supernet_of_default(run, lambda: problem)
        return stage.run(run, problem)

    run_stage(Command("search", given, run, as_json), searched)
