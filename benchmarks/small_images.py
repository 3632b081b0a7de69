"""What an epoch of small images in memory costs, mirrored and shifted: today, and in an earlier version.

    git worktree add earlier 8b0acec
    python benchmarks/small_images.py --earlier earlier --json benchmarks/results/small_images.json

8b0acec is the last commit in which a batch drew its random numbers from one generator; since then each item
has its own. In alternating rounds, each version reads epochs of training batches in a process of its own, on
one core; a round's seconds are the median of its epochs without the first. They are the processor's, which
other jobs disturb less than the wall clock's. Prints one JSON object; `--json` also writes it to a file.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from recorded import how_made

EPOCHS = 5  # in each round
ROOT = Path(__file__).resolve().parent.parent
# Uses only what both versions have.
EPOCH = """
import statistics, sys, time
import torch
from bcnet.data.dataset import ImageData
from bcnet.data.splits import Split
from bcnet.training.loop import batches, keep_freed_memory
from bcnet.training.recipe import Recipe
images, side, batch_size, epochs = map(int, sys.argv[1:])
torch.set_num_threads(1)
keep_freed_memory()
generator = torch.Generator().manual_seed(0)
pixels = torch.randint(256, (images, 3, side, side), dtype=torch.uint8, generator=generator)
part = Split(pixels, torch.arange(images) % 10)
few = part.take(torch.arange(10))
data = ImageData(part, few, few, ("a",) * 10, (0.5,) * 3, (0.25,) * 3, flip=True, shift=4)
recipe = Recipe(epochs=1, learning_rate=0.1, batch_size=batch_size)
seconds = []
for epoch in range(1 + epochs):
    begun = time.process_time()
    read = sum(len(targets) for _, targets in batches(data, recipe, epoch))
    seconds.append(time.process_time() - begun)
    assert read == images // batch_size * batch_size
print(statistics.median(seconds[1:]))
"""


def main() -> None:
    """Parse, measure alternately, print."""
    parser = argparse.ArgumentParser(description="what an epoch of small images in memory costs")
    parser.add_argument("--earlier", type=Path, help="a checkout of an earlier version, to compare with")
    parser.add_argument("--images", type=int, default=16_000)
    parser.add_argument("--side", type=int, default=32, help="of each image, in pixels")
    parser.add_argument("--batch", type=int, default=64, help="images of a training batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the result there")
    options = parser.parse_args()
    versions = {"today": ROOT} | ({"earlier": options.earlier.resolve()} if options.earlier else {})
    load = os.getloadavg()[0]
    sizes = (options.images, options.side, options.batch)
    seconds: dict[str, list[float]] = {name: [] for name in versions}
    for _ in range(options.rounds):
        for name, checkout in versions.items():
            seconds[name].append(epoch(checkout, sizes))
    found = {
        **how_made(),
        "images": options.images,
        "side": options.side,
        "batch": options.batch,
        "commits": {name: commit(checkout) for name, checkout in versions.items()},
        "cpu_seconds": {name: round(statistics.median(own), 3) for name, own in seconds.items()},
        "rounds": {name: [round(value, 3) for value in own] for name, own in seconds.items()},
        "load_average_before": load,
        "cores": len(os.sched_getaffinity(0)),
    }
    if options.earlier:
        ratios = [own / before for own, before in zip(seconds["today"], seconds["earlier"], strict=True)]
        found["today_to_earlier"] = round(statistics.median(ratios), 3)
    text = json.dumps(found, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


def epoch(checkout: Path, sizes: tuple[int, int, int]) -> float:
    """Processor seconds of an epoch of (images, side, batch) by the version in a checkout."""
    command = [sys.executable, "-c", EPOCH, *map(str, sizes), str(EPOCHS)]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, cwd=checkout, stdout=subprocess.PIPE, text=True, check=True
    )
    return float(done.stdout)


def commit(checkout: Path) -> str:
    """The last commit that changed the package in a checkout."""
    command = ["git", "-C", str(checkout), "log", "-1", "--format=%h", "--", "bcnet"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
