"""`bcnet search`: find the best widths in the budget."""

from typing import TYPE_CHECKING, Annotated

import typer

from bcnet.commands.in_run import Command, reuse_supernet_of_default, run_stage
from bcnet.commands.options import (
    Batch,
    ConfigFile,
    Flags,
    Host,
    Json,
    Latency,
    LatencyMs,
    MaxMacs,
    MaxParams,
    MaxSizeMb,
    MinAccuracy,
    Pareto,
    Precision,
    RunName,
    Seed,
    TableDevice,
    Threads,
    budget_flags,
    target_flags,
)

if TYPE_CHECKING:
    from bcnet.config import Config
    from bcnet.pipeline.results import StageResult
    from bcnet.runs import Run


def search(
    latency_ms: LatencyMs = None,
    latency: Latency = None,
    min_accuracy: MinAccuracy = None,
    max_params: MaxParams = None,
    max_macs: MaxMacs = None,
    max_size_mb: MaxSizeMb = None,
    pareto: Pareto = False,
    device: TableDevice = None,
    batch: Batch = None,
    threads: Threads = None,
    precision: Precision = None,
    host: Host = None,
    population: Annotated[int | None, typer.Option(help="Candidates a generation.")] = None,
    generations: Annotated[int | None, typer.Option(help="Generations after the first.")] = None,
    seed: Seed = None,
    run: RunName = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Stage 3: search the best widths in the budget. The most accurate few are measured on the device
    before one of them wins; a killed search continues where it was. With trained weights, the methods of
    search.method propose networks, and the best of them are fine-tuned briefly. Bounds without a latency
    budget are bounds alone: then no latency is demanded. Device, host, batch, threads and precision are those
    of the table that was built last, where none is named."""
    from bcnet.pipeline import search as stage

    flags: Flags = {
        "": {"seed": seed, **target_flags(device, batch, threads, precision, host)},
        "search": {
            **budget_flags(latency_ms, latency, min_accuracy),
            "max_params": max_params,
            "max_macs": max_macs,
            "max_size_mb": max_size_mb,
            "pareto": pareto or None,
            "population": population,
            "generations": generations,
        },
    }

    def searched(run: "Run", settings: "Config") -> "StageResult":
        reuse_supernet_of_default(run, settings)
        return stage.run(run, settings)

    run_stage(Command("search", run, config, as_json), searched, flags)
