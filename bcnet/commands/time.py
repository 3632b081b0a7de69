"""`bcnet time`: the latency of any ONNX file on a device."""

import json
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from bcnet.commands.options import Given, Json, with_settings
from bcnet.errors import UsageError
from bcnet.plain import shown
from bcnet.show import show_timing

SHAPE = re.compile(r"[1-9]\d{0,8}(x[1-9]\d{0,8})*")


@with_settings("device", "host", "batch", "threads")
def time_file(
    given: Given,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The ONNX file, or an engine of the device's TensorRT.")
    ],
    against: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also time this file, alternating, and compare the two."),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="NAME=SHAPE",
            help="Shape of a dynamic input (e.g. image=1x3x224x224); may be repeated. Where only the first "
            "dimension is dynamic, it is the batch.",
        ),
    ] = None,
    layers: Annotated[
        int,
        typer.Option(metavar="N", min=0, help="Layers to print, the longest first; with 0 none are timed."),
    ] = 10,
    rounds: Annotated[
        int, typer.Option(metavar="N", min=3, max=1000, help="How often each file is loaded and timed again.")
    ] = 10,
    seconds: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=0.01,
            max=3600,
            help="How long each file is timed, in all rounds together (default: a round takes the `seconds` "
            "of the device profile).",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Time any ONNX file on a device. Measures the whole network, with percentiles, as an application runs
    it, and its layers; with --against, the ratio to another file. Needs neither training nor the PyTorch
    model."""
    from bcnet.hw_profiles.target import target_profile
    from bcnet.measure.file_timing import TimingSettings
    from bcnet.measure.file_timing import time_file as timed
    from bcnet.measure.network_file import Shapes

    profile = target_profile(given.config())
    shapes = Shapes(profile.batch, given.names("batch"), _shapes(inputs or ()))
    settings = TimingSettings(rounds, seconds, layers > 0, shapes)
    with redirect_stdout(sys.stderr):
        report = timed(file, profile, against=against, settings=settings)
    if as_json:
        print(json.dumps(report.to_json()))
    else:
        show_timing(report, layers)


def _shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """["image=1x3x224x224"] as shapes by name. Raises UsageError."""
    found = {}
    for text in texts:
        name, equals, shape = text.rpartition("=")
        if not equals or not name or SHAPE.fullmatch(shape) is None:
            raise UsageError(f"--input takes NAME=SHAPE, e.g. image=1x3x224x224, not {shown(text)}")
        found[name] = tuple(map(int, shape.split("x")))
    return found
