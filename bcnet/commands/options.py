"""Options that several commands have, and the configuration that they make.

In: what was typed. Out: a `Config`. Help imports neither torch nor a runtime.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bcnet.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from bcnet.config import Config

Flags = Mapping[str, Mapping[str, Any]]
RunName = Annotated[
    str | None,
    typer.Option(
        "--run",
        help="Name of the run, whose files are in runs/NAME/ (default: `default`, or the device's name if "
        "`default` belongs to another device).",
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="Configuration file (default: bcnet.toml if it is there).")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.")]
Seed = Annotated[int | None, typer.Option(help="Seed of splits, training and search (default 0).")]
Device = Annotated[str | None, typer.Option(help="Target device, one of `bcnet devices` (default cpu).")]

Replace = Annotated[
    bool, typer.Option("--replace", help="Reassign a run of another device or setting to this one.")
]
TableDevice = Annotated[
    str | None,
    typer.Option("--device", help="Target device (default: that of the run's last table, else cpu)."),
]
Batch = Annotated[int | None, typer.Option(help="Images per inference (default: the device profile's).")]
Threads = Annotated[int | None, typer.Option(help="Threads of the runtime (default: the profile's).")]
Precision = Annotated[
    str | None,
    typer.Option(help="fp32, fp16 or int8 (default: the device profile's)."),
]
Host = Annotated[
    list[str] | None,
    typer.Option(
        metavar="USER@NAME",
        help="Reach the device over ssh; given several times, devices of one kind share the work.",
    ),
]
LatencyMs = Annotated[float | None, typer.Option(help="Latency budget in milliseconds.")]
Latency = Annotated[
    str | None,
    typer.Option(
        help="Latency budget as a percentage of the original network's latency, as '60%' (the default): of "
        "what is measured beside the small networks, or where nothing is measured, of the prediction."
    ),
]
MinAccuracy = Annotated[
    float | None,
    typer.Option(
        help="Instead of a budget: the fastest network that has at least this accuracy, 0 to 1, on the "
        "validation images before it is fine-tuned."
    ),
]
MaxParams = Annotated[
    int | None,
    typer.Option(
        help="At most this many parameters, without buffers, as 1500000; beside a latency budget or alone."
    ),
]
MaxMacs = Annotated[
    int | None,
    typer.Option(
        help="At most this many multiply-accumulates per image, of convolutions and linear layers, as "
        "100000000."
    ),
]
MaxSizeMb = Annotated[
    float | None,
    typer.Option(
        help="At most this many megabytes (1,000,000 bytes) of weights in the exported file, at the device's "
        "precision."
    ),
]
Pareto = Annotated[
    bool,
    typer.Option(
        "--pareto",
        help="Search the whole front of accuracy against latency; a budget then only chooses the winner. "
        "`bcnet slice --latency-ms` takes any point of the front.",
    ),
]
TrainDevice = Annotated[
    str | None, typer.Option(help="Where to train: auto, cpu or cuda. Not the target --device.")
]


def configured(config: Path | None, flags: Flags) -> "Config":
    """The configuration. A device that is unknown is wrong usage where it came as a flag."""
    from bcnet.config import load_config
    from bcnet.hw_profiles import profile_file

    settings = load_config(config, flags)
    if flags[""].get("device") is not None:
        try:
            profile_file(settings.device)
        except DeviceError as reason:
            raise UsageError(str(reason)) from None
    return settings


def target_flags(
    device: str | None,
    batch: int | None,
    threads: int | None,
    precision: str | None,
    host: list[str] | None,
) -> dict[str, Any]:
    return {
        "device": device,
        "batch": batch,
        "threads": threads,
        "precision": precision,
        "host": host or None,
    }


def budget_flags(latency_ms: float | None, latency: str | None, min_accuracy: float | None) -> dict[str, Any]:
    return {"latency_ms": latency_ms, "latency": latency, "min_accuracy": min_accuracy}
