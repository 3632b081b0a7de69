"""Whether a device measures the same over ssh as where it stands.

    python benchmarks/over_ssh.py

A real sshd on this machine serves as the device (as in the tests; needs openssh-server). A few networks of
MobileNetV2 at 160 px are profiled and timed in this process, over ssh, and in this process again, in turn.
Prints the ratio of each layer's and each whole network's time over ssh to the first time here, and, as noise,
that of the second time here.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from train_step import _processor

from bcnet.config import ModelConfig
from bcnet.hw_profiles import load_profile
from bcnet.measure.layer_attribution import layers_ms, undisturbed_ms
from bcnet.measure.network_design import covering_design
from bcnet.measure.network_latency import measure_network
from bcnet.models import build_model
from bcnet.onnx_export.onnx_supernet import OnnxSupernet
from bcnet.progress import progress_bar
from bcnet.space.discover import discover_space
from bcnet.training.loop import keep_freed_memory

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from sshd import Sshd

NETWORKS = 6
WAYS = ("here", "over ssh", "here again")


def main() -> None:
    """Measure in turn and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    keep_freed_memory()
    shape = (1, 3, 160, 160)
    model = build_model(ModelConfig(name="torchvision:mobilenet_v2"), 3, 1000)
    graph = OnnxSupernet(model, discover_space(model, torch.zeros(shape), bins=4, channel_multiple=8), shape)
    chosen = (graph.space.largest(), *covering_design(graph.space))[:NETWORKS]
    networks = [(widths, graph.variant(widths)) for widths in chosen]
    with tempfile.TemporaryDirectory() as folder:
        server = Sshd(Path(folder) / "sshd").start()
        os.environ["PATH"] = server.path
        near = load_profile("cpu")
        over = {"host": ("device",), "host_python": sys.executable, "host_folder": f"{folder}/there"}
        profiles = dict(zip(WAYS, (near, near.model_copy(update=over), near), strict=True))
        layers: dict[str, list[np.ndarray]] = {way: [] for way in WAYS}
        whole: dict[str, list[np.ndarray]] = {way: [] for way in WAYS}
        try:
            for network in networks:  # sent, loaded, settled
                for profile in profiles.values():
                    layers_ms(graph, *network, profile, 5)
            with progress_bar("rounds", rounds) as advance:
                for _ in range(rounds):
                    for way, profile in profiles.items():
                        layers[way].append(
                            np.array([undisturbed_ms(layers_ms(graph, *n, profile, 20)) for n in networks])
                        )
                        whole[way].append(
                            np.array([measure_network(n[1], profile, 0.2).median_ms for n in networks])
                        )
                    advance("")
        finally:
            server.stop()
    machine = f"{_processor()}, {os.cpu_count()} cores"
    print(f"{machine}, {time.strftime('%Y-%m-%d')}, Python {platform.python_version()}")
    print(f"{rounds} rounds, {NETWORKS} networks of {len(graph.slots)} layers; ratio: median (10 to 90 %)\n")
    print("| | single layers | sums of layers | whole networks |\n|---|---|---|---|")
    for way in WAYS[1:]:
        cells = []
        for times, summed in ((layers, False), (layers, True), (whole, False)):
            first, then = (
                np.median([t.sum(1) if summed else t for t in times[key]], axis=0) for key in ("here", way)
            )
            ratios = (then / np.maximum(first, 1e-6))[first > 0.002]
            low, middle, high = np.percentile(ratios, (10, 50, 90))
            cells.append(f"{middle:.3f} ({low:.3f} to {high:.3f})")
        print(f"| {way} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
