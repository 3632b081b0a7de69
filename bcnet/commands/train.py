"""`bcnet train`: train the supernet."""

import typer

from bcnet.commands.in_run import Command, run_stage
from bcnet.commands.options import Given, Json, RunName, with_settings
from bcnet.commands.start import InProcesses, start_processes


@with_settings("train.epochs", "train.supernets", "train.train_device", "device", "seed")
def train(
    given: Given,
    context: typer.Context,
    run: RunName = None,
    processes: InProcesses = None,
    as_json: Json = False,
) -> None:
    """Stage 1: train the supernet. One network whose narrower versions are all trained. An interrupted
    training continues where it stopped; what is trained already with these settings is not trained again.
    With trained weights (model.weights) no supernet is trained, unless search.method is evolution: the
    network itself is kept, and trained only where a head is new."""
    start_processes(context, given, processes)
    from bcnet.pipeline import train as stage

    run_stage(Command("train", given, run, as_json), stage.run)
