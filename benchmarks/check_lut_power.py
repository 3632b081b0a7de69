"""How often `bcnet check-lut` calls an unchanged runtime slower, and how often it finds a slowdown.

Every check is a fresh process that measures again, against a table that is built again for every 20 checks;
nothing is resampled. Results go to a file of JSON lines, one a check: run it again and it does what is still
missing. The figures of all are written to the file beside it that ends in .json. Checks are pinned to core 0,
the process that keeps the other core busy to core 1.

    python benchmarks/check_lut_power.py --minutes 70

Delays are put in on purpose, and say so: inside the runtime's `profile_nodes`, the call that check-lut takes
its times from, the process really spins for that share of each profiled time, and adds what its clock says
that it spun. The last two kinds are real: nothing is added there.
"""

import argparse
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from scipy.stats import beta

from bcnet.config import ModelConfig
from bcnet.hw_profiles import HwProfile, load_profile
from bcnet.latency_tables.table import LatencyTable
from bcnet.models import build_model
from bcnet.onnx_export import onnx_supernet
from bcnet.onnx_export.onnx_supernet import OnnxSupernet
from bcnet.pipeline.build_lut import build_lut
from bcnet.pipeline.check_lut import CheckSettings, check_lut
from bcnet.runs import file_digest, json_bytes, write_file
from bcnet.runtimes import runtime_here
from bcnet.runtimes.onnxruntime import OnnxRuntime
from bcnet.space.discover import discover_space

SLOWED = "Conv 3x3 depthwise"
UNCHANGED = ("unchanged, quiet", "unchanged, second core busy")
# Kind of check -> how many of them.
CHECKS = {
    UNCHANGED[0]: 75,
    UNCHANGED[1]: 75,
    "delay of 10 %, all rows": 50,
    "delay of 20 %, all rows": 80,
    f"delay of 10 %, {SLOWED}": 50,
    f"delay of 20 %, {SLOWED}": 80,
    "two threads down to one": 20,
    "graph optimisation off": 20,
}
THREADS = "two threads down to one"
PER_TABLE = 20
# Arithmetic and memory in turn: what a neighbour on a shared machine does.
BUSY = """
import numpy as np
square, block = np.ones((512, 512), np.float32), np.ones(4 << 20, np.float32)
while True:
    square @ square
    block + 1
"""


def graph_of(folder: Path, model: str, image_size: int, bins: int) -> OnnxSupernet:
    """The network's ONNX graph, exported once and kept in the folder."""
    code = file_digest(Path(onnx_supernet.__file__))  # a pickle does not outlive its class
    file = folder / f"{re.sub('[^a-z0-9]+', '-', model)}-{image_size}-{bins}-{code}.pickle"
    if file.exists():
        kept = pickle.loads(file.read_bytes())
        assert isinstance(kept, OnnxSupernet)
        return kept
    torch.manual_seed(0)
    shape = (1, 3, image_size, image_size)
    network = build_model(ModelConfig(name=model), 3, 1000)
    space = discover_space(network, torch.zeros(shape), bins=bins, channel_multiple=8)
    graph = OnnxSupernet(network, space, shape)
    write_file(file, pickle.dumps(graph))
    return graph


def delay(share: float, nodes: frozenset[str] | None) -> list[float]:
    """Slow the runtime's nodes down (None: all) by spinning for a share of their time.

    Returns a list that fills with what was really put in: the milliseconds spun over those of the node.
    """
    profile_nodes = OnnxRuntime.profile_nodes
    put_in: list[float] = []

    def spin(duration_ms: float) -> float:
        start = time.perf_counter()
        while (
            time.perf_counter() - start
        ) * 1000 < share * duration_ms:  # below zero: the profiler's own time is taken off
            pass
        return (time.perf_counter() - start) * 1000

    def slowed(self: OnnxRuntime, model: bytes, runs: int) -> list[tuple[str, np.ndarray]]:
        profile = []
        for name, durations in profile_nodes(self, model, runs):
            if nodes is None or re.sub(r"(_nchwc|_token_\d+|/.*)$", "", name) in nodes:
                spun = np.array([spin(float(duration)) for duration in durations])
                put_in.extend(spun[durations > 0] / durations[durations > 0])
                durations = durations + spun
            profile.append((name, durations))
        return profile

    OnnxRuntime.profile_nodes = slowed
    return put_in


def change_runtime(kind: str, graph: OnnxSupernet) -> Callable[[], dict[str, float]]:
    """Do to the runtime of this process what the kind of check says; returns what to note of it."""
    if kind == "graph optimisation off":
        options = onnxruntime.SessionOptions

        def unoptimised() -> Any:
            made = options()
            made.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            return made

        onnxruntime.SessionOptions = unoptimised
    elif kind == THREADS:
        profile_nodes = OnnxRuntime.profile_nodes
        OnnxRuntime.profile_nodes = lambda self, model, runs: profile_nodes(
            runtime_here("onnxruntime", threads=1), model, runs
        )
    elif match := re.match(r"delay of (\d+) %, (.*)", kind):
        nodes = None
        if match[2] == SLOWED:
            slots = [slot for slot in graph.slots if slot.template.kind == SLOWED]
            nodes = frozenset(node for slot in slots for node in slot.nodes)
        put_in = delay(int(match[1]) / 100, nodes)
        return lambda: {"delay_put_in": float(np.median(put_in))}
    return dict


@contextmanager
def busy_core(wanted: bool) -> Iterator[None]:
    """Another process that keeps core 1 busy."""
    if not wanted:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", BUSY], env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    try:
        os.sched_setaffinity(process.pid, {1})
        time.sleep(0.5)
        yield
    finally:
        process.kill()
        process.wait()


def profile_for(kind: str) -> HwProfile:
    """The shipped profile; two threads for the check that loses one of them."""
    return load_profile("cpu").model_copy(update={"threads": 2 if kind == THREADS else 1})


def check(kind: str, table: Path, graph: OnnxSupernet, seconds: float, seed: int) -> dict[str, Any]:
    """One check in this process."""
    os.sched_setaffinity(0, {0})
    note = change_runtime(kind, graph)
    settings, loaded = CheckSettings(seconds=seconds), LatencyTable.load(table)
    report = check_lut(graph, profile_for(kind), loaded, settings, seed=seed, name=table.name)
    verdict = report.verdict
    return {
        "kind": kind,
        "status": verdict.status,
        "reason": verdict.reason,
        "all_rows": verdict.everything.change,
        "kinds": {each.name: each.change for each in verdict.kinds},
        "slower": [each.name for each in verdict.slower],
        "faster": [each.name for each in verdict.faster],
        "relative": [each.name for each in verdict.relative],
        "probe": {each.name: each.change for each in verdict.probe},
        "detectable": verdict.detectable,
        "rows": report.rows,
        "networks": report.networks,
        "rounds": report.rounds,
        "seconds": report.seconds,
        "table": table.name,
        **note(),
    }


def build(kind: str, table: Path, graph: OnnxSupernet) -> None:
    """A table of this machine as it is, in this process."""
    os.sched_setaffinity(0, {0, 1} if kind == THREADS else {0})
    build_lut(graph, profile_for(kind), LatencyTable("cpu"), path=table)


def figures(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each kind of check, and one for all unchanged ones; 95 % intervals: Clopper and Pearson."""

    def row(name: str, own: list[dict[str, Any]]) -> dict[str, Any]:
        n, k = len(own), sum(result["status"] == "slower" for result in own)
        put_in = [result["delay_put_in"] for result in own if "delay_put_in" in result]
        return {
            "kind": name,
            "checks": n,
            **{
                status: sum(result["status"] == status for result in own)
                for status in ("ok", "slower", "machine differs", "inconclusive")
            },
            "share": k / n,
            "low": float(beta.ppf(0.025, k, n - k + 1)) if k else 0.0,
            "high": float(beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0,
            **({"named": sum(SLOWED in result["slower"] for result in own)} if name.endswith(SLOWED) else {}),
            **({"delay_put_in": float(np.median(put_in))} if put_in else {}),
        }

    kinds = {kind: [result for result in results if result["kind"] == kind] for kind in CHECKS}
    kinds["all unchanged"] = [result for result in results if result["kind"] in UNCHANGED]
    return [row(name, own) for name, own in kinds.items() if own]


def summary(rows: list[dict[str, Any]]) -> str:
    """A line for each row."""
    lines = [
        f"{'':<32}{'checks':>7}{'ok':>5}{'slower':>8}{'machine':>9}{'inconcl.':>10}"
        "  called slower (95 % interval)"
    ]
    for row in rows:
        lines.append(
            f"{row['kind']:<32}{row['checks']:>7}{row['ok']:>5}{row['slower']:>8}{row['machine differs']:>9}"
            f"{row['inconclusive']:>10}  {row['share']:.1%} ({row['low']:.1%} to {row['high']:.1%})"
        )
        if "named" in row:
            lines.append(f"{'':<32}named the slowed kind: {row['named']} of {row['checks']}")
        if "delay_put_in" in row:
            lines.append(f"{'':<32}delay that was really put in: {row['delay_put_in']:.1%} (median)")
    return "\n".join(lines)


def main() -> None:
    """Parse, do what is missing, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--results",
        type=Path,
        default=Path(__file__).parent / "results" / "check_lut_power.jsonl",
        help="added to",
    )
    parser.add_argument("--minutes", type=float, default=70.0, help="stop after")
    parser.add_argument("--seconds", type=float, default=8.0, help="of one check")
    parser.add_argument("--most", type=int, default=1000, help="checks of each kind, at most")
    parser.add_argument("--model", default="torchvision:mobilenet_v2", help="as in bcnet.toml")
    parser.add_argument("--image-size", type=int, default=160, help="pixels")
    parser.add_argument("--bins", type=int, default=4, help="width choices a group")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "check_lut_power")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # one check in this process
    parser.add_argument("--build", help=argparse.SUPPRESS)  # one table in this process
    parser.add_argument("--table", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    graph = graph_of(arguments.work, arguments.model, arguments.image_size, arguments.bins)
    if arguments.build:
        build(arguments.build, arguments.table, graph)
        return
    if arguments.one:
        print(json.dumps(check(arguments.one, arguments.table, graph, arguments.seconds, arguments.seed)))
        return

    def child(*flags: str) -> str:
        return subprocess.run(
            [sys.executable, __file__, *flags, *common], check=True, capture_output=True, text=True
        ).stdout

    common = ["--work", str(arguments.work), "--model", arguments.model, "--seconds", str(arguments.seconds)]
    common += ["--image-size", str(arguments.image_size), "--bins", str(arguments.bins)]
    results = []
    if arguments.results.exists():
        results = [json.loads(text) for text in arguments.results.read_text(encoding="utf-8").splitlines()]
    used: dict[Path, int] = {}
    tables: dict[bool, Path] = {}
    end = time.monotonic() + 60 * arguments.minutes
    while time.monotonic() < end:
        done = {kind: sum(result["kind"] == kind for result in results) for kind in CHECKS}
        wanted = {kind: min(count, arguments.most) for kind, count in CHECKS.items()}
        # The kind that is furthest behind is next, so that all kinds see the same hours.
        kind = min(CHECKS, key=lambda kind: done[kind] / wanted[kind])
        if done[kind] >= wanted[kind]:
            break
        two = kind == THREADS
        if two not in tables or used[tables[two]] >= PER_TABLE:
            tables[two] = arguments.work / f"cpu-{time.time_ns()}.json"
            used[tables[two]] = 0
            child("--build", kind, "--table", str(tables[two]))
        used[tables[two]] += 1
        load = os.getloadavg()[0]
        with busy_core(kind == UNCHANGED[1]):
            answer = child("--one", kind, "--table", str(tables[two]), "--seed", str(len(results)))
        result = {**json.loads(answer), "load_before": load, "at": time.strftime("%Y-%m-%dT%H:%M:%S")}
        results.append(result)
        with arguments.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        print(f"{len(results):>4} {kind}: {result['status']}: {result['reason']}", flush=True)
    if not results:
        return
    record = {
        "command": f"python benchmarks/check_lut_power.py --seconds {arguments.seconds:g}",
        "date": max(result["at"] for result in results)[:10],
        "rows": figures(results),
    }
    write_file(arguments.results.with_suffix(".json"), json_bytes(record))
    print(summary(record["rows"]))


if __name__ == "__main__":
    main()
