"""FastNAS of NVIDIA Model Optimizer (package `nvidia-modelopt`) as a competitor.

In: a job. Out: the network that it finds at a share of the multiply-accumulates, which is adjusted until the
measured latency meets the target: FastNAS itself does not consider latency. Counting multiply-accumulates
needs `torchprofile` 0.0.4.
"""

import copy
import io
import tempfile
from collections.abc import Iterator
from contextlib import closing, redirect_stdout
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bcnet.bench.outside_job import Job, package, quiet
from bcnet.progress import say
from bcnet.space.inputs import to_device
from bcnet.training.loop import batches
from bcnet.width_search.scorer import evaluate_network

ROUNDS = 5  # of adjusting the share of multiply-accumulates
IMAGES = 512  # validation images that its networks are scored on
BATCHES = 8  # training batches for batch-norm statistics
MOST = 0.98  # of the multiply-accumulates: FastNAS cannot keep all
USED = 0.97  # of the target: a faster network is followed by a larger one


class Loader:
    """The training batches that batch-norm statistics are computed from: the same each time."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __iter__(self) -> Iterator[Any]:
        with closing(batches(self._job.data, self._job.recipe, 0)) as some:
            for batch in islice(some, BATCHES):
                yield to_device(batch, "cpu")

    def __len__(self) -> int:
        return BATCHES


def fastnas(job: Job) -> nn.Module:
    """The largest network that meets the target latency, of a few rounds."""
    prune = package("modelopt.torch.prune", "nvidia-modelopt")
    count = min(IMAGES, len(job.data.val))
    val = job.data.val.take(torch.linspace(0, len(job.data.val) - 1, count).long())

    def score(model: nn.Module) -> float:
        return 100 * evaluate_network(model, job.data, val, job.recipe.task).accuracy

    share, lowest = min(job.target, MOST), float("inf")
    best: tuple[float, nn.Module | None] = 0.0, None
    with tempfile.TemporaryDirectory() as folder:
        config = {
            "data_loader": Loader(job),
            "score_func": score,
            "checkpoint": str(Path(folder) / "sensitivity.pth"),
            "verbose": False,
        }
        inside, outside = (
            0.0,
            MOST,
        )  # shares of the multiply-accumulates that met the target, and that did not
        for _ in range(ROUNDS):
            model = copy.deepcopy(job.model)
            with quiet(), redirect_stdout(io.StringIO()):
                found, _ = prune.prune(
                    model, [("fastnas", _space(job))], {"flops": f"{100 * share:.2f}%"}, job.example, config
                )
            reached, measured = job.reached(found)
            say(f"FastNAS at {share:.1%} of the multiply-accumulates: {measured:.1%} of the latency")
            lowest = min(lowest, measured)
            if reached and measured > best[0]:
                best = measured, found
            if reached and measured >= USED * job.target:
                break
            inside, outside = (share, outside) if reached else (inside, share)
            share *= job.target / measured
            if not inside < share < outside:
                share = (inside + outside) / 2
    if best[1] is None:
        raise job.out_of_reach(lowest)
    return best[1]


def _space(job: Job) -> dict[str, Any]:
    """FastNAS's own search space, but in multiples of the other methods' number of channels, not of 32."""
    ratios = tuple(0.05 * step for step in range(1, 21))
    convolution = {"channels_ratio": ratios, "kernel_size": (), "channel_divisor": job.multiple}
    features = {"features_ratio": ratios, "feature_divisor": job.multiple}
    rules = {"nn.Conv2d": convolution, "nn.BatchNorm2d": features, "nn.Linear": features}
    return {kind: {"*": rule} for kind, rule in rules.items()}
