"""`bcnet run`: all stages and a comparison, without those whose results still match."""

import sys
import time
from contextlib import redirect_stdout

from bcnet.commands.in_run import (
    Command,
    checking,
    chosen_run,
    refuse_unverified,
    reuse_supernet_of_default,
    show,
    sliced,
)
from bcnet.commands.options import (
    Batch,
    ConfigFile,
    Device,
    Host,
    Json,
    Latency,
    LatencyMs,
    MinAccuracy,
    Precision,
    Replace,
    RunName,
    Seed,
    Threads,
    TrainDevice,
    budget_flags,
    configured,
    target_flags,
)


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
            "": {"seed": seed, **target_flags(device, batch, threads, precision, host)},
            "train": {"train_device": train_device},
            "search": budget_flags(latency_ms, latency, min_accuracy),
        },
    )
    command = Command("run", run, config, as_json, replace, measures=True)
    with chosen_run(command, settings) as (target, settings):
        from bcnet.pipeline import build_lut, compare, export, search, slice, train
        from bcnet.pipeline.results import CompareSummary, ExportSummary
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
                reuse_supernet_of_default(target, settings)
        for number, (name, stage) in enumerate(stages.items(), 1):
            label = f"[{number}/{len(stages)}] {name}"
            with checking(as_json):
                why = target.stage(name).outdated(stage.stage_inputs(target, settings))
                if why is None:
                    target.stage(name).tidy()
                    say(f"{label}: already done")
                else:
                    start = time.perf_counter()
                    say(label if why == NOT_DONE else f"{label}: {why}")
                    sliced(target, settings) if stage is slice else stage.run(target, settings)
                    say(f"{label}: done in {time.perf_counter() - start:.0f} s")
            if name == "export":
                exported = ExportSummary.read(target.stage("export"))
                if exported.not_verified:  # nor is there anything to compare with
                    show(exported, as_json)
                    refuse_unverified(exported)
    show(CompareSummary.read(target.stage("compare")), as_json)
