"""`bcnet inspect`: what can be searched in a model, and whether the result can be exported."""

import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bcnet.commands.options import ConfigFile, Device, Json, configured
from bcnet.errors import UsageError
from bcnet.show import show_table

if TYPE_CHECKING:
    from bcnet.config import Config

PAIR = "\0"  # between the two values of an option that takes two


def inspect(
    model: Annotated[
        str | None, typer.Option(help="Inspect this model, as torchvision:resnet18, without any data.")
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            min=8,
            max=4096,
            help="Image side for --model, in pixels. Default: that of the data in bcnet.toml, or 224.",
        ),
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Keep the width of groups or layers that match, as 'layer1.*'; may be repeated.",
        ),
    ] = None,
    tie: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A B", help="Give two groups one width, as: --tie left.conv right.conv; may be repeated."
        ),
    ] = None,
    expand: Annotated[float | None, typer.Option(help="Multiply all widths by this before, as 1.5.")] = None,
    device: Device = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Show what can be searched in the model. Width groups, their layers and choices, what stays as it is
    and why, parameters and multiply-accumulates, and whether it can be exported. Without --model: the
    configured model and data."""
    pairs = [pair.split(PAIR) for pair in tie or ()]
    if any(len(pair) != 2 for pair in pairs):
        raise UsageError("--tie takes two groups, as: --tie left.conv right.conv")
    settings = configured(
        config,
        {
            "": {"device": device},
            "model": {"name": model, "args": {} if model else None},
            "space": {"freeze": freeze or None, "tie": pairs or None, "expand": expand},
        },
    )
    if model is None:
        from bcnet.pipeline.problem import load_project
        from bcnet.run_choice import require_configured

        require_configured("inspect", config, None, settings)

        with redirect_stdout(sys.stderr):
            project = load_project(settings, pixels=False)
        space, shape = project.space, tuple(project.data.input_shape)
        origin = f"the size of the data '{settings.data.name}'"
        not_deliverable = project.not_deliverable
    else:
        import torch

        from bcnet.models import build_model
        from bcnet.pipeline.problem import searched_space, target_profile

        # A configured file of weights is of the configured network.
        network = build_model(settings.model.model_copy(update={"weights": None}), 3, 1000)
        side, origin = (image_size, "--image-size") if image_size else _side_of_data(config, settings)
        shape = (3, side, side)
        example = torch.zeros(1, *shape)
        profile = target_profile(settings)
        network, space, _ = searched_space(settings, profile, network, example)

        def not_deliverable() -> str | None:
            from bcnet.onnx_export import exportable
            from bcnet.onnx_export.onnx_supernet import OnnxSupernet

            def graph() -> OnnxSupernet:
                return OnnxSupernet(network, space, example, opset=profile.opset)

            return exportable.not_deliverable(graph, network, example)

    full, small = space.original(), space.smallest()
    summary = {
        "model": settings.model.name,
        "input": list(shape),
        "input_from": origin,
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
    if as_json:
        print(json.dumps({**summary, "not_deliverable": _tried_export(not_deliverable)}))
        return
    rows = [
        [
            g.name,
            (str(g.channels) if width == g.channels else f"{width}, widened to {g.channels}")
            + (f" (x {g.repeat})" if g.repeat > 1 else ""),
            " ".join(map(str, g.choices)) + (f" (in units of {g.unit})" if g.unit > 1 else ""),
            ", ".join(g.layers),
        ]
        for g, width in zip(space.groups, full, strict=True)
    ]
    show_table(["group", "channels", "choices", "made by"], rows)
    show_table(["frozen", "channels", "because"], [[f.name, str(f.channels), f.reason] for f in space.frozen])
    print(f"input     {' x '.join(map(str, shape))} ({origin})")
    print(f"full      {space.params(full):>13,} parameters {space.macs(full):>16,} multiply-accumulates")
    print(f"narrowest {space.params(small):>13,} parameters {space.macs(small):>16,} multiply-accumulates")
    print(
        f"searchable {space.searchable_params():>11.1%} of parameters "
        f"{space.searchable_macs():>14.1%} of multiply-accumulates"
    )
    print(
        f"narrowest {space.params(small) / space.params(full):>12.1%} of parameters "
        f"{space.macs(small) / space.macs(full):>14.1%} of multiply-accumulates"
    )
    ordered = [g.name for g in space.groups if g.ordered]
    if ordered:
        print(f"channels keep their order (a layer works along them by their places): {', '.join(ordered)}")
    reason = _tried_export(not_deliverable)
    print(f"export    {reason or 'the narrowest network is exported to ONNX and runs in ONNX Runtime'}")


def _tried_export(not_deliverable: Callable[[], str | None]) -> str | None:
    """Why the network cannot be exported or run; None where both work."""
    from bcnet.progress import working

    with redirect_stdout(sys.stderr), working("checking the export of the narrowest network"):
        return not_deliverable()


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
