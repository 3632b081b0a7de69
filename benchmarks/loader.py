"""What reading images costs: memory while training, the start of a command, images a second.

    python benchmarks/loader.py --images 50000 --folder /tmp/photographs

Writes a folder of JPEG files of 500 x 375 pixels once. Memory: peak of a process that trains a small network
for some steps, less that of one that trains on a batch in memory. Beside it those of its worker processes:
the sum of their peaks, which include what they share with it, and of what is theirs alone after the last
step. Opening the data, with `data.mean` and without: median seconds of the wall clock and of the processor;
`started` includes Python and imports. Throughput: batches of decoded, cropped and mirrored images, by
torchvision's dataset and transforms in a DataLoader, and by bcnet streaming and from its cache, alternately,
with as many workers. Prints one JSON object; `--json` also writes it to a file.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from recorded import how_made

from bcnet.config import DataConfig
from bcnet.data.dataset import load_data
from bcnet.data.training_batches import TrainingBatches

CLASSES, SIZE, SIDE, BATCH, BATCHES = 100, (500, 375), 224, 64, 12
Batches = Generator[tuple[Any, Any], None, None]  # endless, of (inputs, targets)
PARTS = ("train", "test")  # each has a cache of its own
NORMALISED = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
# Opens the folder and trains some steps; reports the seconds of opening and the memory in MB.
TRAINING = """
import json, multiprocessing, re, sys, time
from pathlib import Path
import torch
from torch import nn
from bcnet.config import DataConfig
from bcnet.data.dataset import load_data
from bcnet.data.image_data import ImageData
from bcnet.data.splits import Split
from bcnet.data.training_batches import TrainingBatches
def memory(process, file, kind):
    found = re.findall(kind + r":\\s*(\\d+) kB", Path(f"/proc/{process}/{file}").read_text())
    return sum(map(int, found)) * 1.024e-3
settings, steps, launched = json.loads(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
begun, begun_cpu = time.time(), time.process_time()
if settings:
    data = load_data(DataConfig(**settings), 0)
    digest = data.digest()
else:
    zeros = Split(torch.zeros((64, 3, 224, 224), dtype=torch.uint8), torch.zeros(64, dtype=torch.int64))
    data = ImageData(zeros, zeros, zeros, ("a",), (0.5,) * 3, (0.5,) * 3)
opened, opened_cpu = time.time(), time.process_time()
found = {
    "opened_s": opened - begun,
    "opened_cpu_s": opened_cpu - begun_cpu,
    "started_s": opened - launched,
    "started_cpu_s": opened_cpu,
    "opened_peak_mb": memory("self", "status", "VmHWM"),
    "workers_mb": 0.0,
    "workers_private_mb": 0.0,
}
network = nn.Sequential(
    nn.Conv2d(3, 8, 7, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 100)
)
done = 0
while done < steps:
    with TrainingBatches(data, 64, 0, "cpu") as source:
        for inputs, targets in source.epoch(done):
            nn.functional.cross_entropy(network(inputs), targets).backward()
            done += 1
            if done == steps:
                break
        for worker in multiprocessing.active_children() if done == steps else ():
            found["workers_mb"] += memory(worker.pid, "status", "VmHWM")
            found["workers_private_mb"] += memory(worker.pid, "smaps_rollup", r"Private_\\w+")
print(json.dumps(found | {"process_mb": memory("self", "status", "VmHWM")}))
"""


def main() -> None:
    """Parse, write the folder where it is missing, measure, print."""
    parser = argparse.ArgumentParser(description="what reading images costs")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--folder", type=Path, required=True, help="where the photographs are kept")
    parser.add_argument("--steps", type=int, default=200, help="training steps of the memory measurement")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the result there")
    options = parser.parse_args()
    photographs = options.folder / f"{options.images}"
    if not photographs.exists():
        write_photographs(photographs, options.images)
    load = os.getloadavg()[0]
    cache = options.folder / "cache"
    stored = {
        **{"name": f"imagefolder:{photographs}", "image_size": SIDE, "cache": str(cache)},
        **{"storage": "disk", "workers": options.workers, "flip": True, "shift": 0},
    }
    bare = training({}, options.steps)
    before = set(cache.glob("*/"))
    first = training({**stored, **NORMALISED}, 0)
    decoded = len(set(cache.glob("*/")) - before) == len(PARTS)  # not what an earlier call left to do
    ways = {"disk": training({**stored, **NORMALISED}, options.steps)}
    ways["stream"] = training({**stored, **NORMALISED, "storage": "stream"}, max(1, options.steps // 4))
    found = {
        **how_made(),
        "images": options.images,
        "image_size": SIZE,
        "decoded": decoded,
        "decoding": decoding(first, bare) if decoded else None,
        "open_again": {
            "with data.mean": opening({**stored, **NORMALISED}, options.rounds),
            "without data.mean": opening(stored, options.rounds),
        },
        "zeros_mb": round(bare["process_mb"]),
        "peak_mb_above_zeros": {
            name: {
                "process": round(own["process_mb"] - bare["process_mb"]),
                "workers": round(own["workers_mb"]),
                "workers_private_at_the_end": round(own["workers_private_mb"]),
            }
            for name, own in ways.items()
        },
        "images_per_second": throughput(photographs, stored, options.workers, options.rounds),
        "load_average_before": load,
        "cores": len(os.sched_getaffinity(0)),
    }
    text = json.dumps(found, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


def write_photographs(folder: Path, count: int) -> None:
    """JPEG files of smooth random images with some noise, which take about 40 KB each."""
    rng = np.random.default_rng(0)
    unfinished = folder.with_name(folder.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    noise = rng.normal(0, 12, (SIZE[1] + 64, SIZE[0] + 64, 3))
    for number in range(count):
        part = PARTS[number % 50 == 0]
        label = number // 50 % CLASSES
        path = unfinished / part / f"{label:03d}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        left, top = rng.integers(0, 64, 2)
        pixels = np.asarray(coarse.resize(SIZE, Image.Resampling.BICUBIC), dtype=np.float64)
        pixels = pixels + noise[top : top + SIZE[1], left : left + SIZE[0]]
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    unfinished.rename(folder)


def training(settings: dict[str, object], steps: int) -> dict[str, float]:
    """Seconds to open the data, and the memory of a process that trains on it and of its workers."""
    command = [sys.executable, "-c", TRAINING, json.dumps(settings), str(steps), str(time.time())]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


def decoding(first: dict[str, float], bare: dict[str, float]) -> dict[str, float]:
    """What it took to open images that had not been decoded."""
    return {
        "opened_s": round(first["opened_s"], 1),
        "opened_cpu_s": round(first["opened_cpu_s"], 1),
        "peak_mb_above_zeros": round(first["opened_peak_mb"] - bare["opened_peak_mb"]),
    }


def opening(settings: dict[str, object], rounds: int) -> dict[str, float]:
    """Seconds of opening the data, the median of several processes, with their start and without."""
    found = [training(settings, 0) for _ in range(rounds)]
    names = ("opened_s", "opened_cpu_s", "started_s", "started_cpu_s")
    return {name: round(statistics.median(own[name] for own in found), 2) for name in names}


def throughput(folder: Path, stored: dict[str, object], workers: int, rounds: int) -> dict[str, object]:
    """Images a second of each way, the median of alternating rounds, and ratios to torchvision's."""
    ways: dict[str, Callable[[], Batches]] = {
        "torchvision": reference(folder, workers),
        "stream": ours({**stored, "storage": "stream"}),
        "disk": ours(stored),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            batches = way()
            next(batches)  # the processes have started
            begun = time.perf_counter()
            read = sum(len(targets) for _, targets in islice(batches, BATCHES))
            seconds[name].append((time.perf_counter() - begun) / read)
            batches.close()  # its processes would disturb the next one
    ratios = [a / b for a, b in zip(seconds["torchvision"], seconds["stream"], strict=True)]
    return {
        **{name: round(1 / statistics.median(own)) for name, own in seconds.items()},
        "stream_to_torchvision": round(statistics.median(ratios), 3),
        "rounds_stream_to_torchvision": [round(ratio, 3) for ratio in ratios],
    }


def ours(settings: dict[str, object]) -> Callable[[], Batches]:
    """bcnet's training batches, epoch after epoch."""
    data = load_data(DataConfig(**settings), 0)  # type: ignore[arg-type]

    def batches() -> Batches:
        with TrainingBatches(data, BATCH, 0, "cpu") as source:
            for epoch in count():
                yield from source.epoch(epoch)

    return batches


def reference(folder: Path, workers: int) -> Callable[[], Batches]:
    """torchvision's classification reference: ImageFolder, resize, crop, flip, normalise, DataLoader."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.Resize(SIDE),
            v2.CenterCrop(SIDE),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float, scale=True),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    dataset = ImageFolder(str(folder / "train"), transform)
    loader = torch.utils.data.DataLoader(dataset, BATCH, shuffle=True, num_workers=workers)

    def batches() -> Batches:
        while True:
            yield from loader

    return batches


if __name__ == "__main__":
    main()
