"""`bcnet export` and `bcnet verify`: write the ONNX file and the engine, and verify them."""

import re
from pathlib import Path
from typing import Annotated

import typer

from bcnet.commands.in_run import Command, checking, chosen_run, refuse_unverified, show
from bcnet.commands.options import Given, Json, RunName, with_settings
from bcnet.errors import UsageError
from bcnet.nearest import near_path
from bcnet.traits import RUNTIMES


@with_settings("device", "threads", "precision", "host", "seed", several=True)
def export(
    given: Given,
    trt: Annotated[
        bool,
        typer.Option(
            "--trt",
            help="Also build the TensorRT engine, on the device or, for TensorRT for RTX, ahead of time; of "
            "several devices, one for each that has TensorRT.",
        ),
    ] = False,
    flavour: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="With --trt: TensorRT variant, tensorrt or rtx (TensorRT for RTX); default: the device "
            "profile's.",
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="N[,...]",
            help="Images per inference (default: the device profile's); with --trt also several sizes in "
            "ascending order (e.g. 1,8,32) for one engine, which is timed at the first.",
        ),
    ] = None,
    run: RunName = None,
    as_json: Json = False,
) -> None:
    """Stage 5: write the ONNX file and verify it. Shapes, outputs, accuracy on the test images, latency; with
    --trt through the engine, too. The winner is sliced first if necessary. Device and setting default to
    those of the table that was built last. The exit code is 3 when a check fails, 4 when the latency cannot
    be verified here."""
    batches = _batches(batch)
    if flavour is not None and not trt:
        raise UsageError("--flavour chooses the TensorRT variant of an engine: add --trt")
    flavours = {own.flavour: own.name for own in RUNTIMES.values() if own.engines}
    if flavour is not None and flavour not in flavours:
        raise UsageError(f"--flavour is {' or '.join(flavours)}, not '{flavour}'")
    if len(batches) > 1 and not trt:
        raise UsageError("--batch takes several sizes for an engine only: add --trt, or give one size")
    from bcnet.hw_profiles.target import further_profiles, target_profile
    from bcnet.pipeline import export, slice
    from bcnet.pipeline.engine import EngineWanted, engine_profiles
    from bcnet.progress import say

    given = given.with_flags("", batch=batches[0] if batches else None)
    with chosen_run(Command("export", given, run, as_json)) as (target, settings, opened):
        wanted = None
        if trt:
            runtime = None if flavour is None else flavours[flavour]
            wanted = EngineWanted(runtime, batches if len(batches) > 1 else ())
            profiles = [target_profile(settings), *further_profiles(settings)]
            engine_profiles(profiles, runtime, wanted.batches)  # refuses now, and not after fine-tuning
        with checking(as_json):
            problem = opened()
            why = target.stage("slice").missing(slice.stage_inputs(target, problem), "supernet", "search")
            if why is not None:
                say(f"slicing the winner first: {why}")
                slice.run(target, problem)
            summary = export.run(target, problem, wanted)
    show(summary, as_json)
    refuse_unverified(summary)


@with_settings("host")
def verify(
    given: Given,
    engine: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="The engine (e.g. runs/NAME/export/model.engine); engine.json is beside it."
        ),
    ],
    run: RunName = None,
    as_json: Json = False,
) -> None:
    """Verify an engine on its device. Checks outputs, accuracy on the test images, latency. Updates the
    verify.json beside it; the exit code is 3 when a check fails, 4 when the device is not available."""
    from bcnet.pipeline import verify_engine as stage
    from bcnet.run_choice import run_holding

    if not engine.exists():
        hint = near_path(engine, "give the path of an engine, e.g. runs/NAME/export/model.engine")
        raise UsageError(f"--engine: {engine} does not exist; {hint}")
    if engine.suffix == ".onnx":
        raise UsageError(
            f"--engine: {engine} is an ONNX file and no engine; `bcnet export` verifies the ONNX files of a "
            "run when it writes them"
        )
    facts = stage.facts_beside(engine)
    given = given.with_flags("", device=facts.device, batch=facts.batches[0], precision=facts.precision)
    command = Command("verify", given, run or run_holding(engine), as_json)
    with chosen_run(command) as (target, _, opened), checking(as_json):
        summary = stage.run(target, opened(), engine)
    show(summary, as_json)


def _batches(text: str | None) -> tuple[int, ...]:
    """ "1,8,32" as numbers, () for None. Raises UsageError for what is not whole, above zero, ascending."""
    if text is None:
        return ()
    words = text.split(",")
    sizes = tuple(int(word) for word in words if re.fullmatch(r"\s*\d{1,5}\s*", word))
    if len(sizes) < len(words) or sizes[0] < 1 or list(sizes) != sorted(set(sizes)) or sizes[-1] > 65_536:
        raise UsageError(f"--batch takes sizes from 1 to 65536 in ascending order, e.g. 1,8,32, not '{text}'")
    return sizes
