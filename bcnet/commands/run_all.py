"""`bcnet run`: all stages and a comparison, without those whose results still match."""

import json
import sys
import time
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from bcnet.commands.in_run import (
    Command,
    checking,
    chosen_run,
    led,
    refuse_unverified,
    reuse_supernet_of_default,
    show,
)
from bcnet.commands.options import BUDGET, TARGET, Given, Json, Replace, RunName, with_settings
from bcnet.commands.start import InProcesses, start_processes

if TYPE_CHECKING:
    from bcnet.pipeline.problem import Problem
    from bcnet.pipeline.results import StageResult
    from bcnet.runs import Run

LONG = 3600.0  # seconds: a comparison that takes longer has to be asked for


@with_settings(*BUDGET, "search.precisions", *TARGET, "train.train_device", "seed", several=True)
def run_all(
    given: Given,
    context: typer.Context,
    run: RunName = None,
    compared: Annotated[
        bool | None,
        typer.Option(
            "--compare/--no-compare",
            help="Also train and time other networks, to compare the found one with them (default: only if "
            "that takes at most an hour, by an estimate that is printed first).",
        ),
    ] = None,
    replace: Replace = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Run no stage. Print which ones would run, why, and how long each would take, estimated "
            "from short trials.",
        ),
    ] = False,
    processes: InProcesses = None,
    as_json: Json = False,
) -> None:
    """Run all stages and a comparison. Stages whose results still match are skipped; at the end, the original
    or the full network, a uniformly narrowed one and the found one stand side by side."""
    if dry_run:
        return _show_planned(Command("run", given, run, as_json, replace))
    start_processes(context, given, processes)
    command = Command("run", given, run, as_json, replace, measures=True)

    def all_stages(target: "Run", problem: "Problem") -> "StageResult":
        from bcnet.report.written import reported

        if run is None:
            with redirect_stdout(sys.stderr):
                reuse_supernet_of_default(target, lambda: problem)
        with reported(target, problem):
            return _stages(target, problem, compared, as_json)

    with chosen_run(command) as (target, _, opened):
        with redirect_stdout(sys.stderr):
            problem = opened()
        summary = led(all_stages, target, problem)
    if summary is not None:
        show(summary, as_json)


def _show_planned(command: Command) -> None:
    """Print what the command would do."""
    from bcnet.pipeline.planned import planned
    from bcnet.progress import working
    from bcnet.show import show_planned

    with chosen_run(command) as (target, _, opened), redirect_stdout(sys.stderr):
        problem = opened()
        with working("trying what the stages do"):
            stages = planned(target, problem)
    if command.as_json:
        print(json.dumps({"stages": [asdict(stage) for stage in stages]}))
    else:
        show_planned(stages)


def _stages(target: "Run", problem: "Problem", compared: bool | None, as_json: bool) -> "StageResult":
    """Run what is not done; returns the comparison, or where there is none, the export."""
    from bcnet.pipeline.results import CompareSummary, ExportSummary
    from bcnet.pipeline.stage import STAGES
    from bcnet.progress import say
    from bcnet.runs import NOT_DONE

    for number, (name, stage) in enumerate(STAGES.items(), 1):
        label = f"[{number}/{len(STAGES)}] {name}"
        with checking(as_json):
            why = target.stage(name).outdated(stage.stage_inputs(target, problem))
            if name == "compare" and why is not None:
                wanted, cost = _comparison(target, problem, compared)
                say(f"{label}: {cost}")
                if not wanted:
                    return ExportSummary.read(target.stage("export"))
            if why is None:
                target.stage(name).tidy()
                say(f"{label}: already done")
            else:
                start = time.perf_counter()
                say(label if why == NOT_DONE else f"{label}: {why}")
                stage.run(target, problem)
                say(f"{label}: done in {time.perf_counter() - start:.0f} s")
        if name == "export":
            exported = ExportSummary.read(target.stage("export"))
            if exported.not_verified:  # nor is there anything to compare with
                show(exported, as_json)
                refuse_unverified(exported)
    return CompareSummary.read(target.stage("compare"))


def _comparison(run: "Run", problem: "Problem", compared: bool | None) -> tuple[bool, str]:
    """Whether there is a comparison, and what it costs, or why there is none."""
    from bcnet.pipeline.compare import recipe_of
    from bcnet.pipeline.cost import comparison
    from bcnet.pipeline.finished import sliced
    from bcnet.pipeline.trial import Trial
    from bcnet.plain import duration
    from bcnet.progress import working

    if compared is False:
        return False, "left out"
    with working("estimating what the comparison costs"):
        cost = comparison(Trial(problem, sliced(run, problem).widths, recipe_of(run, problem)))
    takes = f"about {duration(cost.seconds or 0.0)}"
    if not compared and (cost.seconds or 0.0) > LONG:
        return False, f"left out, since it would take {takes}; `bcnet run --compare` does it"
    return True, f"{takes} (--no-compare leaves it out)"
