"""How far latency predictions are off, on subnets that were never used for fitting.

Builds a latency table for a network, then measures random subnets from narrow to wide as whole networks, each
twice with all the others in between: the difference between the two is the noise that no table can beat.

    python benchmarks/lut_error.py --model torchvision:mobilenet_v2 --image-size 224 --subnets 60
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from bcnet.config import ModelConfig
from bcnet.hw_profiles import load_profile
from bcnet.latency_tables.model import LatencyModel
from bcnet.latency_tables.table import LatencyTable
from bcnet.models import build_model
from bcnet.pipeline.build_lut import build_lut, rank_correlation, spread_widths
from bcnet.progress import progress_bar
from bcnet.supernet.discover import discover_space
from bcnet.supernet.fit import keep_freed_memory
from bcnet.supernet.measure import measure_network
from bcnet.supernet.onnx_graph import OnnxSupernet


def errors(predicted: np.ndarray, measured: np.ndarray) -> dict[str, float]:
    """Mean absolute error, shares within 5 and 10 %, rank correlation."""
    relative = np.abs(predicted - measured) / measured
    return {
        "mean_abs_error": float(relative.mean()),
        "within_5": float((relative <= 0.05).mean()),
        "within_10": float((relative <= 0.10).mean()),
        "spearman": rank_correlation(predicted, measured),
    }


def main() -> None:
    """Parse, build, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="torchvision:mobilenet_v2", help="as in bcnet.toml")
    parser.add_argument("--image-size", type=int, default=224, help="pixels")
    parser.add_argument("--subnets", type=int, default=60, help="subnets to measure")
    parser.add_argument("--bins", type=int, default=8, help="width choices a group")
    parser.add_argument("--device", default="cpu", help="hardware profile")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()

    keep_freed_memory()
    torch.manual_seed(0)
    profile = load_profile(arguments.device)
    channels = 1 if arguments.model == "digits" else 3
    model = build_model(ModelConfig(name=arguments.model), channels, 10 if channels == 1 else 1000)
    shape = (profile.batch, channels, arguments.image_size, arguments.image_size)
    space = discover_space(
        model, torch.zeros(shape), bins=arguments.bins, channel_multiple=profile.channel_multiple
    )
    graph = OnnxSupernet(model, space, shape)
    table = LatencyTable(profile.name)
    start = time.perf_counter()
    report = build_lut(graph, profile, table)
    seconds = time.perf_counter() - start
    choices = [group.choices for group in space.groups]
    latency = LatencyModel(table, report.calibration.setting, graph.slots, choices, report.calibration)

    rng = np.random.default_rng(arguments.seed)
    subnets = spread_widths(space, rng, arguments.subnets)
    rounds = []
    with progress_bar("measuring subnets", 2 * len(subnets)) as advance:
        for _ in range(2):
            measured = np.zeros(len(subnets))
            for index in rng.permutation(len(subnets)):
                measured[index] = measure_network(graph.variant(subnets[index]), profile, 0.3).median_ms
                advance("")
            rounds.append(measured)
    best = np.minimum(*rounds)
    predicted = np.array([latency(widths) for widths in subnets])
    raw = (predicted - report.calibration.offset_ms) / report.calibration.scale
    macs = np.array([space.macs(widths) for widths in subnets], dtype=float)
    line = np.polyval(np.polyfit(macs, best, 1), macs)
    figures = {
        "table, calibrated": errors(predicted, best),
        "table, raw sum of layers": errors(raw, best),
        "line through MACs, fitted on these very subnets": errors(line, best),
        "noise: the same subnet again": errors(rounds[0], rounds[1]),
    }
    print(
        f"{arguments.model} at {arguments.image_size} px, {len(space.groups)} groups: {report.rows} rows "
        f"from {report.networks} networks in {seconds:.0f} s; {len(subnets)} subnets of {best.min():.3f} "
        f"to {best.max():.3f} ms"
    )
    print(f"{'':<50}{'error':>8}{'<= 5 %':>8}{'<= 10 %':>9}{'Spearman':>10}")
    for name, row in figures.items():
        print(
            f"{name:<50}{row['mean_abs_error']:>8.2%}{row['within_5']:>8.0%}{row['within_10']:>9.0%}"
            f"{row['spearman']:>10.4f}"
        )
    if arguments.json:
        values = {"model": arguments.model, "image_size": arguments.image_size, "build_seconds": seconds}
        text = json.dumps({**values, "rows": report.rows, "figures": figures}, indent=2)
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
