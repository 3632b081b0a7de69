"""How well calls of `bcnet time` agree with each other, and with a plain loop or ONNX Runtime's own program.

Each call is a process of its own. After each, the reference times the same file: `onnxruntime_perf_test`, if
it is on PATH or given, else a loop over IO binding without bcnet. The file is MobileNetV2 with random
weights, unless one is given; choose --image-size for about 5 ms.

    python benchmarks/timing_repeats.py --pairs 20 --pause 60 --output benchmarks/results/timing_repeats.json
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from recorded import how_made

GOAL_AGREE, GOAL_APART = 0.95, 0.03
AVERAGE = re.compile(r"Average inference time cost(?: total)?: ([\d.e+-]+) ms")
PERCENTILE = re.compile(r"P50 Latency: ([\d.e+-]+) s")


def network(folder: Path, image_size: int) -> Path:
    """MobileNetV2 as an ONNX file."""
    import torch
    from torchvision.models import mobilenet_v2

    from bcnet.onnx_export.onnx_supernet import to_onnx

    torch.manual_seed(0)
    path = folder / f"mobilenet_v2-{image_size}.onnx"
    path.write_bytes(to_onnx(mobilenet_v2().eval(), (1, 3, image_size, image_size)).SerializeToString())
    return path


def called(file: Path, more: list[str]) -> dict[str, Any]:
    """What a call of `bcnet time` prints, in a process of its own."""
    command = [sys.executable, "-m", "bcnet", "time", str(file), "--layers", "0", "--json", *more]
    found: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return found


def perf_test_ms(program: str, file: Path, seconds: float) -> dict[str, float]:
    """The average and median of ONNX Runtime's own program, on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        result = str(Path(folder, "result.txt"))
        command = [program, "-e", "cpu", "-I", "-x", "1", "-y", "1", "-m", "duration", "-t", f"{seconds:.0f}"]
        done = subprocess.run([*command, str(file), result], capture_output=True, text=True, check=True)
    average, median = AVERAGE.search(done.stdout), PERCENTILE.search(done.stdout)
    if average is None:
        raise SystemExit(f"{program} prints no average: {done.stdout[-500:]}")
    found = {"average_ms": float(average[1])}
    return found if median is None else {**found, "median_ms": 1000 * float(median[1])}


def loop_ms(file: Path, seconds: float) -> dict[str, float]:
    """The average and median of a loop over a session with bound inputs and outputs, in a new process."""
    command = [sys.executable, __file__, "--loop", str(file), "--loop-seconds", str(seconds)]
    found: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return found


def loop(file: Path, seconds: float) -> dict[str, float]:
    """The loop itself."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    rng = np.random.default_rng(0)
    for entry in session.get_inputs():
        sides = [side if isinstance(side, int) else 1 for side in entry.shape]
        array = rng.standard_normal(sides, dtype=np.float32)
        binding.bind_ortvalue_input(entry.name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    for entry in session.get_outputs():
        binding.bind_output(entry.name)
    for _ in range(10):
        session.run_with_iobinding(binding)
    samples = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        session.run_with_iobinding(binding)
        samples.append((time.perf_counter() - start) * 1000)
    return {"average_ms": float(np.mean(samples)), "median_ms": float(np.median(samples))}


def summary(calls: list[dict[str, Any]], references: list[dict[str, float]], program: str) -> dict[str, Any]:
    """How many pairs agree, what the narrowest interval would have to be, how far the reference is."""
    runs = [call["files"][0]["device_time"] for call in calls]
    typical = np.array([own["typical_ms"] for own in runs])
    pairs = list(pairwise(runs))
    agree = [a["low_ms"] <= b["typical_ms"] <= a["high_ms"] for a, b in pairs]
    apart = np.abs(typical[1:] / typical[:-1] - 1)
    average = np.array([own["average_ms"] for own in references])
    found = {
        "pairs": len(pairs),
        "agree": sum(agree),
        "share": round(float(np.mean(agree)), 4),
        "goal_share": GOAL_AGREE,
        "apart_median": round(float(np.median(apart)), 5),
        "apart_95": round(float(np.percentile(apart, 95)), 5),
        "half_width_median": round(
            float(np.median([(own["high_ms"] - own["low_ms"]) / 2 / own["typical_ms"] for own in runs])), 5
        ),
        "noise_median": round(float(np.median([own["noise"] for own in runs])), 4),
        "not_quiet": sum(call["not_quiet"] is not None for call in calls),
        "typical_ms": [float(value) for value in typical],
        "reference": program,
        "reference_average_ms": [round(float(value), 5) for value in average],
        "reference_apart": round(float(np.median(typical) / np.median(average) - 1), 5),
        "goal_apart": GOAL_APART,
    }
    if all("median_ms" in own for own in references):
        median = float(np.median([own["median_ms"] for own in references]))
        found["reference_median_apart"] = round(float(np.median(typical)) / median - 1, 5)
    against = [call["speedup"] for call in calls if call["speedup"]]
    if against:
        found["same_file_separable"] = sum(own["separable"] for own in against)
        found["same_file_ratios"] = [own["ratio"] for own in against]
    return found


def main() -> None:
    """Parse, call, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=20, help="pairs of calls, one after the other")
    parser.add_argument("--pause", type=float, default=60.0, help="seconds between two calls")
    parser.add_argument("--file", type=Path, help="an ONNX file with fixed shapes and float32 inputs")
    parser.add_argument("--image-size", type=int, default=168, help="pixels, without --file")
    parser.add_argument("--seconds", type=float, help="of each call, as `bcnet time` takes it")
    parser.add_argument("--itself", action="store_true", help="also compare the file with a copy of itself")
    parser.add_argument("--perf-test", help="path of onnxruntime_perf_test")
    parser.add_argument("--loop-seconds", type=float, default=10.0, help="of each run of the reference")
    parser.add_argument("--output", type=Path, help="also write the record to this file")
    parser.add_argument("--loop", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.loop:
        print(json.dumps(loop(arguments.loop, arguments.loop_seconds)))
        return
    program = arguments.perf_test or shutil.which("onnxruntime_perf_test")
    calls, references = [], []
    with tempfile.TemporaryDirectory() as folder:
        file = arguments.file or network(Path(folder), arguments.image_size)
        more = [] if arguments.seconds is None else ["--seconds", str(arguments.seconds)]
        if arguments.itself:
            more += ["--against", shutil.copy(file, Path(folder, "copy.onnx"))]
        for number in range(arguments.pairs + 1):
            if number:
                time.sleep(arguments.pause)
            calls.append(called(file, more))
            seconds = arguments.loop_seconds
            references.append(perf_test_ms(program, file, seconds) if program else loop_ms(file, seconds))
            own = calls[-1]["files"][0]["device_time"]
            print(
                f"{number}: {own['typical_ms']:.4f} ms ({own['low_ms']:.4f} to {own['high_ms']:.4f}), "
                f"reference {references[-1]['average_ms']:.4f} ms on average",
                file=sys.stderr,
            )
    name = "onnxruntime_perf_test" if program else "a loop over IO binding"
    record = {
        **how_made(),
        "runtime": calls[0]["runtime"],
        "pause_s": arguments.pause,
        **summary(calls, references, name),
    }
    text = json.dumps(record, indent=2)
    if arguments.output:
        arguments.output.write_text(f"{text}\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
