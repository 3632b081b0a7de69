"""What it costs to train several subnets at once, each on its part of a batch, as PSE-Net does.

Each round draws random widths and takes four steps on one batch, in this order: on slices, with masks, on
slices again, one by one.
- With masks: one forward and backward pass of the whole network over the batch (`MaskedParts`).
- On slices: each subnet on its slices, over its part of the batch alone (`SlicedParts`): the same gradients.
- One by one: each subnet on its slices, over the whole batch, as other supernets are trained.
A step is forward and backward passes, without the optimiser, which is the same for all. Each round begins
with untimed steps, so that no way pays for kernels that are compiled at their first use.

A ratio is over the mean of the two steps on slices; its noise is the second of these over the first. On a
processor, times are processor time, which depends less on what else runs.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from train_step import _processor, _quartiles

from bcnet.config import ModelConfig
from bcnet.models import build_model
from bcnet.space.discover import discover_space
from bcnet.space.subnet import Subnet
from bcnet.space.supernet import Supernet
from bcnet.training.loop import keep_freed_memory
from bcnet.training.parts import MaskedParts, SlicedParts
from bcnet.training.recipe import Recipe
from bcnet.training.supernet_step import SlicedPaths, trainable

Step = Callable[[list[Subnet]], list[torch.Tensor]]


@dataclass(frozen=True)
class Network:
    """A network and the size of its images."""

    name: str
    channels: int
    size: int
    args: dict[str, Any]


NETWORKS = {
    own.name: own
    for own in (
        Network("digits", 1, 28, {}),
        Network("cbm-mobilenet", 3, 32, {"widths": [32, 192, 192, 192, 64, 384, 256]}),
        Network("torchvision:mobilenet_v2", 3, 64, {}),
        Network("torchvision:resnet18", 3, 64, {}),
    )
}


def main() -> None:
    """Measure, print, write."""
    options = _options()
    keep_freed_memory()
    machine = (
        torch.cuda.get_device_name()
        if options.device == "cuda"
        else f"{_processor()}, {torch.get_num_threads()} thread(s)"
    )
    record = {
        "command": f"python benchmarks/parallel_step.py {' '.join(_measuring(sys.argv[1:]))}".strip(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{machine}, torch {torch.__version__}, Python {platform.python_version()}",
        "load": list(os.getloadavg()),
        "unit": f"ms, and ratios to a step on slices: quartiles of {options.rounds} rounds; "
        f"{options.parts} subnets, {options.batch} images",
        "rows": [],
    }
    print(record["machine"])
    for name in options.networks:
        rounds = np.array(measure(NETWORKS[name], options)[options.warmups :])
        first, masked, again, serial = rounds.T
        sliced = (first + again) / 2
        row = {
            "network": name,
            "sliced_ms": round(1e3 * float(np.median(sliced)), 2),
            "masked_ms": round(1e3 * float(np.median(masked)), 2),
            "masked": _quartiles(masked / sliced),
            "one_by_one": _quartiles(serial / sliced),
            "noise": _quartiles(again / first),
        }
        record["rows"].append(row)
        print(json.dumps(row), flush=True)
    record["load_afterwards"] = list(os.getloadavg())
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def measure(network: Network, options: argparse.Namespace) -> list[list[float]]:
    """Seconds of the four steps of each round, the warm-ups first."""
    torch.manual_seed(options.seed)
    config = ModelConfig(name=network.name, args=network.args)
    model = build_model(config, network.channels, options.classes).to(options.device).train()
    shape = (network.channels, network.size, network.size)
    example = torch.zeros(1, *shape, device=options.device)
    space = discover_space(model, example, method="psenet")
    recipe = Recipe(1, 0.01, batch_size=options.batch, device=options.device)
    paths = SlicedPaths(trainable(Supernet.with_extra(model.train(), space), options.device), recipe)
    images = torch.randn(options.batch, *shape, device=options.device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(options.classes, (options.batch,), device=options.device)
    sliced, masked = SlicedParts(paths), MaskedParts(paths)
    rng = np.random.default_rng(options.seed)

    def one_by_one(subnets: list[Subnet]) -> Any:
        return [paths(subnet, images, labels, len(subnets))[0] for subnet in subnets]

    now = time.perf_counter if options.device == "cuda" else time.process_time

    def seconds(step: Step, subnets: list[Subnet]) -> float:
        start = now()
        float(torch.stack(step(subnets)).sum())  # waits for a GPU
        return now() - start

    with_masks: Step = partial(masked, inputs=images, targets=labels)
    on_slices: Step = partial(sliced, inputs=images, targets=labels)
    rounds = []
    for _ in range(options.warmups + options.rounds):
        subnets = [Subnet.at(space, space.random(rng)) for _ in range(options.parts)]
        for step in (on_slices, with_masks, one_by_one):
            step(subnets)
        rounds.append([seconds(own, subnets) for own in (on_slices, with_masks, on_slices, one_by_one)])
    return rounds


def _measuring(arguments: list[str]) -> list[str]:
    """The arguments without the file that is written."""
    if "--json" not in arguments:
        return arguments
    place = arguments.index("--json")
    return arguments[:place] + arguments[place + 2 :]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS), help="default: all")
    add("--device", default="cpu", choices=["cpu", "cuda"], help="where to train (default: cpu)")
    add("--parts", type=int, default=4, help="subnets of a step (default: 4)")
    add("--batch", type=int, default=64, help="images a step (default: 64)")
    add("--classes", type=int, default=10, help="outputs of the network (default: 10)")
    add("--rounds", type=int, default=15, help="rounds that count, each with new widths (default: 15)")
    add("--warmups", type=int, default=3, help="rounds before them (default: 3)")
    add("--seed", type=int, default=0, help="seed of weights, images and widths (default: 0)")
    add("--json", type=Path, metavar="FILE", help="also write everything measured to FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
