"""`bcnet slice`: cut out the winner and fine-tune it."""

from typing import Annotated

import typer

from bcnet.commands.in_run import Command, run_stage, sliced
from bcnet.commands.options import (
    Batch,
    ConfigFile,
    Flags,
    Host,
    Json,
    Precision,
    RunName,
    Seed,
    TableDevice,
    Threads,
    TrainDevice,
    target_flags,
)


def slice_(
    latency_ms: Annotated[
        float | None,
        typer.Option(
            help="After `bcnet search --pareto`: slice the front's most accurate point within this many "
            "milliseconds, which is measured first."
        ),
    ] = None,
    latency: Annotated[
        str | None,
        typer.Option(help='The same as a percentage of the original network\'s latency, as "60%".'),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train the winner from scratch instead of fine-tuning it.")
    ] = False,
    train_device: TrainDevice = None,
    device: TableDevice = None,
    batch: Batch = None,
    threads: Threads = None,
    precision: Precision = None,
    host: Host = None,
    seed: Seed = None,
    run: RunName = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Stage 4: cut out and fine-tune the winner. Where there is a trained original, it is the teacher. The
    result is a plain network that needs no bcnet. With a latency, another point of the front that `search
    --pareto` found is sliced; export and verify then hold it to that. Device and setting are those of the
    table that was built last, where none is named."""
    flags: Flags = {
        "": {"seed": seed, **target_flags(device, batch, threads, precision, host)},
        "train": {"train_device": train_device},
        "slice": {
            "epochs": epochs,
            "from_scratch": from_scratch or None,
            "latency_ms": latency_ms,
            "latency": latency,
        },
    }
    run_stage(Command("slice", run, config, as_json), sliced, flags)
