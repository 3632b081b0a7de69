"""What does the precision of each layer bring? A binary, a mixed and a real network of the same latency.

    python benchmarks/mixed_network.py --data imagefolder:cifar10 --latency-ms 0.087 --record FILE

In: images, a device whose runtime has 1-bit kernels, a latency. Out: three networks of the least loss within
it, by the same table, the same losses of a trained real network and the same linear program, that of `bcnet
one-bit`: with all layers binary, with the layers that the program chooses, and with all real. Each is cut out
of the trained network, trained for as many passes by the same recipe, exported and verified. Accuracies are
compared image by image, latencies alternate. What is done stays in --folder: a stopped run continues there.
"""

import argparse
import contextlib
import json
import os
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from binary_network import absolute, fit_of, timed
from recorded import how_made
from torch import nn

from bcnet.config import Config
from bcnet.data.image_data import ImageData
from bcnet.methods.latency_milp import allocate_exactly
from bcnet.models.binary import only_binary, set_binary
from bcnet.models.reactnet import reactnet_small
from bcnet.onnx_export.onnx_supernet import to_onnx
from bcnet.pipeline.accuracy import paired_difference
from bcnet.pipeline.answers import correct_of
from bcnet.pipeline.inherit import ranked_sources, trained_for
from bcnet.pipeline.layer_forms import binary_names
from bcnet.pipeline.layer_precisions import choice_losses, with_bits
from bcnet.pipeline.mixed_latency import mixed_latency
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.original import given_network
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.results import Answers
from bcnet.pipeline.verify import Artifact, Expected, verify
from bcnet.runs import json_bytes, write_file
from bcnet.runtimes import runtime_here
from bcnet.space.extract import with_state
from bcnet.space.width_space import Widths
from bcnet.training.checkpoints import CheckpointFile
from bcnet.training.loop import fit_network
from bcnet.training.recipe import Recipe
from bcnet.training.two_steps import PUBLISHED
from bcnet.width_search.budget import Budget
from bcnet.width_search.scorer import Validation, evaluate_network

KINDS = "binary", "mixed", "real"
BATCH = 64
NEVER = 1e6  # the loss of what a kind of network does not have
CONFIG = """device = "{device}"
precision = "{precision}"
table_noise = 0.25  # the record has the noise
[model]
name = "reactnet-small"
args = {{ widths = {widths}, depths = {depths}, binary = "none" }}
{weights}
[data]
name = "{data}"
train_limit = {images}
test_limit = {test}
flip = true
shift = 4
[space]
bins = {bins}
[train]
batch_size = {batch}
amp = false
[search]
recalibration_images = 256
[slice]
inherit = "l1"
"""


@dataclass(frozen=True)
class Study:
    """Networks of one latency; `problem` has the trained real network, in the precision of the table."""

    given: argparse.Namespace
    problem: Problem

    def chosen(self) -> dict[str, Any]:
        """The widths and the binary layers of each kind of network."""
        mixed = mixed_latency(self.problem)
        space = with_bits(self.problem.space, mixed.names)
        losses, count = choice_losses(self.problem, mixed.names), len(self.problem.space.groups)
        forced = {"binary": np.array([0.0, NEVER]), "real": np.array([NEVER, 0.0])}
        found: dict[str, Any] = {}
        for kind in KINDS:
            own = losses if kind == "mixed" else (*losses[:count], *[forced[kind]] * len(mixed.names))
            (best,) = allocate_exactly(space, own, mixed.model, self.given.latency_ms)
            binary = binary_names(mixed.names, best.widths[count:])
            if kind != "mixed" and binary != (mixed.names if kind == "binary" else ()):
                raise SystemExit(f"no {kind} network takes {self.given.latency_ms} ms; give more")
            found[kind] = {
                "widths": list(best.widths[:count]),
                "binary": list(binary),
                "predicted_ms": round(best.predicted_ms, 5),
                "loss": round(best.loss, 5),
            }
        rises = (round(float(own[0]), 5) for own in losses[count:])
        return {
            **found,
            "one_bit_loses": dict(zip(mixed.names, rises, strict=True)),
            "table": fit_of(mixed.model),
            "fit_error": mixed.fit_error,
        }

    def network(self, kind: str, chosen: dict[str, Any]) -> nn.Module:
        """The network of these widths, trained in two steps: first activations are binary, then weights.

        A network without binary layers takes the same steps.
        """
        given, problem, widths = self.given, self.problem, Widths(chosen["widths"])
        by = Validation(problem.data, problem.config.search.recalibration_images, problem.task)
        source = ranked_sources((), widths, trained_for(problem, given_network(problem)), by)[0]
        network = with_state(problem.model, problem.space, source.state)
        only_binary(network, chosen["binary"])
        name = "-".join((kind, *map(str, widths), *chosen["binary"]))
        for number, weights in enumerate((False, True), 1):
            set_binary(network, activations=True, weights=weights)
            decay = 0.0 if weights else PUBLISHED.weight_decay
            recipe = replace(PUBLISHED, epochs=given.epochs, batch_size=BATCH, weight_decay=decay)
            fit(given.folder / f"{name}-step-{number}", network, problem.data, recipe)
        return network

    def verified(self, kind: str, chosen: dict[str, Any], file: Path) -> dict[str, Any]:
        """What is found of the network's file, and its answers to the test images."""
        network, problem = self.network(kind, chosen), self.problem
        proto = problem.at_precision(to_onnx(network, problem.data.example(1)))
        write_file(file, proto.SerializeToString())
        expected = Expected(
            network,
            problem.space,
            Widths(chosen["widths"]),
            problem.data,
            problem.config.export,
            chosen["predicted_ms"],
            Budget(self.given.latency_ms),
        )
        full = problem.graph.variant(problem.space.original())
        report = verify(Artifact(proto, full), expected, problem.profile)
        assert report.answers is not None
        return {**report.to_json(), "answers": report.answers.to_json()}


def kept(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` finds, and the seconds that it took; read, if it was found before."""
    if not file.exists():
        start = time.monotonic()
        found = make()
        write_file(file, json_bytes(found | {"seconds": round(time.monotonic() - start)}))
    found = json.loads(file.read_text())
    print(f"{file.stem}: { ({key: own for key, own in found.items() if key != 'answers'}) }", flush=True)
    return dict(found)


def fit(path: Path, network: nn.Module, data: ImageData, recipe: Recipe) -> None:
    """Train a network, unless its weights are there."""
    file, part = path.with_name(f"{path.name}.pt"), path.with_name(f"{path.name}.part")
    if not file.exists():
        checkpoint = CheckpointFile(path.with_name(f"{path.name}.checkpoint"), {"name": path.name})
        fit_network(network, data, recipe, path.name, checkpoint=checkpoint)
        torch.save(network.state_dict(), part)
        part.replace(file)
    network.load_state_dict(torch.load(file))
    network.eval()


def opened(given: argparse.Namespace, precision: str, weights: Path | None = None) -> Problem:
    """The problem of the real network."""
    config = CONFIG.format(
        device=given.device,
        precision=precision,
        widths=given.widths,
        depths=given.depths,
        weights=f"weights = {json.dumps(str(weights))}" if weights else "",
        data=given.data,
        images=given.images,
        test=given.test,
        bins=given.bins,
        batch=BATCH,
    )
    return open_problem(Config.model_validate(tomllib.loads(config)))


def whole(given: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """The weights of the real network of full widths, trained on labels, and its accuracy."""
    problem, file = opened(given, "fp32"), given.folder / "whole.pt"

    def make() -> dict[str, Any]:
        torch.manual_seed(0)
        network = reactnet_small(widths=given.widths, depths=given.depths, binary="none")
        recipe = Recipe(epochs=given.first_epochs, learning_rate=0.1, batch_size=BATCH, label_smoothing=0.05)
        fit(file.with_suffix(""), network, problem.data, recipe)
        return {"accuracy": evaluate_network(network, problem.data, problem.data.test).accuracy}

    return file, kept(given.folder / "whole.json", make)


def differences(networks: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """How much more accurate the first of two files is on the same images, with the 95 % interval."""
    correct = {name: correct_of(Answers.model_validate(own["answers"])) for name, own in networks.items()}
    rows = []
    for first, second in combinations(correct, 2):
        if first.partition("-")[2] != second.partition("-")[2]:
            continue  # at another precision
        figures = paired_difference(correct[first], correct[second], None)
        named = zip(("difference", "low", "high"), figures, strict=True)
        rows.append({"first": first, "second": second} | {key: round(own, 5) for key, own in named})
    return rows


def found_by(given: argparse.Namespace) -> dict[str, Any]:
    """All networks, their differences and latencies."""
    load = [os.getloadavg()]
    weights, full = whole(given)
    choices, networks, files = {}, {}, {}
    for precision in given.precisions:
        study = Study(given, opened(given, precision, weights))
        choices[precision] = kept(given.folder / f"choice-{precision}.json", study.chosen)
        for kind in KINDS:
            name, own = f"{kind}-{precision}", choices[precision][kind]
            file = given.folder / f"{name}.onnx"
            make = partial(study.verified, kind, own, file)
            networks[name] = kept(file.with_suffix(".json"), make)
            files[name] = file.read_bytes(), study.problem.profile
        load.append(os.getloadavg())
    data = study.problem.data
    return {
        "load": load,
        "training_images": len(data.train),
        "test_images": len(data.test),
        "full_widths": full,
        "choices": choices,
        "networks": {name: {**own, "answers": None} for name, own in networks.items()},
        "differences": differences(networks),
        "latency_ms": timed(files),
    }


def main() -> None:
    """Train, choose, measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--latency-ms", type=float, required=True, help="that every network has to meet")
    parser.add_argument("--device", default="cpu-openvino")
    parser.add_argument("--folder", type=Path, default=Path(".cache/mixed-network"))
    parser.add_argument("--images", type=int, default=5000, help="of the training, with the held-out ones")
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--first-epochs", type=int, default=8, help="of the real network of full widths")
    parser.add_argument("--epochs", type=int, default=8, help="of each of the two steps behind it")
    parser.add_argument("--bins", type=int, default=8, help="width choices of a group")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 1, 1])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8"], choices=["fp32", "int8"])
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.data, given.folder = absolute(given.data), given.folder.absolute()
    record = given.record.absolute() if given.record else None
    settings = {key: own for key, own in vars(given).items() if key not in ("folder", "precisions", "record")}
    file = given.folder / "settings.json"
    if file.exists() and json.loads(file.read_text()) != settings:
        parser.error(f"{given.folder} has networks of other settings; give another --folder")
    write_file(file, json_bytes(settings))
    with contextlib.chdir(given.folder):  # where the latency table is
        found = found_by(given)
    machine = runtime_here("onnxruntime").fingerprint()["processor"]
    content = json.dumps({**how_made(), "machine": machine, **found}, indent=1) + "\n"
    print(content)
    if record:
        record.write_text(content)


if __name__ == "__main__":
    main()
