"""How far apart two calls of `bcnet time` are, from one long recording of rounds. Out: JSON.

    python benchmarks/timing_drift.py --minutes 8 --json benchmarks/results/timing_drift.json
    python benchmarks/timing_drift.py --recorded benchmarks/results/timing_drift.json

A round loads MobileNetV2 again and times it for a second, as a round of `bcnet time` does. From all rounds,
calls of ten rounds are put together, and each is compared with the call that begins a minute later: how often
is the second one in the interval of the first, if that is 1, 2, 3 times as wide as independent rounds need?
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from recorded import how_made
from timing_repeats import network

from bcnet.measure.file_timing import DRIFT, FLOOR, ROUNDS, rounds_differ_by
from bcnet.measure.network_latency import uninterrupted_ms

EVERY_S = 1.5  # between the rounds of a call: one second of the device's own time, half of an application's
APART_S = 60.0
FACTORS = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)


def record(minutes: float, image_size: int) -> list[tuple[float, float]]:
    """When each round began, in seconds from the first, and its latency in ms; one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    shape = (1, 3, image_size, image_size)
    pixels = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    found: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        content = network(Path(folder), image_size).read_bytes()
    start = time.perf_counter()
    while (began := time.perf_counter() - start) < 60 * minutes:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: pixels}
        for _ in range(5):
            session.run(None, feed)
        samples = []
        until = time.perf_counter() + 1.0
        while (before := time.perf_counter()) < until:
            session.run(None, feed)
            samples.append((time.perf_counter() - before) * 1000)
        found.append((round(began, 2), round(uninterrupted_ms(np.array(samples)), 5)))
    return found


def agreement(rounds: list[tuple[float, float]]) -> dict[str, Any]:
    """The share of calls a minute apart that agree, for each factor, and how wide the interval then is."""
    at, ms = (np.array(column) for column in zip(*rounds, strict=True))

    def call(start: float) -> np.ndarray:
        return np.asarray(ms[np.searchsorted(at, start + EVERY_S * np.arange(ROUNDS))])

    starts = np.arange(0, at[-1] - APART_S - EVERY_S * ROUNDS, 2.0)
    pairs = [(call(start), call(start + APART_S)) for start in starts]
    found: dict[str, Any] = {"calls": len(pairs), "factors": []}
    typical = np.array([np.median(one) for one, _ in pairs])
    apart = np.array([abs(np.median(two) - np.median(one)) for one, two in pairs])
    within = np.array([rounds_differ_by(one) for one, _ in pairs])
    for factor in FACTORS:
        half = np.maximum(factor * within, FLOOR * typical)
        share, width = float(np.mean(apart <= half)), float(np.median(half / typical))
        found["factors"].append({"factor": factor, "agree": round(share, 3), "half_width": round(width, 4)})
    return found


def main() -> None:
    """Parse, record or read, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--image-size", type=int, default=264, help="pixels; choose it for about 5 ms")
    parser.add_argument("--recorded", type=Path, help="take the rounds of this record instead")
    parser.add_argument("--json", type=Path, help="also write the result there")
    options = parser.parse_args()
    if options.recorded:
        result = json.loads(options.recorded.read_text(encoding="utf-8"))
    else:
        result = {
            **how_made(),
            "rounds": record(options.minutes, options.image_size),
        }
    ms = np.array([own for _, own in result["rounds"]])
    result |= {
        "median_ms": round(float(np.median(ms)), 4),
        "deviation": round(float(ms.std(ddof=1) / ms.mean()), 4),
        "lag_1_correlation": round(float(np.corrcoef(ms[1:], ms[:-1])[0, 1]), 3),
        "factor_of_bcnet_time": DRIFT,
        **agreement(result["rounds"]),
    }
    if options.json:
        options.json.write_text(json.dumps(result) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in result.items() if key != "rounds"}, indent=1))


if __name__ == "__main__":
    main()
