"""A network in INT8 from its latency table to its verified file."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import CONFIG, PROFILE, measure_briefly
from onnx import numpy_helper

from bcnet.cli import main
from bcnet.config import DataConfig, ExportConfig
from bcnet.data.dataset import load_data
from bcnet.hw_profiles import HwProfile
from bcnet.models.digits import digits
from bcnet.onnx_export.precision import at_precision
from bcnet.pipeline.export import export
from bcnet.pipeline.results import VerifyReport
from bcnet.pipeline.verify import Artifact, Expected, verify
from bcnet.space.discover import discover_space

# More images and passes than elsewhere: the network has to be right for its integers to be so.
INT8_CONFIG = 'precision = "int8"\n' + CONFIG.replace("train_limit = 120", "train_limit = 400").replace(
    "[slice]\nepochs = 1", "[slice]\nepochs = 8\nquantization_aware = true"
).replace("batch_size = 32\n", "")


def test_the_whole_pipeline_in_int8_gives_a_file_as_accurate_as_the_network(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    measure_briefly(monkeypatch)
    (folder / "bcnet.toml").write_text(INT8_CONFIG, encoding="utf-8")
    (folder / "hw_profiles").mkdir()
    (folder / "hw_profiles" / "cpu.toml").write_text(PROFILE, encoding="utf-8")
    for stage in ("train", "build-lut", "search", "slice", "export"):
        assert main([stage]) == 0, capfd.readouterr().err
    sliced = json.loads(Path("runs/default/slice/result.json").read_text(encoding="utf-8"))
    # Of eight passes a quarter more go through integers; whether they are kept, validation images say.
    assert sliced["epochs"] == 8
    assert sliced.get("integer_epochs", sliced.get("discarded_integer_epochs")) == 2
    assert not list(Path("runs/default/slice").glob("checkpoint*"))
    report = json.loads(Path("runs/default/export/verify.json").read_text(encoding="utf-8"))
    assert (report["precision"], report["passed"], report["shapes_match"]) == ("int8", True, True)
    assert report["accuracy_torch"] > 0.8
    assert abs(report["accuracy"] - report["accuracy_torch"]) <= 0.02
    assert 1e-4 < report["output_error"] < 0.2  # integers, and still the same network
    proto = onnx.load("runs/default/export/model.onnx")
    weights = {e.name: numpy_helper.to_array(e) for e in proto.graph.initializer}
    convolutions = [array for name, array in weights.items() if name.endswith("weight_quantized")]
    assert {array.dtype for array in convolutions} == {np.dtype(np.int8)}
    assert {entry.key for entry in proto.metadata_props} >= {"classes", "preprocessing", "widths"}
    # The table was measured at int8 and serves nothing else.
    capfd.readouterr()
    assert main(["search", "--precision", "fp32"]) == 2
    error = capfd.readouterr().err
    assert "fp32" in error
    assert "bcnet build-lut" in error


DATA = load_data(DataConfig(image_size=16, train_limit=40, test_limit=40), 0)
QUICK = HwProfile(
    name="cpu",
    description="",
    runtime="onnxruntime",
    precision="int8",
    warmup_ms=1,
    seconds=0.02,
    iterations=6,
)


def verified(limits: ExportConfig, damaged: str = "6.weight_scale", factor: float = 1.0) -> VerifyReport:
    """A report on an untrained network's INT8 file, in which one scale is multiplied by `factor`."""
    torch.manual_seed(0)
    model = digits().eval()
    space = discover_space(model, torch.zeros(1, *DATA.input_shape), bins=4)
    proto = at_precision(export(model, (1, *DATA.input_shape), {}), DATA, QUICK, 0)
    (entry,) = (e for e in proto.graph.initializer if e.name.endswith(damaged))
    scale = numpy_helper.to_array(entry) * np.float32(factor)
    entry.CopyFrom(numpy_helper.from_array(np.asarray(scale), entry.name))
    content = proto.SerializeToString()
    expected = Expected(model, space, space.largest(), DATA, limits, 1.0)
    return verify(Artifact(proto, content), expected, QUICK)


def test_at_int8_accuracy_decides_and_the_output_error_is_told() -> None:
    found = verified(ExportConfig(output_tolerance=1e-9, int8_accuracy_tolerance=1.0))
    assert found.passed, found.failures
    assert 1e-4 < found.output_error < 0.2
    assert found.precision == "int8"


def test_an_int8_file_that_loses_too_much_accuracy_fails() -> None:
    found = verified(ExportConfig(accuracy_tolerance=1.0, int8_accuracy_tolerance=0.0), factor=-1.0)
    assert found.accuracy < found.accuracy_torch
    (failure,) = found.failures
    assert failure.startswith("accuracy is ")


def test_an_int8_file_whose_outputs_are_not_finite_fails() -> None:
    found = verified(ExportConfig(int8_accuracy_tolerance=1.0), damaged="output_scale", factor=float("nan"))
    assert "the outputs are not finite" in found.failures
