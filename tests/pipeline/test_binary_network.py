"""A binary network through all stages: as a supernet in ONNX Runtime, with trained weights in OpenVINO."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from conftest import CONFIG, PROFILE, measure_briefly

from bcnet.cli import main
from bcnet.models.reactnet import reactnet_small
from bcnet.runtimes.onnx_binary import binary_convolutions, packed_bytes

ARGS = "args = {{widths = [64], depths = [2], binary = {}}}"
MIXED = ["1.0.conv2", "1.1.conv1"]  # of four layers
pytestmark = pytest.mark.slow


def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, config: str, runtime: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What slice and export say of a run of this configuration, on this processor in this runtime."""
    (folder / "bcnet.toml").write_text(config, encoding="utf-8")
    (folder / "hw_profiles").mkdir()
    (folder / "hw_profiles/cpu.toml").write_text(PROFILE.replace("onnxruntime", runtime))
    measure_briefly(monkeypatch)
    # On a busy machine no candidate may be inside the budget: the message says to search again.
    assert any(main(["run"]) == 0 for _ in range(3))
    files = ("slice/result.json", "export/verify.json")
    sliced, exported = (json.loads((Path("runs/default") / file).read_text()) for file in files)
    return sliced, exported


@pytest.mark.parametrize(
    ("given", "runtime", "binary", "precision"),
    [
        (False, "onnxruntime", "both", "fp32"),
        (True, "openvino", "both", "fp32"),
        (True, "openvino", MIXED, "fp32"),
        (True, "openvino", MIXED, "int8"),
    ],
)
def test_a_smaller_binary_network_is_delivered_and_verified(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: bool,
    runtime: str,
    binary: str | list[str],
    precision: str,
) -> None:
    pytest.importorskip(runtime)
    weights = ""
    if given:
        network = reactnet_small(1, 10, widths=(64,), depths=(2,), binary=binary)
        torch.save(network.state_dict(), "binary.pt")
        weights = 'weights = "binary.pt"\n'
    model = f'[model]\nname = "reactnet-small"\n{ARGS.format(json.dumps(binary))}\n{weights}'
    config = f'precision = "{precision}"\n{model}{CONFIG}int8_accuracy_tolerance = 0.5\n'
    config = config.replace("[train]\n", '[train]\namp = false\noptimizer = "adamw"\nlearning_rate = 0.002\n')
    sliced, exported = run(folder, monkeypatch, config, runtime)
    assert all(width % 32 == 0 for width in sliced["widths"])
    assert sum(sliced["widths"]) < 3 * 64
    assert exported["verified"]
    assert exported["precision"] == precision
    assert exported["top1_agreement"] > (0.99 if precision == "fp32" else 0.5)
    one_bit = "runs/default/export/model-one-bit.onnx"
    assert exported.get("one_bit_file") == (one_bit if runtime == "openvino" else None)
    assert Path(one_bit).exists() == (runtime == "openvino")
    proto = onnx.load("runs/default/export/model.onnx")
    count = 4 if binary == "both" else 2
    assert len(binary_convolutions(proto.graph)) == count
    assert exported["packed_bytes"] == packed_bytes(proto) < exported["size_bytes"] / (4 if count == 4 else 1)
