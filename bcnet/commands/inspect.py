"""`bcnet inspect`: what can be searched in a model, and whether the result can be exported."""

import functools
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from bcnet.commands.completion import run_names
from bcnet.commands.in_run import existing_run
from bcnet.commands.options import Given, Json, with_settings
from bcnet.commands.usage import PlainCommand
from bcnet.errors import ArtifactError, UsageError
from bcnet.show import show_space
from bcnet.show.latency import show_latency, show_reasons

if TYPE_CHECKING:
    from bcnet.config import Config
    from bcnet.onnx_export.onnx_supernet import OnnxSupernet
    from bcnet.pipeline.device_table import DeviceTable
    from bcnet.pipeline.expected_latency import ExpectedLatency
    from bcnet.space.width_space import WidthSpace


class Pair(NamedTuple):
    """Two groups that get one width."""

    first: str
    second: str


class InspectCommand(PlainCommand):
    """`--tie A B`, repeatable: click's options can be both, but an annotation only says one of it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        (tie,) = (option for option in self.params if option.name == "tie")
        tie.nargs = len(Pair._fields)


@dataclass(frozen=True)
class Inspected:
    """A network's space, the shape of its input and where that comes from, its device's latency table."""

    space: "WidthSpace"
    shape: tuple[int, ...]
    origin: str
    not_deliverable: Callable[[], str | None]
    table: "DeviceTable"


@with_settings("space.freeze", "space.expand", "device")
def inspect(
    given: Given,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Inspect this model (e.g. torchvision:resnet18) without any data."),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            min=8,
            max=4096,
            help="Image side for --model, in pixels. Default: that of the data in bcnet.toml, or 224.",
        ),
    ] = None,
    tie: Annotated[
        list[Pair] | None,
        typer.Option(
            metavar="A B",
            help="Give two groups one width (e.g. --tie left.conv right.conv); may be repeated.",
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="NAME",
            help="Show instead, for the network that this run found, what each group's next narrower and "
            "next wider choice would change.",
            autocompletion=run_names,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what can be searched in the model. Width groups, their layers and choices, what stays as it is
    and why, parameters and multiply-accumulates, and whether it can be exported. Without --model: the
    configured model and data. With --device, it also shows what narrowing each group
    saves there, and which budgets can be met."""
    if run is not None:
        if model is not None:
            raise UsageError("--run shows the configured network, and --model another: give one of them")
        _show_reasons(given, run, as_json)
        return
    if tie:
        given = given.with_flags("space", tie=tie)
    if model is not None:  # the file's arguments are those of the file's model
        args = given.assigned.get("model", {}).get("args", {})
        given = given.with_flags("model", name=model, args=args)
    settings = given.config()
    found = _configured(given, settings) if model is None else _named(given, settings, image_size)
    latency = _latency(found) if given.names("device") else None
    if as_json:
        own = {"latency": latency.to_json()} if latency else {}
        summary = {**_summary(settings.model.name, found), **own}
        print(json.dumps({**summary, "not_deliverable": _tried_export(found)}))
        return
    show_space(found.space, found.shape, found.origin)
    if latency is not None:
        show_latency(latency)
    reason = _tried_export(found)
    print(f"export    {reason or 'the narrowest network is exported to ONNX and runs in ONNX Runtime'}")


def _configured(given: Given, settings: "Config") -> Inspected:
    """The configured model with the configured data."""
    from bcnet.built_in_example import require_configured
    from bcnet.pipeline.open_problem import open_problem

    require_configured("inspect", given.file, None, settings)
    with redirect_stdout(sys.stderr):
        problem = open_problem(settings, pixels=False)
    origin = f"the size of the data '{settings.data.name}'"
    shape = tuple(problem.data.input_shape)
    return Inspected(problem.space, shape, origin, problem.not_deliverable, problem.table)


def _named(given: Given, settings: "Config", image_size: int | None) -> Inspected:
    """The model of --model, without data."""
    import torch

    from bcnet.hw_profiles.target import target_profile
    from bcnet.models import build_model
    from bcnet.pipeline.device_table import DeviceTable
    from bcnet.pipeline.networks import searched_space

    # A configured file of weights is of the configured network.
    network = build_model(settings.model.model_copy(update={"weights": None}), 3, 1000)
    side, origin = (image_size, "--image-size") if image_size else _side_of_data(given.file, settings)
    shape = (3, side, side)
    example = torch.zeros(1, *shape)
    profile = target_profile(settings)
    network, space, _ = searched_space(
        settings, (profile,), network, lambda count: torch.zeros(count, *shape)
    )

    def not_deliverable() -> str | None:
        from bcnet.onnx_export import exportable
        from bcnet.onnx_export.onnx_supernet import OnnxSupernet

        def graph() -> OnnxSupernet:
            return OnnxSupernet(network, space, example, opset=profile.opset)

        return exportable.not_deliverable(graph, network, example)

    @functools.cache
    def timed() -> "OnnxSupernet":
        from bcnet.onnx_export.int8 import unsigned_activations
        from bcnet.onnx_export.onnx_supernet import OnnxSupernet

        batch = torch.zeros(profile.batch, *shape)
        unsigned = unsigned_activations(profile)
        return OnnxSupernet(network, space, batch, profile.precision, unsigned=unsigned, opset=profile.opset)

    return Inspected(space, shape, origin, not_deliverable, DeviceTable(profile, timed))


def _latency(found: Inspected) -> "ExpectedLatency":
    from bcnet.pipeline.expected_latency import expected_latency
    from bcnet.progress import working

    with redirect_stdout(sys.stderr), working("predicting latencies"):
        return expected_latency(found.table)


def _show_reasons(given: Given, name: str, as_json: bool) -> None:
    """Print what the next choices of each group would change in a run's network."""
    with existing_run(given, name) as choice, redirect_stdout(sys.stderr):
        from bcnet.pipeline.open_problem import open_problem
        from bcnet.report.reasons import basis_of
        from bcnet.report.written import report_of

        report = report_of(choice.run, choice.config, lambda: open_problem(choice.config, pixels=False))
    if not report.reasons:
        missing = report.no_layers or "nothing has been searched yet"
        raise ArtifactError(f"{choice.run.folder}: {missing}")
    if as_json:
        print(json.dumps({"run": report.run, "reasons": [own.to_json() for own in report.reasons]}))
    else:
        show_reasons(report.reasons, basis_of(report.reasons))


def _summary(model: str, found: Inspected) -> dict[str, Any]:
    space = found.space
    full, small = space.original(), space.smallest()
    return {
        "model": model,
        "input": list(found.shape),
        "input_from": found.origin,
        "groups": [
            {
                "name": g.name,
                "channels": g.channels,
                "original": width,
                "unit": g.unit,
                "mixed": g.mixed,
                "ordered": g.ordered,
                "choices": list(g.choices),
                "layers": list(g.layers),
            }
            for g, width in zip(space.groups, full, strict=True)
        ],
        "frozen": [{"name": f.name, "channels": f.channels, "reason": f.reason} for f in space.frozen],
        "params": space.params(full),
        "macs": space.macs(full),
        "smallest_params": space.params(small),
        "smallest_macs": space.macs(small),
        "searchable_params": round(space.searchable_params(), 4),
        "searchable_macs": round(space.searchable_macs(), 4),
        "narrowest_macs": round(space.macs(small) / space.macs(full), 4),
    }


def _tried_export(found: Inspected) -> str | None:
    """Why the network cannot be exported or run; None where both work."""
    from bcnet.progress import working

    with redirect_stdout(sys.stderr), working("checking the export of the narrowest network"):
        return found.not_deliverable()


def _side_of_data(config: Path | None, settings: "Config") -> tuple[int, str]:
    """The side, in pixels, of the images that a model is inspected with, and where it comes from."""
    from bcnet.config import is_example
    from bcnet.data.dataset import load_data
    from bcnet.errors import DataError

    if is_example(config):
        return 224, "the default; set another with --image-size"
    if settings.data.image_size:
        return settings.data.image_size, "data.image_size of the configuration"
    try:
        with redirect_stdout(sys.stderr):
            shape = load_data(settings.data, settings.seed, pixels=False).input_shape
    except DataError as reason:
        return 224, f"the configured data cannot be read: {reason}"
    if len(shape) != 3:
        return 224, "the configured data has no image size; set one with --image-size"
    return max(shape[1:]), f"the size of the data '{settings.data.name}'"
