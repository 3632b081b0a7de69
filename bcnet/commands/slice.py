"""`bcnet slice`: cut out the winner and fine-tune it."""

import typer

from bcnet.commands.in_run import Command, run_stage
from bcnet.commands.options import TARGET, Given, Json, RunName, with_settings
from bcnet.commands.start import InProcesses, start_processes


@with_settings(
    "slice.latency_ms",
    "slice.latency",
    "slice.epochs",
    "slice.from_scratch",
    "train.train_device",
    *TARGET,
    "seed",
    several=True,
)
def slice_(
    given: Given,
    context: typer.Context,
    run: RunName = None,
    processes: InProcesses = None,
    as_json: Json = False,
) -> None:
    """Stage 4: cut out and fine-tune the winner. Where there is a trained original, it is the teacher. The
    result is a plain network that needs no bcnet. With a latency, another point of the front that `search
    --pareto` found is sliced, which `export` and `verify` then compare with that latency. Device and setting
    default to those of the table that was built last."""
    start_processes(context, given, processes)
    from bcnet.pipeline import slice as stage

    run_stage(Command("slice", given, run, as_json), stage.run)
