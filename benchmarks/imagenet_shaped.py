"""All stages of examples/imagenet-efficientnet-b0.toml on a small folder that is shaped like ImageNet.

    python benchmarks/imagenet_shaped.py --folder /tmp/shaped --json benchmarks/results/imagenet_shaped.json

Writes a folder of JPEG files once: 1,000 classes, a few images each, in sizes as they occur in ImageNet. Runs
the stages on it with the settings in `REDUCED` in place of the example's, in several processes by torchrun
where a stage has them, and with `PROFILE` as the device: measurements are brief and the machine may be busy,
so nearly any latency and any table are accepted. Records seconds and peak resident memory of the largest
process of each stage, and the images that one core reads a second at the example's 224 pixels, beside
torchvision's loader: by processor time, in alternating rounds. Prints one JSON object; `--json` also writes
it. A call that was killed is continued by the same one.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import torch
from loader import BATCH, BATCHES, SIDE, ours, reference
from PIL import Image
from recorded import how_made

EXAMPLE = Path(__file__).parent.parent / "examples" / "imagenet-efficientnet-b0.toml"
CLASSES = 1000
# Width and height of images of ImageNet, and their share; the shorter sides of others have a median of 375.
SIZES = {(500, 375): 0.4, (500, 333): 0.15, (375, 500): 0.1, (333, 500): 0.05}
REDUCED = {
    "data.image_size": 64,
    "data.val_images": CLASSES,
    "train.epochs": 1,
    "train.batch_size": 64,
    "train.warmup_epochs": 0.5,
    "space.bins": 3,
    "search.population": 4,
    "search.generations": 1,
    "search.measured": 2,
    "search.recalibration_images": 256,
    "slice.epochs": 1,
    "export.latency_tolerance": 5.0,
}
# The shipped profile times each network for a second, and refuses a table of more than 5 % noise.
PROFILE = """
description = "this machine, timed briefly"
runtime = "onnxruntime"
channel_multiple = 8
warmup_ms = 2.0
seconds = 0.05
iterations = 10
table_noise = 20.0
"""
STAGES = ("train", "build-lut", "search", "slice", "export")
SHARED = ("train", "search", "slice")  # in several processes


def main() -> None:
    """Parse, write the folder where it is missing, run the stages, print."""
    parser = argparse.ArgumentParser(description="all stages of the ImageNet example on a small folder")
    parser.add_argument("--folder", type=Path, required=True, help="where images and the run are kept")
    parser.add_argument("--images", type=int, default=5, help="training images of each class")
    parser.add_argument("--processes", type=int, default=2, help="processes that train and search")
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds of the loaders")
    parser.add_argument("--json", type=Path, help="also write the result there")
    options = parser.parse_args()
    images = options.folder / "imagenet"
    if not images.exists():
        write_images(images, options.images)
    (options.folder / "hw_profiles").mkdir(exist_ok=True)
    (options.folder / "hw_profiles" / "cpu.toml").write_text(PROFILE)
    print("in place of the example's:", ", ".join(f"{key} = {value}" for key, value in REDUCED.items()))
    stages = run_all(options.folder, options.processes)
    stored = {
        **{"name": f"imagefolder:{images}", "image_size": SIDE, "cache": str(options.folder / "cache")},
        **{"workers": 0, "mean": (0.5,) * 3, "std": (0.5,) * 3, "flip": True, "shift": 0},
    }
    found = {
        **how_made(),
        "classes": CLASSES,
        "files": sum(1 for _ in images.rglob("*.JPEG")),
        "reduced": REDUCED,
        "profile": tomllib.loads(PROFILE),
        "processes": options.processes,
        "stages": stages,
        "verified": json.loads((options.folder / "runs/imagenet/export/verify.json").read_text())["passed"],
        "images_per_second_of_a_core": of_a_core(images, stored, options.rounds),
        "load_average": os.getloadavg()[0],
        "cores": len(os.sched_getaffinity(0)),
    }
    (options.folder / "stages.json").unlink()
    text = json.dumps(found, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


def write_images(folder: Path, count: int) -> None:
    """`count` images of each class for training and one for testing: smooth random ones with some noise."""
    rng = np.random.default_rng(0)
    unfinished = folder.with_name(folder.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    noise = rng.normal(0, 12, (2048, 2048, 3))
    for label in range(CLASSES):
        for part, images in (("train", count), ("val", 1)):
            own = unfinished / part / f"n{label:08d}"
            own.mkdir(parents=True)
            for number in range(images):
                width, height = size(rng)
                coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
                smooth = np.asarray(
                    coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64
                )
                pixels = (smooth + noise[:height, :width]).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(own / f"{own.name}_{number}.JPEG", "JPEG", quality=90)
    unfinished.rename(folder)


def size(rng: np.random.Generator) -> tuple[int, int]:
    """Width and height of an image."""
    common = list(SIZES)
    drawn = rng.choice(len(common) + 1, p=[*SIZES.values(), 1 - sum(SIZES.values())])
    if drawn < len(common):
        return common[drawn]
    shorter = float(np.clip(rng.lognormal(np.log(375), 0.5), 60, 1200))
    longer = shorter * rng.uniform(1, 1.7)
    sides = (round(shorter), round(longer))
    return sides if rng.random() < 0.3 else sides[::-1]


def run_all(folder: Path, processes: int) -> dict[str, dict[str, float]]:
    """What each stage took; a stage that a killed call of this program has finished is not run again."""
    kept = folder / "stages.json"
    if not kept.exists():
        for made in ("runs", "latency_tables", ".cache", "cache"):
            shutil.rmtree(folder / made, ignore_errors=True)
    stages: dict[str, dict[str, float]] = json.loads(kept.read_text()) if kept.exists() else {}
    for stage in STAGES:
        if stage not in stages:
            stages[stage] = run(stage, folder, processes)
            kept.write_text(json.dumps(stages))
    return stages


def run(stage: str, folder: Path, processes: int) -> dict[str, float]:
    """Seconds of a stage, and the peak resident memory of its largest process in MB."""
    several = stage in SHARED and processes > 1
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)] if several else []
    # After "--" torchrun takes no option for its own: it would take --run for its --run-path.
    module = ["-m", "--", "bcnet"] if several else ["-m", "bcnet"]
    words = [sys.executable, *torchrun, *module, stage, "--config", str(EXAMPLE), "--run", "imagenet"]
    for key, value in REDUCED.items():
        words += ["--set", f"{key}={value}"]
    begun = time.perf_counter()
    process = subprocess.Popen(words, cwd=folder)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 4):  # 4: done, but its latency was not verified, as on a busy machine
        raise SystemExit(f"bcnet {stage} ended with {process.returncode}")
    return {
        "processes": processes if several else 1,
        "seconds": round(seconds, 1),
        "peak_mb": round(used.ru_maxrss * 1.024e-3),
        "exit_code": process.returncode,
    }


def of_a_core(images: Path, stored: dict[str, object], rounds: int) -> dict[str, object]:
    """Images a second of processor time of each way, the median of rounds, and ratios to torchvision's."""
    torch.set_num_threads(1)
    ways = {
        "torchvision": reference(images, 0),
        "stream": ours({**stored, "storage": "stream"}),
        "disk": ours({**stored, "storage": "disk"}),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            batches = way()
            next(batches)
            begun = time.process_time()
            for _ in range(BATCHES):
                next(batches)
            seconds[name].append((time.process_time() - begun) / BATCHES / BATCH)
    ratios = {
        name: [round(a / b, 3) for a, b in zip(seconds["torchvision"], own, strict=True)]
        for name, own in seconds.items()
        if name != "torchvision"
    }
    return {
        **{name: round(1 / statistics.median(own)) for name, own in seconds.items()},
        **{f"{name}_to_torchvision": statistics.median(own) for name, own in ratios.items()},
        "rounds": ratios,
    }


if __name__ == "__main__":
    main()
