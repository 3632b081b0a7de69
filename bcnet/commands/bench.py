"""`bcnet bench`: a benchmark with known accuracies, and the comparison of all methods on a user's network."""

import json
import re
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from bcnet.commands.completion import run_names
from bcnet.commands.in_run import connected_processes, led
from bcnet.commands.options import (
    ConfigFile,
    Given,
    Json,
    help_without_command,
    sentence,
    with_settings,
)
from bcnet.commands.start import InProcesses, start_processes
from bcnet.commands.usage import PlainCommand
from bcnet.config import TrainConfig
from bcnet.errors import UsageError
from bcnet.nearest import near_path

TRAIN = TrainConfig.model_fields
BenchRun = Annotated[
    str,
    typer.Option(
        "--run",
        metavar="NAME",
        help="Name of the run, whose files are in runs/NAME/.",
        autocompletion=run_names,
    ),
]
bench_app = typer.Typer(
    help="Compare methods, on benchmarks and on your own network.",
    rich_markup_mode=None,
    add_completion=False,
)
bench_app.callback(invoke_without_command=True)(help_without_command)


@bench_app.command("channel-bench-macro", cls=PlainCommand)
def channel_bench_macro(
    context: typer.Context,
    table: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="The authors' table, e.g. Results_MobileNet.json.", show_default=False
        ),
    ],
    data: Annotated[
        str, typer.Option(metavar="NAME", help="CIFAR-10: cifar10, or imagefolder:PATH.")
    ] = "cifar10",
    space: Annotated[
        str, typer.Option(metavar="NAME", help="The table's space: mobilenet or resnet.")
    ] = "mobilenet",
    method: Annotated[
        str, typer.Option(metavar="NAME", help=sentence(TRAIN["method"].description))
    ] = "bcnet",
    step: Annotated[str, typer.Option(metavar="NAME", help=sentence(TRAIN["step"].description))] = "plain",
    draws: Annotated[
        int, typer.Option(metavar="N", min=1, max=64, help=sentence(TRAIN["draws"].description))
    ] = 1,
    supernets: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, max=16, help="Supernets that share the passes; their mean score is used."
        ),
    ] = 1,
    complementary: Annotated[bool, typer.Option(help=sentence(TRAIN["complementary"].description))] = False,
    preset: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Size: full (all images, the benchmark's widths), small (40 minutes on two cores: 22,400 "
            "images, widths divided by 4), or tiny (seconds: only tests that everything runs).",
        ),
    ] = "full",
    shared: Annotated[
        bool,
        typer.Option(help="Split the images that score settings across the two sides, as in a search."),
    ] = False,
    passes: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Passes over the training images, each path counted (default: preset's)."
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(metavar="N", min=2, max=65_536, help="Training images per step (default: preset's)."),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(metavar="N", min=10, help="Settings to score, of all sizes (default: preset's)."),
    ] = None,
    scratch: Annotated[
        int,
        typer.Option(
            "--from-scratch",
            metavar="N",
            help="Number of other settings to train from scratch, at least 10, to compare with regressions "
            "on their accuracies.",
        ),
    ] = 0,
    scratch_epochs: Annotated[
        int, typer.Option(metavar="N", min=1, help="Epochs of each of these settings.")
    ] = 1,
    cuda_graph: Annotated[
        bool | None,
        typer.Option(
            help=sentence(TRAIN["cuda_graph"].description),
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, help="Seed of initial weights, training and split.")
    ] = 0,
    run: BenchRun = "channel-bench-macro",
    config: ConfigFile = None,
    processes: InProcesses = None,
    as_json: Json = False,
) -> None:
    """Measure how well a supernet ranks. Trains one on CIFAR-10, scores settings of Channel-Bench-Macro, and
    compares the scores with the known accuracies of training from scratch: Kendall's tau, and the accuracy
    that is lost by choosing by score. If interrupted, the same command continues. Needs no device."""
    from bcnet.bench.channel_bench_macro import MAXIMA, BenchTable
    from bcnet.bench.supernet_ranking import PRESETS, Sample, Setup, as_text, rank_settings, summary_json
    from bcnet.pipeline.open_problem import open_problem
    from bcnet.run_choice import checked_name
    from bcnet.runs import Run
    from bcnet.training.step_plan import STEPS

    _one_of("--preset", preset, PRESETS)
    _one_of("--space", space, MAXIMA)
    _one_of("--step", step, STEPS)
    target = Run.named(checked_name(run), config)
    if not table.exists():
        raise UsageError(f"--table: {table} does not exist; {near_path(table, 'give the path of that file')}")
    known = BenchTable.load(table, space)
    size = PRESETS[preset]
    others = len(known) - (sample or size.sample)
    if scratch and not 10 <= scratch <= others:
        raise UsageError(
            f"--from-scratch takes 10 or more of the {max(0, others):,} settings that are not in the sample, "
            f"not {scratch}"
        )
    setup = Setup(size, space, data, method, step, draws, complementary, passes, seed, supernets, batch_size)
    given = Given(config, setup.flags(), {}).with_flags("train", cuda_graph=cuda_graph)
    start_processes(context, given, processes)
    scored = Sample(sample or size.sample, scratch, scratch_epochs, shared)
    with connected_processes(), redirect_stdout(sys.stderr):
        ranked = partial(rank_settings, table=known, sample=scored)
        report = led(ranked, target, open_problem(given.config()))
    if report is not None:
        print(summary_json(report) if as_json else f"{as_text(report)}\n{target.folder}/bench/report.json")


@bench_app.command("arena", cls=PlainCommand)
@with_settings("device")
def arena(
    given: Given,
    context: typer.Context,
    budgets: Annotated[
        str,
        typer.Option(
            metavar="PERCENT[,...]", help="Percentages of the original's measured latency (e.g. 75%,50%,30%)."
        ),
    ] = "50%",
    seeds: Annotated[str, typer.Option(metavar="N[,...]", help="Seeds of fine-tuning (e.g. 0,1,2).")] = "0",
    row: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A row: auto, a method of search.method or train.method, 'uniform, l1', 'uniform (from "
            "scratch)' or a competitor; ', no distillation' may follow. May be repeated; default: all.",
        ),
    ] = None,
    without_distillation: Annotated[
        bool, typer.Option("--without-distillation", help="Add each row a second time, without distillation.")
    ] = False,
    passes: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Epochs of fine-tuning (default: slice.epochs)."),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="Train nothing; time all networks again, e.g. once the machine is idle."
        ),
    ] = False,
    run: BenchRun = "arena",
    processes: InProcesses = None,
    as_json: Json = False,
) -> None:
    """Compare pruning methods on your network. All methods of bcnet and other libraries start from its
    trained weights, with the same budgets, fine-tuning and distillation; latencies are measured beside the
    original's, accuracies on the test images. If interrupted, the same command continues."""
    from bcnet.bench.arena import Plan, run_arena
    from bcnet.bench.arena_report import as_text
    from bcnet.bench.arena_rows import rows_of
    from bcnet.pipeline.open_problem import open_problem
    from bcnet.run_choice import checked_name
    from bcnet.runs import Run

    plan = Plan(rows_of(tuple(row or ()), without_distillation), _shares(budgets), _seeds(seeds))
    # The route of a trained network, whatever else is configured for its search.
    own = {"method": "auto", "pareto": False, "fitness": "hard", "over_budget": False, "settings": {}}
    given = given.with_flags("slice", epochs=passes).with_flags("search", **own)
    start_processes(context, given, processes)
    target = Run.named(checked_name(run), given.file)
    with connected_processes(), target.in_use(), redirect_stdout(sys.stderr):
        made = partial(run_arena, plan=plan, measure_only=measure)
        report = led(made, target, open_problem(given.config()))
    if report is not None:
        print(json.dumps(report) if as_json else f"{as_text(report)}\n{target.folder}/bench/arena/arena.json")


def _shares(text: str) -> tuple[float, ...]:
    """ "75%,50%" as shares, the largest first. Raises UsageError."""
    from bcnet.config import latency_share

    try:
        found = tuple(sorted({latency_share(word) for word in text.split(",")}, reverse=True))
    except ValueError as cause:
        raise UsageError(f"--budgets: {cause}") from None
    if found[0] >= 1:
        raise UsageError(f"--budgets are below 100%, not '{text}'")
    return found


def _seeds(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(re.fullmatch(r"\s*\d{1,9}\s*", word) for word in words):
        raise UsageError(f"--seeds takes whole numbers, e.g. 0,1,2, not '{text}'")
    return tuple(dict.fromkeys(int(word) for word in words))


def _one_of(flag: str, value: str, known: Mapping[str, Any]) -> None:
    if value not in known:
        raise UsageError(f"{flag} is one of {', '.join(known)}, not '{value}'")
