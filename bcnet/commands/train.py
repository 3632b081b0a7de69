"""`bcnet train`: train the supernet."""

from typing import Annotated

import typer

from bcnet.commands.in_run import Command, run_stage
from bcnet.commands.options import ConfigFile, Device, Flags, Json, RunName, Seed, TrainDevice


def train(
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    supernets: Annotated[
        int | None,
        typer.Option(help="Supernets, each trained for all epochs; widths are scored by the mean of all."),
    ] = None,
    train_device: TrainDevice = None,
    device: Device = None,
    seed: Seed = None,
    run: RunName = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Stage 1: train the supernet. One network whose narrower versions are all trained. A killed training
    continues where it was; what is trained already with these settings is not trained again. With trained
    weights (model.weights) no supernet is trained, unless search.method is evolution: the network itself is
    kept, and trained only where a head is new."""
    from bcnet.pipeline import train as stage

    flags: Flags = {
        "": {"seed": seed, "device": device},
        "train": {"epochs": epochs, "supernets": supernets, "train_device": train_device},
    }
    run_stage(Command("train", run, config, as_json), stage.run, flags)
