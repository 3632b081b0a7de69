"""Time pre-processing in an ONNX file (export.preprocess), in both of its forms, and by Pillow.

    taskset -c 0 python benchmarks/preprocessing.py

In: random images of a camera's size, and the side of a network's input. Out: results/preprocessing.json: the
fastest of 60 runs in ms, and how far pixels are from Pillow's.
"""

import datetime
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from bcnet.agent.onnxruntime_jobs import processor
from bcnet.data.pictures import squared
from bcnet.onnx_export.preprocess import Preprocessing
from bcnet.runtimes import runtime_here

CASES = [(480, 640, 224), (1080, 1920, 224), (480, 640, 96), (224, 224, 224)]  # height, width, side
RUNS = 60
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RECORD = Path(__file__).parent / "results/preprocessing.json"


def fastest_ms(work: Callable[[], object]) -> float:
    """The fastest of `RUNS` runs, since other work on the machine only adds time."""
    found = []
    for _ in range(RUNS):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return round(min(found) * 1000, 3)


def case(height: int, width: int, side: int) -> dict[str, object]:
    """One size of images and one of the network."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, height, width, 3)).astype(np.uint8)
    image = Image.fromarray(pixels[0])
    expected = np.asarray(squared(image, side), np.float32).transpose(2, 0, 1)
    found: dict[str, object] = {"height": height, "width": width, "side": side}
    runtime = runtime_here("onnxruntime", provider="cpu", threads=1)
    for name, by_operator in (("resize", True), ("matrices", False)):
        own = Preprocessing((height, width), side, MEAN, STD, by_operator)
        content = own.alone((1, 3, side, side))
        (made,) = runtime.predictor(content)(pixels)
        mean, std = (255 * np.array(values, np.float32)[:, None, None] for values in (MEAN, STD))
        error = np.abs(made[0] * std + mean - expected)
        samples = runtime.time_network(content, 5.0, 0.5, RUNS)
        found[f"{name}_ms"] = round(float(samples.min()), 3)
        found[f"{name}_pixel_error"] = [round(float(error.max()), 3), round(float(error.mean()), 4)]
    found["pillow_ms"] = fastest_ms(lambda: np.asarray(squared(image, side), np.float32))
    return found


def main() -> None:
    record = {
        "command": "taskset -c 0 python benchmarks/preprocessing.py",
        "date": datetime.date.today().isoformat(),
        "machine": f"{processor()}, {platform.machine()}, one thread, load {os.getloadavg()[0]:.1f}",
        "unit": "ms, the fastest of 60 runs; pixel_error: largest and mean, of 255",
        "rows": [case(*own) for own in CASES],
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
