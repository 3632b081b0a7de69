"""How many candidates a second a latency table prices, against looking up every layer's array in turn.

    taskset -c 0 python benchmarks/price_speed.py --folder runs/price_speed

MobileNetV2 at 224 px and the digits network, each with a table that `build_lut` measures here and that is
kept in the folder. The straightforward way is bcnet's first one: an array for layers that follow the same
groups, of their milliseconds and of their weights, each indexed by NumPy with a column of indices a group.
Both ways price the same random networks, in turn, in one process on one thread, and have to agree. They do so
with and without the calibration's term of weights that come from memory (its size does not matter here).
Single networks are priced by calls of the model, as the repair of candidates does it; the straightforward
way prices an array of one. Figures are medians of the rounds, and their quartiles; seconds are the
processor's, so that others on the machine disturb them less.
"""

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy and PyTorch are loaded
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lut_error import load_network
from train_step import _processor

from bcnet.config import ModelConfig
from bcnet.hw_profiles import HwProfile, load_profile
from bcnet.latency_tables.model import LatencyModel
from bcnet.latency_tables.table import LatencyTable
from bcnet.models import build_model
from bcnet.onnx_export.onnx_supernet import OnnxSupernet
from bcnet.pipeline.build_lut import build_lut
from bcnet.runs import json_bytes, write_file
from bcnet.space.discover import discover_space
from bcnet.space.width_space import Widths
from bcnet.training.loop import keep_freed_memory

GOAL = 1e6
Arrays = list[tuple[tuple[int, ...], np.ndarray]]


def main() -> None:
    """Parse, build what is missing, measure, print."""
    parser = argparse.ArgumentParser(description="candidates a second that a latency table prices")
    parser.add_argument("--folder", type=Path, required=True, help="where tables are kept")
    parser.add_argument("--device", default="cpu", help="hardware profile")
    parser.add_argument("--networks", type=int, default=100_000, help="networks priced at once")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write all rounds there")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    profile = load_profile(options.device)
    machine = f"{_processor()}, one thread, Python {platform.python_version()}, NumPy {np.__version__}"
    print(f"{machine}; {options.networks} networks at once, {options.rounds} rounds\n")
    print("| network | memory term | first way, networks/s | now | times | single, first way, us | now |")
    print("|---|---|---|---|---|---|---|")
    results = []
    for name, graph in (
        ("mobilenet_v2-224", load_network("mobilenet_v2-224", profile)),
        ("digits", digits(profile)),
    ):
        for memory in (False, True):
            model = bound(graph, profile, options.folder / name, memory)
            found = measure(model, options.networks, options.rounds)
            results.append({"network": name, "memory": memory, **found})
            times = np.array(found["now"]) / np.array(found["first"])
            print(
                f"| {name} | {'yes' if memory else 'no'} | {_quartiles(found['first'])} "
                f"| {_quartiles(found['now'])} | {np.median(times):.0f} "
                f"| {np.median(found['first_single_us']):.0f} | {np.median(found['now_single_us']):.1f} |",
                flush=True,
            )
    worst = min(float(np.median(found["now"])) for found in results)
    print(f"\ngoal: {GOAL:,.0f} a second on one core; the slowest here: {worst:,.0f}")
    if options.json:
        write_file(options.json, json_bytes({"machine": machine, "results": results}))


def digits(profile: HwProfile) -> OnnxSupernet:
    """The digits network."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(), 1, 10)
    shape = (profile.batch, 1, 32, 32)
    space = discover_space(model, torch.zeros(shape), channel_multiple=profile.channel_multiple)
    return OnnxSupernet(model, space, shape)


def bound(graph: OnnxSupernet, profile: HwProfile, folder: Path, memory: bool) -> LatencyModel:
    """The network's table, built where it is missing, with or without a term for weights from memory."""
    path = folder / "table.json"
    if not path.exists():
        table = LatencyTable(profile.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        build_lut(graph, profile, table, path=path)
        table.save(path)
    table = LatencyTable.load(path)
    (_, setting), calibration = next(iter(table.calibrations.items()))
    calibration = replace(calibration, memory_ms_per_mb=0.2 if memory else 0.0)
    return LatencyModel(table, setting, graph.slots, [g.choices for g in graph.space.groups], calibration)


def measure(model: LatencyModel, count: int, rounds: int) -> dict[str, list[float]]:
    """Networks a second of both ways, and microseconds a single network."""
    first = FirstWay(model)
    rng = np.random.default_rng(0)
    indices = rng.integers([len(own) for own in model.choices], size=(count, len(model.choices)))
    np.testing.assert_allclose(model.price_many(indices), first.price_many(indices), rtol=1e-9)
    single = [
        Widths(own[i] for own, i in zip(model.choices, index, strict=True))
        for index in indices[:300].tolist()
    ]
    assert [model(widths) for widths in single] == model.price_many(indices[:300]).tolist()
    found: dict[str, list[float]] = {"first": [], "now": [], "first_single_us": [], "now_single_us": []}
    for _ in range(rounds):
        found["first"].append(count / _seconds(first.price_many, indices))
        found["now"].append(count / _seconds(model.price_many, indices))
        found["first_single_us"].append(_seconds(lambda: [first(w) for w in single]) / len(single) * 1e6)
        found["now_single_us"].append(_seconds(lambda: [model(w) for w in single]) / len(single) * 1e6)
    return found


class FirstWay:
    """The straightforward look-ups."""

    def __init__(self, model: LatencyModel) -> None:
        self.model = model
        self.layers: Arrays = model._arrays
        weights: dict[tuple[int, ...], np.ndarray] = {}
        for groups, specs in model._specs:
            array = np.zeros([*(len(model.choices[group]) for group in groups), 2])
            for index, spec in specs.items():
                array[index] = model._rows.weights_mb(spec)
            weights[groups] = weights[groups] + array if groups in weights else array
        self.weights: Arrays = list(weights.items())

    def price_many(self, indices: np.ndarray) -> np.ndarray:
        """Latencies in ms for choice indices (N, groups)."""
        calibration = self.model.calibration
        assert calibration is not None
        layers = np.zeros(len(indices))
        for groups, array in self.layers:
            layers += array[tuple(indices[:, group] for group in groups)]
        if not calibration.memory_ms_per_mb:
            return calibration.whole_ms(layers)
        weights = np.zeros((len(indices), 2))
        for groups, array in self.weights:
            weights += array[tuple(indices[:, group] for group in groups)]
        evicted = self.model._evicted(weights[:, 0], weights[:, 1])
        return calibration.whole_ms(layers, evicted)

    def __call__(self, widths: Widths) -> float:
        """The latency in ms of one network."""
        choices = self.model.choices
        index = [own.index(width) for own, width in zip(choices, widths, strict=True)]
        return float(self.price_many(np.array([index]))[0])


def _seconds(function: Callable[..., Any], *given: Any) -> float:
    start = time.process_time()
    function(*given)
    return time.process_time() - start


def _quartiles(values: list[float]) -> str:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:,.0f} ({low:,.0f} to {high:,.0f})"


if __name__ == "__main__":
    main()
