"""ONNX Runtime and OpenVINO on this processor: latencies of five networks, fp32 and int8.

    OMP_NUM_THREADS=1 python benchmarks/two_runtimes.py --core 1

Networks of torchvision without trained weights, 224 x 224, batch 1, one thread. Both runtimes get the same
files; at int8 the QDQ file that `bcnet export` writes. In each round every file is loaded and timed in both,
in turn and then in reverse, in one process. Prints a Markdown table, and writes a record after
each network: the medians of all rounds in ms, and the machine's load before and after. A network's noise is
the relative difference between its fastest round and the second fastest.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from recorded import how_made

from bcnet.measure.network_latency import uninterrupted_ms
from bcnet.onnx_export.int8 import quantized
from bcnet.onnx_export.onnx_supernet import to_onnx
from bcnet.runtimes import Runtime, runtime_here

NETWORKS = ("mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "resnet18", "resnet50")
RUNTIMES = ("onnxruntime", "openvino")
SHAPE = (1, 3, 224, 224)
CALIBRATION = 4  # inputs of noise: latencies do not depend on the ranges of activations
RESULTS = Path(__file__).parent / "results" / "two_runtimes.json"


def files_of(name: str) -> dict[str, bytes]:
    """The network's file in floats and in integers."""
    torch.manual_seed(0)
    floats = to_onnx(getattr(torchvision.models, name)(weights=None), SHAPE)
    rng = np.random.default_rng(0)
    feeds = [{"input": rng.standard_normal(SHAPE, dtype=np.float32)} for _ in range(CALIBRATION)]
    integers = quantized(floats, feeds, unsigned=True)
    return {"fp32": floats.SerializeToString(), "int8": integers.SerializeToString()}


def runtime(name: str, precision: str) -> Runtime:
    """A runtime as the profiles `cpu` and `cpu-openvino` have it."""
    return runtime_here(name, provider="cpu", threads=1, precision=precision)


def rounds_of(files: dict[str, bytes], rounds: int, seconds: float) -> dict[tuple[str, str], list[float]]:
    """The median ms of each round, by precision and runtime, without inferences that were interrupted."""
    steps = [(precision, name) for precision in files for name in RUNTIMES]
    found: dict[tuple[str, str], list[float]] = {step: [] for step in steps}
    for turn in range(rounds):
        for precision, name in reversed(steps) if turn % 2 else steps:
            samples = runtime(name, precision).time_network(files[precision], 50, seconds, 8)
            found[precision, name].append(round(uninterrupted_ms(samples), 4))
    return found


def row(network: str, precision: str, name: str, rounds_ms: list[float]) -> dict[str, Any]:
    """One line of the record."""
    fastest, second = sorted(rounds_ms)[:2]
    return {
        "network": network,
        "precision": precision,
        "runtime": name,
        "ms": fastest,
        "median_ms": float(np.median(rounds_ms)),
        "noise": round(second / fastest - 1, 4),
        "rounds_ms": rounds_ms,
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The record as a table: fastest rounds, the noise beside them, and the ratio of both runtimes."""
    lines = [
        "| network | precision | ONNX Runtime, ms | noise | OpenVINO, ms | noise | OpenVINO is faster by |",
        "|---|---|---|---|---|---|---|",
    ]
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        cells = [f"{own['ms']:.2f} | {100 * own['noise']:.1f} %" for own in (first, second)]
        ratio = first["ms"] / second["ms"]
        lines.append(f"| {first['network']} | {first['precision']} | {cells[0]} | {cells[1]} | {ratio:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Time the networks and keep the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each file in a round")
    parser.add_argument("--core", type=int, help="stay on this processor core")
    parser.add_argument("--write", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.core is not None:
        os.sched_setaffinity(0, {given.core})
    versions = {name: runtime(name, "fp32").fingerprint() for name in RUNTIMES}
    record: dict[str, Any] = {
        **how_made(),
        "machine": f"{versions['openvino']['processor']}, one thread, {os.cpu_count()} cores",
        "versions": {name: own["runtime_version"] for name, own in versions.items()},
        "load": [],
        "rows": [],
    }
    for network in given.names:
        files = files_of(network)
        before = os.getloadavg()[0]
        found = rounds_of(files, given.rounds, given.seconds)
        record["load"].append({"network": network, "before": before, "after": os.getloadavg()[0]})
        record["rows"] += [row(network, *step, rounds_ms) for step, rounds_ms in found.items()]
        given.write.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"{network} is done", file=sys.stderr)
    print(markdown(record["rows"]))


if __name__ == "__main__":
    main()
