"""A binary network, searched inside a share of its own latency, beside real ones of the same accuracy.

    python benchmarks/binary_network.py --data imagefolder:cifar10 --record FILE

In: images, and a device whose runtime has 1-bit kernels. Out: `reactnet-small`, trained in two steps from its
real counterpart, then searched, sliced, fine-tuned, exported and verified by `bcnet run`; beside it the real
counterpart, narrowed uniformly and fine-tuned for as many passes, in fp32 and INT8. Latencies alternate.
"""

import argparse
import contextlib
import json
import os
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from recorded import how_made
from torch import nn

from bcnet.cli import main as bcnet
from bcnet.config import Config, load_config
from bcnet.data.image_data import ImageData
from bcnet.errors import BcnetError
from bcnet.hw_profiles import HwProfile, load_profile
from bcnet.latency_tables.model import LatencyModel
from bcnet.measure.network_latency import measure_network
from bcnet.models.binary import Operations
from bcnet.models.reactnet import reactnet_small
from bcnet.onnx_export.onnx_supernet import to_onnx
from bcnet.pipeline.file_outputs import file_metric
from bcnet.pipeline.fine_tuning import FineTuning
from bcnet.pipeline.inherit import ranked_sources, trained_for
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.original import given_network
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.teacher import objective_for
from bcnet.runtimes import runtime_here
from bcnet.space.extract import with_state
from bcnet.training.checkpoints import CheckpointFile
from bcnet.training.loop import fit_network
from bcnet.training.recipe import Recipe
from bcnet.training.two_steps import PUBLISHED, train_in_two_steps
from bcnet.width_search.scorer import Validation, evaluate_network

ROUNDS = 5  # of alternating measurements
CONFIG = """device = "{device}"
{precision}
[model]
name = "reactnet-small"
weights = "{weights}"
args = {{widths = {widths}, depths = {depths}, binary = "{binary}"}}
[data]
name = "{data}"
train_limit = {images}
test_limit = {test}
flip = true
shift = 4
[space]
channel_multiple = {multiple}
[train]
batch_size = 64
amp = false
optimizer = "{optimizer}"
weight_decay = {decay}
[search]
latency = "{latency}"
margin = 0.01  # so that the delivered network, measured again, is inside
recalibration_images = 512
[slice]
epochs = {passes}
learning_rate = {rate}
"""


def configured(given: argparse.Namespace, binary: bool, precision: str | None = None) -> str:
    """The bcnet.toml of the binary network, or of its real counterpart."""
    return CONFIG.format(
        device=given.device if binary or precision is None else "cpu",
        precision=f'precision = "{precision}"' if precision else "",
        weights=(given.folder / ("binary.pt" if binary else "real.pt")).absolute(),
        widths=given.widths,
        depths=given.depths,
        binary="both" if binary else "none",
        data=given.data,
        images=given.images,
        test=given.test,
        multiple=32 if binary else 8,
        optimizer="adamw" if binary else "sgd",
        decay=0.0 if binary else 5e-4,
        latency=given.latency,
        passes=given.passes,
        rate=1e-3 if binary else 0.02,
    )


def trained(given: argparse.Namespace, data: ImageData) -> dict[str, float]:
    """Train both networks, unless their files are there. Their accuracies on the test images."""
    shape = {"in_channels": data.input_shape[0], "num_classes": 10}
    shape |= {"widths": tuple(given.widths), "depths": tuple(given.depths)}
    torch.manual_seed(0)
    real, binary = reactnet_small(**shape, binary="none"), reactnet_small(**shape)
    recipe = Recipe(epochs=given.epochs, learning_rate=0.1, batch_size=64, label_smoothing=0.05)

    def binary_training() -> None:
        binary.load_state_dict(real.state_dict())
        own = replace(PUBLISHED, epochs=given.epochs, batch_size=64)
        checkpoint = CheckpointFile(given.folder / "binary.safetensors", {"data": data.digest()})
        train_in_two_steps(binary, real, data, own, checkpoint=checkpoint)

    trainings: dict[str, tuple[nn.Module, Callable[[], object]]] = {
        "real": (real, lambda: fit_network(real, data, recipe, "the real network")),
        "binary": (binary, binary_training),
    }
    found = {}
    for name, (network, train) in trainings.items():
        file = given.folder / f"{name}.pt"
        if file.exists():
            network.load_state_dict(torch.load(file))
        else:
            train()
            part = file.with_suffix(".part")
            torch.save(network.state_dict(), part)
            part.replace(file)
        found[name] = evaluate_network(network.eval(), data, data.test).accuracy
        print(f"{name}: {found[name]:.2%}", flush=True)
    return found


def narrowed(problem: Problem, ratio: float) -> nn.Module:
    """The trained network with this share of its channels, fine-tuned with distillation."""
    config, data = problem.config, problem.data
    original = given_network(problem)
    assert original is not None
    by = Validation(data, config.search.recalibration_images, problem.task)
    widths = problem.space.uniform(ratio, 8)
    best = ranked_sources((), widths, trained_for(problem, original), by)[0]
    small = with_state(problem.model, problem.space, best.state)
    recipe = Recipe.of(config, config.slice.epochs, config.slice.learning_rate)
    objective = objective_for(problem, original, small, recipe)
    tune = FineTuning(data, recipe, config.search.recalibration_images, objective)
    return tune(small, f"the real network at {ratio:.0%}").network


def searched(given: argparse.Namespace) -> dict[str, Any]:
    """What `bcnet run` delivers of the binary network: its verification, and what it is made of."""
    (given.folder / "bcnet.toml").write_text(configured(given, binary=True))
    with contextlib.chdir(given.folder):
        code = bcnet(["run", "--no-compare"])
        export = json.loads(Path("runs/default/export/verify.json").read_text())
        small = json.loads(Path("runs/default/slice/result.json").read_text())
        latency = open_problem(load_config(None)).table.latency_model()
    keys = (
        "verified",
        "failures",
        "accuracy",
        "accuracy_torch",
        "top1_agreement",
        "output_error",
        "measured",
    )
    keys += ("full", "budget", "predicted_ms", "size_bytes", "packed_bytes", "backend", "original")
    keys += ("noise", "notes")
    table = fit_of(latency)
    return {"exit_code": code, "widths": small["widths"], "table": table} | {
        key: export.get(key) for key in keys
    }


def fit_of(latency: LatencyModel) -> dict[str, Any]:
    """How well a latency table predicts networks that were left out of the fit, and how well they repeat."""
    fit = latency.calibration
    assert fit is not None
    return {
        "mean_error": fit.mean_error,
        "noise": fit.noise,
        "within_5": fit.within_5,
        "within_10": fit.within_10,
        "spearman": fit.spearman,
        "held_out": fit.held_out,
    }


def timed(files: dict[str, tuple[bytes, HwProfile]]) -> dict[str, float]:
    """Milliseconds of each file in its profile's runtime: the fastest of alternating medians."""
    found: dict[str, list[float]] = {name: [] for name in files}
    for _ in range(ROUNDS):
        for name, (content, profile) in files.items():
            found[name].append(measure_network(content, profile, quiet=True).median_ms)
    return {name: round(min(own), 4) for name, own in found.items()}


def real_rows(given: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, tuple[bytes, HwProfile]]]:
    """Real networks at several widths: accuracies in fp32 and INT8, sizes, and the files to time."""
    rows, files = [], {}
    problem = open_problem(Config.model_validate(tomllib.loads(configured(given, binary=False))))
    integers = problem.at("int8")
    at_int8 = load_profile("cpu").model_copy(update={"precision": "int8"})
    example = problem.data.example(1)
    for ratio in given.ratios:
        network = narrowed(problem, ratio)
        proto = to_onnx(network, example)
        content = proto.SerializeToString()
        quantised = integers.at_precision(proto).SerializeToString()
        kind = f"real {ratio:.3g}"
        files |= {
            f"{kind}, fp32, {given.device}": (content, load_profile(given.device)),
            f"{kind}, fp32, cpu": (content, load_profile("cpu")),
            f"{kind}, int8, cpu": (quantised, at_int8),
        }
        if not _refused(quantised, load_profile(given.device)):
            files[f"{kind}, int8, {given.device}"] = quantised, load_profile(given.device)
        score = evaluate_network(network, problem.data, problem.data.test)
        int8 = file_metric(quantised, network, problem.data, at_int8, problem.task)
        counts = Operations.of(network, example)
        sizes = {"size_bytes": len(content), "int8_size_bytes": len(quantised)}
        row = {"ratio": ratio, "accuracy": score.accuracy, "int8_accuracy": int8, "macs": counts.real_macs}
        rows.append(row | sizes)
        print(rows[-1], flush=True)
    return rows, files


def _refused(content: bytes, profile: HwProfile) -> bool:
    """Whether the runtime cannot run a file."""
    try:
        measure_network(content, profile, quiet=True)
    except BcnetError as reason:
        print(reason)
        return True
    return False


def main() -> None:
    """Train, search, measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--device", default="cpu-openvino")
    parser.add_argument("--folder", type=Path, default=Path(".cache/binary-network"))
    parser.add_argument("--images", type=int, default=5000, help="of the training, with the held-out ones")
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=8, help="of the real network, and of each of two steps")
    parser.add_argument("--passes", type=int, default=3, help="of fine-tuning")
    parser.add_argument("--latency", default="60%")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 2, 2])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.125, 0.25, 0.375, 0.5])
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    given.data = absolute(given.data)
    settings = tomllib.loads(configured(given, binary=False))
    del settings["model"]["weights"]
    data = open_problem(Config.model_validate(settings)).data
    accuracies = trained(given, data)
    of_binary = searched(given)
    rows, files = real_rows(given)
    delivered = (given.folder / "runs/default/export/model.onnx").read_bytes()
    files["binary, searched"] = delivered, load_profile(given.device)
    files["binary, searched, in floats"] = delivered, load_profile("cpu")
    found = {
        **how_made(),
        "machine": runtime_here("onnxruntime").fingerprint()["processor"],
        "load": os.getloadavg(),
        "training_images": len(data.train),
        "test_images": len(data.test),
        "accuracy": accuracies,
        "binary": of_binary,
        "real": rows,
        "latency_ms": timed(files),
    }
    print(json.dumps(found, indent=1))
    if given.record:
        given.record.write_text(json.dumps(found, indent=1) + "\n")


def absolute(data: str) -> str:
    """The data's name, with a folder that does not depend on where it is read from."""
    kind, _, path = data.partition(":")
    return f"{kind}:{Path(path).absolute()}" if kind == "imagefolder" else data


if __name__ == "__main__":
    main()
