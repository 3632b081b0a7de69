"""The command line: parse, call, print. Help imports neither torch nor a runtime.

Results go to stdout (one JSON object with --json), progress and messages to stderr. Exit codes: 0 done,
1 an error that the message explains, 2 wrong usage, 3 a check failed (`check-lut`: slower, or rows missing),
4 done but not verified here (`check-lut`: the machine differs, or inconclusive), 130 interrupted, 143 and 129
ended by SIGTERM and SIGHUP.
"""

import errno
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bcnet.commands.bench import bench_app
from bcnet.commands.options import ConfigFile, Device, Flags, Json, RunName, Seed, configured
from bcnet.commands.runs import runs_app
from bcnet.errors import (
    BcnetError,
    CheckFailed,
    NotVerified,
    UsageError,
    one_line,
    raised_by_user,
)
from bcnet.plain import LONGEST, plain
from bcnet.show import show_check, show_comparison, show_steps, show_summary, show_table
from bcnet.signals import as_interrupts

if TYPE_CHECKING:
    from bcnet.config import Config
    from bcnet.run_choice import Does
    from bcnet.runs import Run

PAIR = "\0"  # between the two values of an option that takes two
EDITS_SHOWN = 10

app = typer.Typer(
    name="bcnet",
    help="Make a CNN fit a latency budget on a device: train a supernet, or take trained weights, measure "
    "the device, search the channel widths, slice and export the winner. `bcnet init` writes a "
    "configuration, `bcnet run` does all the rest.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

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


def _show_version(wanted: bool) -> None:
    if wanted:
        from bcnet import __version__

        print(f"bcnet {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    pass


@app.command()
def init(
    config: Annotated[
        Path | None, typer.Option("--config", help="File to write (default: bcnet.toml).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a commented bcnet.toml. It holds every setting with its default; nothing is overwritten."""
    from bcnet.config import CONFIG_FILE, template
    from bcnet.errors import ConfigError
    from bcnet.runs import write_file
    from bcnet.toml_files import is_there

    path = config or CONFIG_FILE
    if is_there(path):
        raise ConfigError(f"{path} is already here; delete it first to write a new one")
    write_file(path, template().encode())
    print(json.dumps({"file": str(path)}) if as_json else f"wrote {path}")


@app.command()
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


@app.command()
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
    _stage(_Command("train", run, config, as_json), stage.run, flags)


@app.command("build-lut")
def build_lut(
    device: Device = None,
    batch: Batch = None,
    threads: Threads = None,
    precision: Precision = None,
    host: Host = None,
    seed: Seed = None,
    run: RunName = None,
    config: ConfigFile = None,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate", help="Calculate the table from the device's roofline, without the device."
        ),
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Measure all layers of this model again, at this setting.")
    ] = False,
    replace: Replace = False,
    as_json: Json = False,
) -> None:
    """Stage 2: measure the latency table. Only what latency_tables/DEVICE.json lacks for this model is
    measured, and how far its predictions are off; a killed build continues."""
    if estimate and again:
        raise UsageError("--estimate measures nothing, so there is nothing to measure --again")
    command = _Command("build-lut", run, config, as_json, replace, measures=not estimate)
    flags: Flags = {"": {"seed": seed, **_target(device, batch, threads, precision, host)}}

    def built(run: "Run", settings: "Config") -> dict[str, Any]:
        from bcnet.pipeline import build_lut, estimate_lut  # torch with them, once the device is reached

        summary = estimate_lut.run(run, settings) if estimate else build_lut.run(run, settings, again=again)
        _reuse(run, settings)
        return summary

    _stage(command, built, flags)


@app.command("check-lut")
def check_lut(
    table: Annotated[
        Path | None, typer.Option(help="Table to check (default: latency_tables/DEVICE.json).")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Compare with this older table; nothing is measured.")
    ] = None,
    max_slowdown: Annotated[str, typer.Option(help='Slowdown that is allowed, as "5%" (4% to 100%).')] = "5%",
    rows: Annotated[
        int, typer.Option(min=1, help="Rows to sample; others of the same networks count, too.")
    ] = 40,
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="How long to measure.")] = 30.0,
    junit: Annotated[
        Path | None, typer.Option(help="Also write the result to this file, as JUnit XML.")
    ] = None,
    device: Device = None,
    batch: Batch = None,
    threads: Threads = None,
    precision: Precision = None,
    host: Host = None,
    seed: Seed = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> int:
    """Check whether device, driver or runtime became slower. Measures a sample of the table again, in place,
    with a probe of the machine. Exit code 0 ok, 3 slower or rows missing, 4 the machine differs or
    inconclusive."""
    from bcnet.latency_tables import check_report
    from bcnet.runs import write_file

    allowed = _percentage("--max-slowdown", max_slowdown)
    if against is not None and (batch, threads, precision, host or None) != (None, None, None, None):
        raise UsageError("--against compares all settings that both tables have; leave out the setting")
    settings = configured(config, {"": {"seed": seed, **_target(device, batch, threads, precision, host)}})
    with redirect_stdout(sys.stderr):
        if against is not None:
            from bcnet.hw_profiles import load_profile
            from bcnet.latency_tables.against import compare_tables
            from bcnet.latency_tables.table import LatencyTable

            path = table or Path("latency_tables", f"{load_profile(settings.device).name}.json")
            report = compare_tables(
                LatencyTable.load(path),
                LatencyTable.load(against),
                max_slowdown=allowed,
                names=(str(path), str(against)),
            )
        else:
            from bcnet.pipeline import check_lut as stage
            from bcnet.run_choice import require_configured

            require_configured("check-lut", config, None, settings)
            report = stage.run(settings, table=table, rows=rows, seconds=seconds, max_slowdown=allowed)
    if junit is not None:
        write_file(junit, check_report.junit(report))
    if os.environ.get("GITHUB_ACTIONS") == "true":
        print("\n".join(check_report.annotations(report)), file=sys.stderr)
    if as_json:
        print(json.dumps(report.to_json()))
    else:
        show_check(report)
    return report.exit_code


@app.command()
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
        "": {"seed": seed, **_target(device, batch, threads, precision, host)},
        "search": {
            **_budget(latency_ms, latency, min_accuracy),
            "max_params": max_params,
            "max_macs": max_macs,
            "max_size_mb": max_size_mb,
            "pareto": pareto or None,
            "population": population,
            "generations": generations,
        },
    }

    def searched(run: "Run", settings: "Config") -> dict[str, Any]:
        _reuse(run, settings)
        return stage.run(run, settings)

    _stage(_Command("search", run, config, as_json), searched, flags)


@app.command("slice")
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
        "": {"seed": seed, **_target(device, batch, threads, precision, host)},
        "train": {"train_device": train_device},
        "slice": {
            "epochs": epochs,
            "from_scratch": from_scratch or None,
            "latency_ms": latency_ms,
            "latency": latency,
        },
    }
    _stage(_Command("slice", run, config, as_json), _sliced, flags)


@app.command()
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

    own = _target(device, batches[0] if batches else None, threads, precision, host)
    settings = configured(config, {"": {"seed": seed, **own}})
    with _chosen(_Command("export", run, config, as_json), settings) as (target, settings):
        wanted = None
        if trt:
            runtime = "tensorrt-rtx" if flavour == "rtx" else flavour
            wanted = EngineWanted(runtime, batches if len(batches) > 1 else ())
            engine_profile(target_profile(settings), runtime)  # refuses now, and not after fine-tuning
        with _checking(as_json):
            why = target.stage("slice").missing(slice.stage_inputs(target, settings), "supernet", "search")
            if why is not None:
                say(f"slicing the winner first: {why}")
                _sliced(target, settings)
            summary = export.run(target, settings, wanted)
    _show(summary, as_json)
    _refuse_unverified(summary)


@app.command()
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
    own = _target(facts.device, facts.batches[0], None, facts.precision, host)
    settings = configured(config, {"": own})
    with _chosen(_Command("verify", run or run_holding(engine), config, as_json), settings) as chosen:
        target, settings = chosen
        with _checking(as_json):
            summary = stage.run(target, settings, engine)
    _show(summary, as_json)


@app.command("run")
def run_all(
    latency_ms: LatencyMs = None,
    latency: Latency = None,
    min_accuracy: MinAccuracy = None,
    device: Device = None,
    batch: Batch = None,
    threads: Threads = None,
    precision: Precision = None,
    host: Host = None,
    train_device: TrainDevice = None,
    seed: Seed = None,
    run: RunName = None,
    config: ConfigFile = None,
    replace: Replace = False,
    as_json: Json = False,
) -> None:
    """Run all stages and a comparison. Stages whose results still match are skipped; at the end, the original
    or the full network, a uniformly narrowed one and the found one stand side by side."""
    from bcnet.progress import say

    settings = configured(
        config,
        {
            "": {"seed": seed, **_target(device, batch, threads, precision, host)},
            "train": {"train_device": train_device},
            "search": _budget(latency_ms, latency, min_accuracy),
        },
    )
    command = _Command("run", run, config, as_json, replace, measures=True)
    with _chosen(command, settings) as (target, settings):
        from bcnet.pipeline import build_lut, compare, export, search, slice, train
        from bcnet.runs import NOT_DONE

        stages = {
            "train": train,
            "build-lut": build_lut,
            "search": search,
            "slice": slice,
            "export": export,
            "compare": compare,
        }
        if run is None:
            with redirect_stdout(sys.stderr):
                _reuse(target, settings)
        for number, (name, stage) in enumerate(stages.items(), 1):
            label = f"[{number}/{len(stages)}] {name}"
            with _checking(as_json):
                why = target.stage(name).outdated(stage.stage_inputs(target, settings))
                if why is None:
                    target.stage(name).tidy()
                    say(f"{label}: already done")
                else:
                    start = time.perf_counter()
                    say(label if why == NOT_DONE else f"{label}: {why}")
                    _sliced(target, settings) if stage is slice else stage.run(target, settings)
                    say(f"{label}: done in {time.perf_counter() - start:.0f} s")
            if name == "export":
                exported = json.loads(target.stage("export").path("verify.json").read_text(encoding="utf-8"))
                if exported.get("not_verified"):  # nor is there anything to compare with
                    _show(exported, as_json)
                    _refuse_unverified(exported)
    summary = json.loads(target.stage("compare").path("result.json").read_text(encoding="utf-8"))
    if as_json:
        print(json.dumps(summary))
    else:
        show_comparison(summary)


app.add_typer(runs_app, name="runs")


@app.command()
def devices(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show this one with all its fields.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the hardware profiles. Those shipped, and your own in hw_profiles/; with a name, all of one."""
    from bcnet.hw_profiles import load_profile, load_profiles, profile_file

    if name is not None:
        profile = load_profile(name)
        found = {"file": str(profile_file(name)), **profile.model_dump(mode="json")}
        _show({key: value for key, value in found.items() if as_json or value is not None}, as_json)
        return
    profiles, broken = load_profiles()
    if as_json:
        errors = {name: {"error": reason} for name, reason in broken.items()}
        print(
            json.dumps(
                {**{name: profile.model_dump(mode="json") for name, profile in profiles.items()}, **errors}
            )
        )
        return
    rows = [
        [
            " ".join([name, *(f"({alias})" for alias in p.aliases)]),
            p.setting[0],
            p.precision,
            p.description,
        ]
        for name, p in profiles.items()
    ]
    rows += [[name, *[""] * 2, f"cannot be used: {reason}"] for name, reason in broken.items()]
    show_table(["device", "runtime", "precision", "description"], rows)


@app.command()
def doctor(device: Device = None, host: Host = None, config: ConfigFile = None, as_json: Json = False) -> int:
    """Check whether the device can be measured. Goes there step by step, over ssh with --host, and says what
    is missing. Exit code 3 when something is."""
    from bcnet.doctor import examine
    from bcnet.pipeline.problem import target_profile

    profile = target_profile(configured(config, {"": {"device": device, "host": host or None}}))
    found = examine(profile)
    if as_json:
        print(json.dumps({"device": profile.name, "steps": [asdict(step) for step in found]}))
    else:
        show_steps(found)
    return 0 if all(step.passed is not False for step in found) else 3


lut = typer.Typer(
    help="Work on the files of latency tables.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)
app.add_typer(lut, name="lut")


@lut.callback()
def _tables() -> None:
    """Edit latency tables as files."""


@lut.command("accept-edit")
def accept_edit(
    table: Annotated[
        Path | None, typer.Option(help="Table that was edited (default: latency_tables/DEVICE.json).")
    ] = None,
    device: Device = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Accept rows of a table that were edited by hand. All other commands refuse them. The table's
    sessions record how many rows were edited, and when that was accepted."""
    from bcnet.hw_profiles import load_profile
    from bcnet.latency_tables.edits import accept_edits

    if table is None:
        name = load_profile(configured(config, {"": {"device": device}}).device).name
        table = Path("latency_tables", f"{name}.json")
    summary = accept_edits(table)
    if as_json:
        print(json.dumps(summary))
        return
    if not summary["edits"]:
        print(f"{table}: no edits found")
    for edit in summary["edits"][:EDITS_SHOWN]:
        print(plain(f"accepted: {edit}"))
    if len(summary["edits"]) > EDITS_SHOWN:
        print(f"accepted: {len(summary['edits']) - EDITS_SHOWN} more")
    if summary["next"]:
        print(plain(f"{table} is sealed again; run `{summary['next']}` to fit its calibrations again"))


app.add_typer(bench_app, name="bench")


def _target(
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


def _budget(latency_ms: float | None, latency: str | None, min_accuracy: float | None) -> dict[str, Any]:
    return {"latency_ms": latency_ms, "latency": latency, "min_accuracy": min_accuracy}


def _percentage(flag: str, text: str) -> float:
    """ "5%" as 0.05. Raises UsageError: two sessions on one machine differ by 2 %, so 4 is the least."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text)
    if match is None or not 4 <= float(match[1]) <= 100:
        raise UsageError(f"{flag} takes a percentage from 4 to 100, as \"5%\", not '{text}'")
    return float(match[1]) / 100


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


DOES: dict[str, "Does"] = {"build-lut": "begin", "run": "begin", "verify": "read"}


@dataclass(frozen=True)
class _Command:
    """What the user typed: the command's name and the options that every stage has.

    A command that `measures` needs the device from the beginning.
    """

    name: str
    run: str | None
    config: Path | None
    as_json: bool
    replace: bool = False
    measures: bool = False


@contextmanager
def _chosen(command: _Command, settings: "Config") -> Iterator[tuple["Run", "Config"]]:
    """The run that a command works in, protected from removal meanwhile, and the run's configuration."""
    from bcnet.run_choice import choose, require_configured, require_table

    does = DOES.get(command.name, "continue")
    choice = choose(settings, command.run, command.config, does, replace=command.replace)
    if command.name in ("search", "slice", "export"):
        require_table(choice, searched=command.name != "search")
    require_configured(command.name, command.config, choice.run, choice.config)
    if command.measures:
        _reach(choice.config)
    if command.name != "build-lut":
        _say_all(choice.notes)
    with choice.run.in_use():
        yield choice.run, choice.config
    if command.name == "build-lut":  # the run may still be refused
        _say_all(choice.notes)


def _say_all(notes: Sequence[str]) -> None:
    from bcnet.progress import say

    for note in notes:
        say(note)


def _stage(command: _Command, stage: "Callable[[Run, Config], dict[str, Any]]", flags: Flags) -> None:
    """Run one stage and print its summary."""
    settings = configured(command.config, flags)
    # What a user's own code prints is not a result.
    with _chosen(command, settings) as (run, settings), redirect_stdout(sys.stderr):
        summary = stage(run, settings)
    _show(summary, command.as_json)


def _reach(settings: "Config") -> None:
    """Reach the device's hosts now, and not after all else is loaded. Raises DeviceError."""
    from bcnet.hw_profiles.target import target_profile
    from bcnet.measure.network_latency import runtime_of
    from bcnet.progress import working

    profile = target_profile(settings)
    if profile.host and not profile.recording:
        with working(f"reaching {', '.join(profile.host)}"):
            runtime_of(profile).fingerprint()


def _reuse(run: "Run", settings: "Config") -> None:
    """Let a run that has no supernet use that of the default run, if it is of the same network."""
    from bcnet.pipeline.kept import reuse_supernet
    from bcnet.run_choice import DEFAULT
    from bcnet.runs import Run

    if run.folder.name != DEFAULT:
        reuse_supernet(run, settings, Run.named(DEFAULT, run.config))


def _sliced(target: "Run", settings: "Config") -> dict[str, Any]:
    """Slice the winner, or the point of the search's front that [slice] asks for."""
    from bcnet.pipeline import slice
    from bcnet.pipeline.front import point_inside

    return slice.run(target, settings, point_inside(target, settings))


@contextmanager
def _checking(as_json: bool) -> Iterator[None]:
    """For what may fail a check: with --json, what was measured is printed then, too."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except CheckFailed as failed:
        if as_json and failed.report is not None:
            print(json.dumps(failed.report))
        raise


def _show(summary: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary))
    else:
        show_summary(summary)


def _refuse_unverified(export: Mapping[str, Any]) -> None:
    """End with exit code 4 after an export that is complete, but whose latency was not checked."""
    if export.get("not_verified"):
        reason, remedy = export["not_verified"], export["verify_with"]
        raise NotVerified(f"{export['file']} is not verified: {reason}; to verify it, {remedy}")


INTERRUPTED = 130

# Typer brings its own copy of click since 0.26, and used the real one before.
_ClickException: type[Exception] = next(
    base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException"
)


def _paired(arguments: list[str]) -> list[str]:
    """`--tie A B` as one value: typer has no repeated options of two values."""
    paired: list[str] = []
    for argument in arguments:
        if len(paired) > 1 and paired[-2] == "--tie" and PAIR not in paired[-1]:
            paired[-1] += PAIR + argument
        else:
            paired.append(argument)
    return paired


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Errors are one line on stderr, without a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with as_interrupts() as received:
        try:
            return _run(given, received)
        except (KeyboardInterrupt, typer.Abort):
            signal = received[0] if received else None
            what = f"ended by {signal.name}" if signal else "interrupted"
            with suppress(OSError):  # after SIGHUP there may be no terminal to write to
                print(f"bcnet: {what}; finished work is kept, run the same command again", file=sys.stderr)
            return 128 + signal if signal else INTERRUPTED


def _run(given: list[str], received: Sequence[int]) -> int:
    command = typer.main.get_command(app)
    try:
        result = command.main(args=_paired(given), prog_name="bcnet", standalone_mode=False)
        if result == INTERRUPTED or received:  # typer has caught Ctrl-C, or a signal that is handled like it
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except BcnetError as error:
        print(f"bcnet: {plain(str(error), LONGEST)}", file=sys.stderr)
        return error.exit_code
    except _ClickException as error:
        message = error.format_message()  # type: ignore[attr-defined]
        is_help = type(error).__name__ == "NoArgsIsHelpError"
        context = getattr(error, "ctx", None)  # of the command that was typed, as `bcnet runs remove`
        hint = f"(see {context.command_path if context else 'bcnet'} --help)"
        print(message if is_help else f"bcnet: {plain(message, LONGEST)} {hint}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f" {plain(str(error.filename))}" if error.filename else ""
        hint = "; free some space" if error.errno == errno.ENOSPC else ""
        print(
            f"bcnet: cannot write or read{where}: {error.strerror or error}{hint}; finished work is kept",
            file=sys.stderr,
        )
        return 1
    except (KeyboardInterrupt, typer.Abort):
        raise
    except BaseException as error:  # sys.exit() in a network's method must not count as success
        function = raised_by_user(error)
        if function is None:
            raise
        print(f"bcnet: {function} failed ({one_line(error)}); finished work is kept", file=sys.stderr)
        return 1
