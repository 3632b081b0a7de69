"""The runtime "torch" on a GPU from end to end: tables, searches, and the winners as whole networks.

    python benchmarks/torch_cuda.py --folder runs/torch_cuda

For MobileNetV2 and ResNet-18 at 224 px: builds a latency table of four choices a group, compares predictions
with subnets that were not fitted, searches at three budgets, and verifies the winners: latency against
prediction and budget, and outputs against ONNX Runtime on the processor. In place of an accuracy, the score
rises with every channel (see `budget_held.py`). Meant for less than ten minutes on one GPU. Figures and
versions are printed as Markdown, and written to the folder, with a JSON file. Ends with code 3 where a check
fails. `--profile NAME` takes another hardware profile, such as `cpu`, which tries the script without a GPU.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from budget_held import pressing_score

from bcnet.config import ModelConfig
from bcnet.errors import BcnetError
from bcnet.hw_profiles import HwProfile, load_profile
from bcnet.latency_tables.model import LatencyModel
from bcnet.latency_tables.table import LatencyTable
from bcnet.measure.network_design import calibration_subnets
from bcnet.measure.network_latency import measure_network, runtime_of
from bcnet.models import build_model
from bcnet.onnx_export.onnx_supernet import OnnxSupernet
from bcnet.pipeline.build_lut import build_lut
from bcnet.pipeline.search_evolved import search
from bcnet.runs import json_bytes, write_file
from bcnet.runtimes import runtime_here
from bcnet.space.discover import discover_space
from bcnet.space.width_space import Widths
from bcnet.width_search.budget import Budget
from bcnet.width_search.evolution import SearchSettings, fastest

NETWORKS = ("mobilenet_v2-224", "resnet18-224")
BUDGETS = (0.25, 0.5, 0.75)  # of the way from the fastest network's latency to the full one's
HELD_OUT = 12
OVER = 0.02  # a winner may be so far above its budget
OUTPUT_ERROR = {"fp32": 1e-3, "fp16": 2e-2}  # of the largest output


def load_graph(name: str, profile: HwProfile, choices: int) -> OnnxSupernet:
    """The network called `torchvision name-pixels`, with random weights, at the profile's setting."""
    torch.manual_seed(0)
    architecture, side = name.rsplit("-", 1)
    model = build_model(ModelConfig(name=f"torchvision:{architecture}"), 3, 1000)
    shape = (profile.batch, 3, int(side), int(side))
    multiple = profile.channel_multiple
    space = discover_space(model, torch.zeros(shape), bins=choices, channel_multiple=multiple)
    return OnnxSupernet(model, space, shape, profile.precision)


def output_error(model: bytes, graph: OnnxSupernet, profile: HwProfile) -> float:
    """The largest difference from ONNX Runtime's outputs on the same noise, over the largest output."""
    images = np.random.default_rng(0).standard_normal(graph.example, dtype=np.float32)
    expected = runtime_here("onnxruntime").predictor(model)(images)[0]
    found = runtime_of(profile).predictor(model)(images)[0]
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def verified(
    graph: OnnxSupernet, profile: HwProfile, latency: LatencyModel, widths: Widths
) -> dict[str, Any]:
    """A network's latency once more, as a whole, and its outputs."""
    model = graph.variant(widths)
    stat = measure_network(model, profile)
    return {
        "widths": list(widths),
        "predicted_ms": float(latency(widths)),
        "median_ms": stat.median_ms,
        "p90_ms": stat.p90_ms,
        "output_error": output_error(model, graph, profile),
    }


def one_network(name: str, profile: HwProfile, choices: int) -> dict[str, Any]:
    """Table, held-out subnets, searches and winners of one network."""
    graph, table = load_graph(name, profile, choices), LatencyTable(profile.name)
    report = build_lut(graph, profile, table)
    offered = [group.choices for group in graph.space.groups]
    latency = LatencyModel(table, report.calibration.setting, graph.slots, offered, report.calibration)
    fitted = set(calibration_subnets(graph.space, 0))
    others = [widths for widths in calibration_subnets(graph.space, 1) if widths not in fitted][:HELD_OUT]
    rounds = [[measure_network(graph.variant(w), profile, 0.3).median_ms for w in others] for _ in range(2)]
    first, second = np.array(rounds)
    predicted = latency.price_many(latency.indices(others))
    lowest, highest = latency(fastest(graph.space, latency)), latency(graph.space.largest())
    full = verified(graph, profile, latency, graph.space.largest())
    winners = []
    for share in BUDGETS:
        budget_ms, start = lowest + share * (highest - lowest), time.perf_counter()
        result = search(
            graph.space,
            latency,
            pressing_score,
            SearchSettings(budget=Budget(budget_ms), seed=0),
            measure_of=lambda widths: measure_network(graph.variant(widths), profile, 0.5),
        )
        seconds = time.perf_counter() - start
        found = verified(graph, profile, latency, result.best.widths)
        winners.append({"budget_ms": budget_ms, "seconds": seconds, **found})
    return {
        "network": name,
        "setting": list(profile.setting),
        "versions": table.sessions[-1].provenance,
        "probe": table.sessions[-1].probe,
        "rows": report.rows,
        "networks": report.networks,
        "table_seconds": report.seconds,
        "held_out": len(others),
        "sum_error": float(np.mean(np.abs(latency.layers_ms(latency.indices(others)) / first - 1))),
        "mean_error": float(np.mean(np.abs(predicted / first - 1))),
        "worst_error": float(np.max(np.abs(predicted / first - 1))),
        "noise": float(np.mean(np.abs(second / first - 1))),
        "full": full,
        "winners": winners,
    }


def failures(found: dict[str, Any]) -> list[str]:
    """What did not pass: a budget that was missed, outputs that differ."""
    limit = OUTPUT_ERROR[found["setting"][1]]
    wrong = []
    for entry in (found["full"], *found["winners"]):
        budget_ms = entry.get("budget_ms", np.inf)
        which = f"{found['network']} at {budget_ms:.3f} ms" if "budget_ms" in entry else found["network"]
        if entry["median_ms"] > (1 + OVER) * budget_ms:
            wrong.append(f"{which}: takes {entry['median_ms']:.4f} ms")
        if not entry["output_error"] <= limit:
            wrong.append(f"{which}: outputs are off by {entry['output_error']:.2g}, allowed are {limit:g}")
    return wrong


def tell(networks: list[dict[str, Any]], seconds: float) -> str:
    """Figures and versions as Markdown."""
    first = networks[0]
    versions = ", ".join(f"{key} {value}" for key, value in first["versions"].items())
    setting = ", ".join(str(value) for value in first["setting"])
    lines = [
        f"Setting: {setting}. Versions: {versions}. {seconds:.0f} s in all.",
        "",
        "| network | rows | networks | seconds | sum of layers off by | calibrated off by | worst | noise |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for found in networks:
        errors = (found[key] for key in ("sum_error", "mean_error", "worst_error", "noise"))
        cells = (found["network"], found["rows"], found["networks"], f"{found['table_seconds']:.0f}")
        lines.append(f"| {' | '.join([*map(str, cells), *(f'{100 * error:.1f} %' for error in errors)])} |")
    lines += [
        "",
        f"Errors are means over {first['held_out']} subnets that were not fitted; noise is what measuring "
        "them twice differs by.",
        "",
        "| network | budget ms | predicted ms | median ms | p90 ms | largest output error |",
        "|---|---|---|---|---|---|",
    ]
    for found in networks:
        for entry in (found["full"], *found["winners"]):
            budget = f"{entry['budget_ms']:.4f}" if "budget_ms" in entry else "none: full"
            times = (f"{entry[key]:.4f}" for key in ("predicted_ms", "median_ms", "p90_ms"))
            cells = [found["network"], budget, *times, f"{entry['output_error']:.1e}"]
            lines.append(f"| {' | '.join(cells)} |")
    wrong = [line for found in networks for line in failures(found)]
    lines += ["", *(wrong or ["All winners keep their budgets (2 % allowed), and all outputs agree."])]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Parse; measure; report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="where the figures go")
    add("--precision", choices=("fp32", "fp16"), default="fp16", help="default: fp16")
    add("--batch", type=int, default=1, help="images an inference (default: 1)")
    add("--networks", nargs="+", default=NETWORKS, help=f"torchvision NAME-PIXELS (default: {NETWORKS})")
    add("--choices", type=int, default=4, help="widths a group (default: 4)")
    add("--profile", help="a hardware profile instead of this GPU with the runtime torch")
    options = parser.parse_args()
    start = time.perf_counter()
    try:
        if options.profile:
            profile = load_profile(options.profile)
        else:
            profile = HwProfile(
                name="torch-cuda",
                description="this machine's first GPU, PyTorch",
                runtime="torch",
                precision=options.precision,
                batch=options.batch,
            )
        runtime_of(profile)
        networks = [one_network(name, profile, options.choices) for name in options.networks]
    except BcnetError as reason:
        print(f"torch_cuda.py: {reason}", file=sys.stderr)
        return reason.exit_code
    options.folder.mkdir(parents=True, exist_ok=True)
    text = tell(networks, time.perf_counter() - start)
    write_file(options.folder / "torch_cuda.json", json_bytes(networks))
    write_file(options.folder / "torch_cuda.md", text.encode())
    print(text)
    return 3 if any(failures(found) for found in networks) else 0


if __name__ == "__main__":
    sys.exit(main())
