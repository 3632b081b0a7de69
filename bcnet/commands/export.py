"""`bcnet export` and `bcnet verify`: write the ONNX file and the engine, and verify them."""

import re
from pathlib import Path
from typing import Annotated

import typer

from bcnet.commands.in_run import Command, checking, chosen_run, refuse_unverified, show, sliced
from bcnet.commands.options import (
    ConfigFile,
    Host,
    Json,
    Precision,
    RunName,
    Seed,
    TableDevice,
    Threads,
    configured,
    target_flags,
)
from bcnet.errors import UsageError


def export(
    trt: Annotated[
        bool,
        typer.Option(
            "--trt",
            help="Also build the engine of TensorRT, on the device or, for RTX, ahead of time.",
        ),
    ] = False,
    flavour: Annotated[
        str | None,
        typer.Option(
            help="With --trt: tensorrt, or rtx for TensorRT for RTX (default: the device profile's)."
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="INTEGER[,...]",
            help="Images per inference (default: the device profile's); with --trt also sizes from least to "
            "largest, as 1,8,32: of one engine, timed at the first.",
        ),
    ] = None,
    device: TableDevice = None,
    threads: Threads = None,
    precision: Precision = None,
    host: Host = None,
    seed: Seed = None,
    run: RunName = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Stage 5: write the ONNX file and verify it. Shapes, outputs, accuracy on the test images, latency; with
    --trt through the engine, too. A winner that is not sliced yet is, first. Device and setting are those of
    the table that was built last, where none is named. The exit code is 3 when a check fails, 4 when the
    latency cannot be verified here."""
    batches = _batches(batch)
    if flavour is not None and not trt:
        raise UsageError("--flavour is that of an engine: add --trt")
    if flavour not in (None, "tensorrt", "rtx"):
        raise UsageError(f"--flavour is tensorrt or rtx, not '{flavour}'")
    if len(batches) > 1 and not trt:
        raise UsageError("--batch takes several sizes for an engine only: add --trt, or give one size")
    from bcnet.pipeline import export, slice
    from bcnet.pipeline.engine import EngineWanted, engine_profile
    from bcnet.pipeline.problem import target_profile
    from bcnet.progress import say

    own = target_flags(device, batches[0] if batches else None, threads, precision, host)
    settings = configured(config, {"": {"seed": seed, **own}})
    with chosen_run(Command("export", run, config, as_json), settings) as (target, settings):
        wanted = None
        if trt:
            runtime = "tensorrt-rtx" if flavour == "rtx" else flavour
            wanted = EngineWanted(runtime, batches if len(batches) > 1 else ())
            engine_profile(target_profile(settings), runtime)  # refuses now, and not after fine-tuning
        with checking(as_json):
            why = target.stage("slice").missing(slice.stage_inputs(target, settings), "supernet", "search")
            if why is not None:
                say(f"slicing the winner first: {why}")
                sliced(target, settings)
            summary = export.run(target, settings, wanted)
    show(summary, as_json)
    refuse_unverified(summary)


def verify(
    engine: Annotated[
        Path, typer.Option(help="The engine, as runs/NAME/export/model.engine; engine.json is beside it.")
    ],
    host: Host = None,
    run: RunName = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Verify an engine on its device. Checks outputs, accuracy on the test images, latency. Updates the
    verify.json beside it; the exit code is 3 when a check fails, 4 when the device is not at hand."""
    from bcnet.pipeline import verify_engine as stage
    from bcnet.run_choice import run_holding

    facts = stage.facts_beside(engine)
    own = target_flags(facts.device, facts.batches[0], None, facts.precision, host)
    settings = configured(config, {"": own})
    command = Command("verify", run or run_holding(engine), config, as_json)
    with chosen_run(command, settings) as (target, settings), checking(as_json):
        summary = stage.run(target, settings, engine)
    show(summary, as_json)


def _batches(text: str | None) -> tuple[int, ...]:
    """ "1,8,32" as numbers, () for None. Raises UsageError for what is not whole, above zero, ascending."""
    if text is None:
        return ()
    words = text.split(",")
    sizes = tuple(int(word) for word in words if re.fullmatch(r"\s*\d{1,5}\s*", word))
    if len(sizes) < len(words) or sizes[0] < 1 or list(sizes) != sorted(set(sizes)) or sizes[-1] > 65_536:
        raise UsageError(
            f"--batch takes sizes from 1 to 65536, from least to largest, as 1,8,32, not '{text}'"
        )
    return sizes
