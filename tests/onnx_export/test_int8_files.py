"""INT8 files: what is in them, how narrow ones are sliced from the full one, how the runtime runs them."""

import logging
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

from bcnet.config import DataConfig
from bcnet.data.dataset import load_data
from bcnet.errors import ModelError
from bcnet.hw_profiles import HwProfile
from bcnet.measure.layer_attribution import attribute
from bcnet.models.digits import digits
from bcnet.onnx_export import precision
from bcnet.onnx_export.int8 import calibration_feeds, quantized, unsigned_activations
from bcnet.onnx_export.onnx_supernet import OnnxSupernet, to_onnx
from bcnet.runtimes import runtime_here
from bcnet.space.discover import discover_space

SHAPE = (1, 1, 16, 16)
Kind = Callable[[], nn.Module]


class Mixed(nn.Module):
    """Depthwise and plain convolutions, two branches that are joined, a Clip that is no Relu, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Hardtanh(-0.4, 0.1))
        self.a, self.b = nn.Conv2d(32, 24, 1), nn.Conv2d(32, 40, 3, padding=1)
        self.mix, self.head = nn.Conv2d(64, 48, 1), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.stem(x))
        y = torch.relu(self.mix(torch.cat([torch.relu(self.a(y)), torch.relu(self.b(y))], 1)))
        z: Tensor = self.head(y.mean((2, 3)))
        return z


@cache
def graphs(kind: Kind, unsigned: bool = True) -> tuple[OnnxSupernet, OnnxSupernet]:
    """A network's graph in floats and in integers."""
    torch.manual_seed(0)
    model = kind()
    space = discover_space(model.eval(), torch.zeros(SHAPE), bins=4, min_width=0.4)
    return OnnxSupernet(model, space, SHAPE), OnnxSupernet(model, space, SHAPE, "int8", unsigned)


def noise(count: int = 1) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((count, *SHAPE[1:]), dtype=np.float32)


def off(content: bytes, reference: bytes) -> float:
    """The largest difference of two files' outputs on noise, relative to the largest output."""
    (found,), (wanted,) = (
        runtime_here("onnxruntime").predictor(file)(noise(8)) for file in (content, reference)
    )
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def arrays(content: bytes) -> dict[str, np.ndarray]:
    """A file's initialisers by name."""
    proto = onnx.load_from_string(content)
    return {entry.name: numpy_helper.to_array(entry) for entry in proto.graph.initializer}


def parameters(proto: ModelProto) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """What is quantised with which scale and zero point."""
    values = arrays(proto.SerializeToString())
    return [
        (node.input[0], values[node.input[1]], values[node.input[2]])
        for node in proto.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    ]


@pytest.mark.parametrize("unsigned", [False, True])
def test_weights_and_activations_are_symmetric_and_weights_have_a_scale_a_channel(unsigned: bool) -> None:
    model = Mixed().eval()
    proto = quantized(to_onnx(model, SHAPE), [{"input": noise()}], unsigned)
    values = arrays(proto.SerializeToString())
    found = {name: (scale, zero) for name, scale, zero in parameters(proto)}
    for name, parameter in model.named_parameters():
        if "bias" in name and not unsigned:  # TensorRT takes no biases of integers
            assert values[name].dtype == np.float32
            continue
        scale, zero = found[f"{name}_quantized"]
        assert values[f"{name}_quantized"].dtype == (np.int8 if "weight" in name else np.int32)
        assert scale.shape == zero.shape == (len(parameter),)
        assert not zero.any()
    activations = [zero for name, (_, zero) in found.items() if name not in values]
    assert {zero.dtype for zero in activations} == {np.dtype(np.uint8 if unsigned else np.int8)}
    assert {int(zero) for zero in activations} == ({0, 128} if unsigned else {0})


@pytest.mark.parametrize("kind", [digits, Mixed])
@pytest.mark.parametrize("unsigned", [False, True])
def test_narrow_files_are_sliced_from_the_full_integers(kind: Kind, unsigned: bool) -> None:
    floats, integers = graphs(kind, unsigned)
    space = integers.space
    for widths in (space.largest(), space.random(np.random.default_rng(1)), space.smallest()):
        content = integers.variant(widths)
        onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
        wanted, found = (arrays(file) for file in (floats.variant(widths), content))
        for layer in space.layers:
            values, scale = found[f"{layer.weight}_quantized"], found[f"{layer.weight}_scale"]
            assert values.shape == space.shape(layer.weight, widths)
            assert scale.shape == values.shape[:1]
            each = scale.reshape(-1, *[1] * (values.ndim - 1))
            assert (np.abs(values * each - wanted[layer.weight]) <= 0.51 * each).all()
        assert off(content, floats.variant(widths)) < 0.2
        assert len(content) < len(floats.variant(widths))


def test_a_network_is_quantised_once_for_all_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(proto: ModelProto, feeds: list[dict[str, np.ndarray]], unsigned: bool) -> ModelProto:
        calls.append(len(proto.graph.node))
        return quantized(proto, feeds, unsigned)

    monkeypatch.setattr(precision, "quantized", counted)
    floats, _ = graphs(Mixed)
    integers = OnnxSupernet(floats.model, floats.space, SHAPE, "int8")
    assert calls == []  # layers are priced without any file
    for seed in range(4):
        integers.variant(integers.space.random(np.random.default_rng(seed)))
    assert len(calls) == 1


class Sliced(nn.Module):
    """A network whose graph holds a width as the limit of a slice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 32, 1)
        self.c, self.fc = nn.Conv2d(32, 16, 1), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(a)
        y = torch.cat([b[:, : a.shape[1]] + a, b[:, a.shape[1] :]], 1)
        z: Tensor = self.fc(self.c(y).mean((2, 3)))
        return z


class Centred(Sliced):
    """A weight that is computed from all of its entries: the narrow network's is not a slice of it."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.b.weight - self.b.weight.mean(1, keepdim=True)
        b = nn.functional.conv2d(self.a(x), weight)
        z: Tensor = self.fc(self.c(b).mean((2, 3)))
        return z


@pytest.mark.parametrize(("kind", "sliceable"), [(Sliced, True), (Centred, False)])
def test_sizes_that_follow_the_widths_are_in_the_quantised_file(kind: Kind, sliceable: bool) -> None:
    floats, integers = graphs(kind)
    assert integers.sliceable == sliceable
    widths = integers.space.smallest()
    content = integers.variant(widths)
    assert f"{integers.space.layers[0].weight}_quantized" in {
        entry.name for entry in onnx.load_from_string(content).graph.initializer
    }
    assert off(content, floats.variant(widths)) < 0.1


def test_the_runtime_computes_every_convolution_in_integers(tmp_path: Path) -> None:
    _, integers = graphs(digits)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    content = integers.variant(integers.space.largest())
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    ran = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    convolutions = [slot for slot in integers.slots if slot.template.op == "Conv"]
    assert ran["QLinearConv"] == len(convolutions) > 5
    assert ran["QLinearAdd"] == 3
    assert ran["Conv"] == ran["Add"] == ran["Relu"] == 0
    # One change into integers, one around the mean over the last image, one out of them.
    assert (ran["QuantizeLinear"], ran["DequantizeLinear"]) == (2, 2)


@pytest.mark.parametrize("kind", [digits, Mixed])
def test_profiled_time_of_integers_is_charged_to_the_layers_that_spend_it(kind: Kind) -> None:
    _, integers = graphs(kind)
    profile = runtime_here("onnxruntime").profile_nodes(integers.variant(integers.space.largest()), 10)
    charged = attribute(integers.slots, profile)
    assert charged.sum(0) == pytest.approx(np.sort(np.sum([ms for _, ms in profile], axis=0)))
    times = dict(profile)
    for slot, own in zip(integers.slots, charged, strict=True):
        if slot.template.op == "Conv":
            named = [times[name].mean() for name in times if name.split("_token_")[0] in slot.nodes]
            assert named
            # What it asked for is its own, too; with the profiler's share taken off, that can be below zero.
            assert own.mean() > max(0.0, sum(named) - 0.01)


def test_the_same_calibration_gives_the_same_file_quietly(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    proto = to_onnx(Mixed().eval(), SHAPE)
    entry = proto.metadata_props.add()
    entry.key, entry.value = "classes", '["a"]'
    content, handlers = proto.SerializeToString(), list(logging.getLogger().handlers)
    logging.getLogger().handlers[:] = []
    try:
        first, second = (
            quantized(proto, iter([{"input": noise()}]), True).SerializeToString() for _ in range(2)
        )
        assert logging.getLogger().handlers == []
    finally:
        logging.getLogger().handlers[:] = handlers
    assert first == second
    assert proto.SerializeToString() == content
    assert [(e.key, e.value) for e in onnx.load_from_string(first).metadata_props] == [("classes", '["a"]')]
    assert capfd.readouterr() == ("", "")
    assert list(folder.iterdir()) == []


def test_only_activations_that_end_at_zero_are_dropped() -> None:
    proto = quantized(to_onnx(Mixed().eval(), SHAPE), [{"input": noise()}], True)
    kinds = Counter(node.op_type for node in proto.graph.node)
    assert (kinds["Clip"], kinds["Relu"]) == (1, 0)  # Hardtanh(-0.4, 0.1) of three Relus and two Clips


def test_inputs_that_do_not_fit_the_network_are_an_error_of_one_line() -> None:
    with pytest.raises(ModelError, match=r"^ONNX Runtime cannot quantise the network: ") as caught:
        quantized(to_onnx(Mixed().eval(), SHAPE), [{"input": noise()[:, :, :3]}], True)
    assert "\n" not in str(caught.value)


def test_calibration_takes_training_images_in_whole_batches() -> None:
    data = load_data(DataConfig(image_size=16, train_limit=12, test_limit=20), 0)
    count = len(data.train)
    normal = data.normalise(data.train.images).numpy()  # type: ignore[union-attr]
    one, again, other = (list(calibration_feeds(data, ["x"], 1, seed)) for seed in (0, 0, 1))
    assert len(one) == count
    assert all(any(np.array_equal(feed["x"][0], image) for image in normal) for feed in one)
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(one, again, strict=True))
    assert not all(np.array_equal(a["x"], b["x"]) for a, b in zip(one, other, strict=True))
    assert [feed["x"].shape[0] for feed in calibration_feeds(data, ["x"], 4, 0)] == [4] * (count // 4)
    assert [feed["x"].shape[0] for feed in calibration_feeds(data, ["x"], 32, 0)] == [32]


def test_activations_are_unsigned_on_the_cpu_alone() -> None:
    profiles = [
        HwProfile(name="x", description="", runtime="onnxruntime", provider=provider)
        for provider in ("cpu", "CPUExecutionProvider", "cuda", "TensorrtExecutionProvider")
    ]
    assert [unsigned_activations(profile) for profile in profiles] == [True, True, False, False]
