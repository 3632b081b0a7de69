"""What does the precision of each layer bring? Binary, mixed and real networks inside the same latency.

    python benchmarks/mixed_network.py --data imagefolder:cifar10 --latency-ms 0.087 --record FILE

In: images, a device whose runtime has 1-bit kernels, a latency. Out: `reactnet-small` with all layers binary,
with those that `bcnet one-bit` chooses for this latency, and with none, each at fp32 and at INT8. All learn
from one teacher by one recipe, for as many passes; then `bcnet run` searches, fine-tunes, exports and
verifies each inside the latency. Accuracies are compared image by image, latencies alternate. What is done
stays in --folder: a run that was stopped continues there.
"""

import argparse
import contextlib
import json
import os
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from binary_network import absolute, timed
from recorded import how_made
from torch import nn

from bcnet.cli import main as bcnet
from bcnet.config import Config
from bcnet.data.image_data import ImageData
from bcnet.hw_profiles import load_profile
from bcnet.models.binary import BinaryConv2d, set_binary
from bcnet.models.reactnet import reactnet_small
from bcnet.pipeline.accuracy import paired_difference
from bcnet.pipeline.answers import correct_of
from bcnet.pipeline.layer_precisions import choose_precisions
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.results import Answers
from bcnet.runs import json_bytes, write_file
from bcnet.runtimes import runtime_here
from bcnet.show.precisions import show_precisions
from bcnet.training.checkpoints import CheckpointFile
from bcnet.training.distill import Distillation
from bcnet.training.loop import fit_network
from bcnet.training.recipe import Objective, Recipe
from bcnet.training.two_steps import PUBLISHED
from bcnet.width_search.scorer import evaluate_network

PRECISIONS = "fp32", "int8"
BATCH = 64
TEACHER = (
    0.5  # share in the loss; labels have the rest: from itself alone, a real network would learn nothing
)
ATTEMPTS = 3  # at a run: on a busy machine no candidate, or not the exported file, may be inside the latency
VERIFIED = (
    *("verified", "failures", "accuracy", "accuracy_torch", "top1_agreement", "output_error", "measured"),
    *("noise", "budget", "predicted_ms", "full", "size_bytes", "packed_bytes", "backend", "original"),
)
CONFIG = """device = "{device}"
precision = "{precision}"
table_noise = 0.25  # the record has the noise
[model]
name = "{model}"
args = {{ widths = {widths}, depths = {depths}{binary} }}
{weights}
[data]
name = "{data}"
train_limit = {images}
test_limit = {test}
flip = true
shift = 4
[train]
batch_size = {batch}
amp = false
optimizer = "adamw"
weight_decay = 0.0
[search]
latency_ms = {latency_ms}
recalibration_images = 512
trials = {trials}
[slice]
epochs = {passes}
learning_rate = 0.001
quantization_aware = false
"""


def real_network(widths: Sequence[int], depths: Sequence[int]) -> nn.Module:
    """The real counterpart with ordinary convolutions, so that its widths need not be multiples of 32."""
    network = reactnet_small(widths=widths, depths=depths, binary="none")
    for module in list(network.modules()):
        for name, own in list(module.named_children()):
            if isinstance(own, BinaryConv2d):
                sizes = own.in_channels, own.out_channels, own.kernel_size, own.stride, own.padding
                setattr(module, name, nn.Conv2d(*sizes, bias=False))
    return network


def configured(
    given: argparse.Namespace, precision: str, weights: str | None, binary: str | Sequence[str] | None
) -> str:
    """The bcnet.toml of a network; `binary` is None for the one of ordinary convolutions."""
    return CONFIG.format(
        device=given.device,
        precision=precision,
        model="mixed_network:real_network" if binary is None else "reactnet-small",
        widths=given.widths,
        depths=given.depths,
        binary="" if binary is None else f", binary = {json.dumps(binary)}",
        weights=f"weights = {json.dumps(str(given.folder / f'{weights}.pt'))}" if weights else "",
        data=given.data,
        images=given.images,
        test=given.test,
        batch=BATCH,
        latency_ms=given.latency_ms,
        trials=given.trials,
        passes=given.passes,
    )


@dataclass(frozen=True)
class Study:
    """The networks of one latency; all that is found is kept in the folder."""

    given: argparse.Namespace
    data: ImageData

    def kept(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `make` finds, and the seconds that it took; read, if it was found before."""
        file = self.given.folder / f"{name}.json"
        if not file.exists():
            start = time.monotonic()
            found = make()
            write_file(file, json_bytes(found | {"seconds": round(time.monotonic() - start)}))
        found = json.loads(file.read_text())
        shown = ("accuracy", "binary", "widths", "verified", "seconds")
        print(f"{name}: { ({key: found[key] for key in shown if key in found}) }", flush=True)
        return dict(found)

    def network(self, binary: str | Sequence[str]) -> nn.Module:
        """The network with initial weights, the same in every precision."""
        torch.manual_seed(0)
        return reactnet_small(widths=self.given.widths, depths=self.given.depths, binary=binary)

    def fit(self, name: str, network: nn.Module, recipe: Recipe, objective: Objective | None = None) -> None:
        """Train a network, unless its weights are there."""
        file = self.given.folder / f"{name}.pt"
        if not file.exists():
            checkpoint = CheckpointFile(file.with_suffix(".checkpoint"), {"name": name})
            fit_network(network, self.data, recipe, name, objective=objective, checkpoint=checkpoint)
            torch.save(network.state_dict(), file.with_suffix(".part"))
            file.with_suffix(".part").replace(file)
        network.load_state_dict(torch.load(file))

    def teacher(self) -> nn.Module:
        """The real network, trained on labels: all others begin with its weights."""
        network = self.network("none")
        epochs = self.given.epochs
        recipe = Recipe(epochs=epochs, learning_rate=0.1, batch_size=BATCH, label_smoothing=0.05)
        self.fit("teacher", network, recipe)
        return network.eval()

    def student(self, name: str, binary: str | Sequence[str]) -> nn.Module:
        """A network of full widths, trained in two steps: first its activations are binary, then its weights.

        A network without binary layers takes the same steps.
        """
        network, teacher = self.network(binary), self.teacher()
        network.load_state_dict(teacher.state_dict())
        distillation = Distillation(teacher, temperature=1.0, weight=TEACHER)
        for number, weights in enumerate((False, True), 1):
            set_binary(network, activations=True, weights=weights)
            decay = 0.0 if weights else PUBLISHED.weight_decay
            recipe = replace(PUBLISHED, epochs=self.given.epochs, batch_size=BATCH, weight_decay=decay)
            objective = distillation.objective(network, recipe, self.data.example(2))
            self.fit(f"{name}-step-{number}", network, recipe, objective)
        return network.eval()

    def accuracy(self, network: nn.Module) -> dict[str, Any]:
        """That on the test images, in PyTorch."""
        return {"accuracy": evaluate_network(network, self.data, self.data.test).accuracy}

    def chosen(self, precision: str) -> dict[str, Any]:
        """Which layers `bcnet one-bit` makes binary."""
        config = Config.model_validate(tomllib.loads(configured(self.given, precision, "teacher", "none")))
        found = choose_precisions(open_problem(config))
        show_precisions(found)
        return dict(found.to_json())

    def delivered(self, name: str, config: str) -> dict[str, Any]:
        """What `bcnet run` delivers: the verification of the file, its widths."""
        Path(f"{name}.toml").write_text(config)
        folder = Path("runs") / name
        for _ in range(ATTEMPTS):
            code = bcnet(["run", "--no-compare", "--config", f"{name}.toml", "--run", name])
            if code == 0:
                break
        reports = [folder / "export" / file for file in ("verify.json", "failed.json")]
        report = next((file for file in reports if file.exists()), None)
        if report is None:
            sys.exit(f"{name}: bcnet run ended with exit code {code}; this command continues")
        export = json.loads(report.read_text())
        widths = json.loads((folder / "slice/result.json").read_text())["widths"]
        return {"exit_code": code, "widths": widths} | {key: export.get(key) for key in VERIFIED}

    def differences(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """How much more accurate the first of two files is, on the same test images, with its interval."""
        correct = {}
        for name in names:
            file = Path("runs") / name / "export/answers.json"
            if file.exists():
                correct[name] = correct_of(Answers.model_validate_json(file.read_text()))
        rows = []
        for first, second in combinations(correct, 2):
            mean, low, high = paired_difference(correct[first], correct[second], None)
            figures = {"difference": mean, "low": low, "high": high}
            rounded = {key: round(value, 5) for key, value in figures.items()}
            rows.append({"first": first, "second": second} | rounded)
        return rows

    def found(self) -> dict[str, Any]:
        """All networks, then their differences and latencies."""
        load = [os.getloadavg()]
        full = {"teacher": self.kept("teacher", lambda: self.accuracy(self.teacher()))}
        choices, networks, files = {}, {}, {}
        for precision in self.given.precisions:
            choices[precision] = self.kept(f"choice-{precision}", lambda p=precision: self.chosen(p))
        for precision in self.given.precisions:
            some = choices[precision]["binary"]
            kinds = {"mixed": ("-".join(("mixed", *some)), some), "binary": ("binary", "both")}
            for kind, (weights, binary) in {**kinds, "real": ("real", [])}.items():
                own = self.kept(weights, lambda w=weights, b=binary: self.accuracy(self.student(w, b)))
                full[weights] = own
                name = f"{kind}-{precision}"
                config = configured(
                    self.given, precision, f"{weights}-step-2", None if kind == "real" else binary
                )
                networks[name] = self.kept(f"run-{name}", lambda n=name, c=config: self.delivered(n, c))
                load.append(os.getloadavg())
                content = (Path("runs") / name / "export/model.onnx").read_bytes()
                profile = load_profile(self.given.device)
                files[name] = content, profile.model_copy(update={"precision": precision})
        return {
            "load": load,
            "training_images": len(self.data.train),
            "test_images": len(self.data.test),
            "passes": {"teacher": self.given.epochs, "taught": 2 * self.given.epochs},
            "fine_tuning": self.given.passes,
            "full_widths": full,
            "choices": choices,
            "networks": networks,
            "differences": self.differences(list(networks)),
            "latency_ms": timed(files),
        }


def main() -> None:
    """Train, choose, search, measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--latency-ms", type=float, required=True, help="that every network has to meet")
    parser.add_argument("--device", default="cpu-openvino")
    parser.add_argument("--folder", type=Path, default=Path(".cache/mixed-network"))
    parser.add_argument("--images", type=int, default=6000, help="of the training, with the held-out ones")
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=8, help="of the teacher, and of each of two steps")
    parser.add_argument("--passes", type=int, default=4, help="of fine-tuning")
    parser.add_argument("--trials", type=int, default=1, help="candidates that are fine-tuned for one pass")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 1, 1])
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.data = absolute(given.data)
    given.folder = given.folder.absolute()
    record = given.record.absolute() if given.record else None
    settings = {key: own for key, own in vars(given).items() if key not in ("folder", "precisions", "record")}
    file = given.folder / "settings.json"
    if file.exists() and json.loads(file.read_text()) != settings:
        parser.error(f"{given.folder} has networks of other settings; give another --folder")
    write_file(file, json_bytes(settings))
    with contextlib.chdir(given.folder):
        config = Config.model_validate(tomllib.loads(configured(given, "fp32", None, "none")))
        found = Study(given, open_problem(config).data).found()
    machine = runtime_here("onnxruntime").fingerprint()["processor"]
    content = json.dumps({**how_made(), "machine": machine, **found}, indent=1) + "\n"
    print(content)
    if record:
        record.write_text(content)


if __name__ == "__main__":
    main()
