"""ONNX files executed by PyTorch: every operator against ONNX Runtime, whole networks, and no GPU.

The runtime runs on the processor here, without graphs and events: what needs a GPU is skipped without one.
"""

import gc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from bcnet.errors import DeviceError, NetworkError
from bcnet.hw_profiles import HwProfile, load_profile
from bcnet.measure.layer_attribution import attribute
from bcnet.measure.network_latency import setting_of, why_not_here
from bcnet.onnx_export.fp16 import to_fp16
from bcnet.onnx_export.onnx_supernet import OnnxSupernet, to_onnx
from bcnet.runtimes import LocalDevice, runtime_here, runtime_on
from bcnet.runtimes.onnx_torch import TorchNetwork, load_network
from bcnet.runtimes.torch_cuda import TorchCuda
from bcnet.runtimes.torch_operators import OPERATORS
from bcnet.space.discover import discover_space

RUNTIME = TorchCuda(device="cpu")
GPU = torch.cuda.is_available()
FAMILIES = ("mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "resnet18", "shufflenet_v2_x1_0")
QUICK = "mobilenet_v3_small", "shufflenet_v2_x1_0"  # the others are of the same operators
RNG = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


def one_node(
    operator: str,
    shape: Sequence[int],
    constants: Sequence[np.ndarray | None] = (),
    opset: int = 18,
    **at: Any,
) -> bytes:
    """A network of one node. Its first input is the network's; `constants` are the others, None for none."""
    names = [f"constant{k}" if array is not None else "" for k, array in enumerate(constants)]
    outputs = [f"output{k}" for k in range(at.pop("outputs", 1))]
    graph = helper.make_graph(
        [helper.make_node(operator, ["input", *names], outputs, name="node", **at)],
        "one",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(a, n) for a, n in zip(constants, names, strict=True) if a is not None],
    )
    opsets = [helper.make_opsetid("", opset)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def scalar(value: float) -> np.ndarray:
    return np.array(value, np.float32)


IMAGE = (1, 4, 9, 7)
COMPARISONS = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
POSITIVE = ("Log", "Sqrt", "Pow")
CASES: list[tuple[str, Sequence[int], list[np.ndarray | None], dict[str, Any]]] = [
    ("Conv", IMAGE, [noise(6, 4, 3, 3), noise(6)], {}),
    ("Conv", IMAGE, [noise(6, 4, 3, 2)], {"pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [2, 1]}),
    ("Conv", IMAGE, [noise(4, 1, 3, 3)], {"group": 4, "pads": [1, 1, 1, 1]}),
    ("Conv", IMAGE, [noise(8, 2, 3, 3)], {"group": 2, "pads": [2, 2, 2, 2], "dilations": [2, 2]}),
    ("Conv", (1, 4, 9), [noise(6, 4, 3)], {"strides": [2]}),
    ("ConvTranspose", IMAGE, [noise(4, 3, 3, 3), noise(3)], {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    (
        "ConvTranspose",
        IMAGE,
        [noise(4, 2, 3, 3)],
        {"group": 2, "strides": [2, 2], "output_padding": [1, 1], "dilations": [2, 1]},
    ),
    ("Gemm", (3, 5), [noise(7, 5), noise(7)], {"transB": 1}),
    ("Gemm", (5, 3), [noise(5, 7), noise(3, 1)], {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    ("Gemm", (3, 5), [noise(5, 7)], {}),
    ("MatMul", (2, 3, 5), [noise(5, 4)], {}),
    ("MaxPool", IMAGE, [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("MaxPool", IMAGE, [], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("MaxPool", IMAGE, [], {"kernel_shape": [2, 2], "pads": [0, 1, 1, 0], "dilations": [2, 2]}),
    ("AveragePool", IMAGE, [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("AveragePool", IMAGE, [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("AveragePool", IMAGE, [], {"kernel_shape": [2, 3], "pads": [1, 0, 0, 2], "strides": [2, 2]}),
    ("AveragePool", IMAGE, [], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("GlobalAveragePool", IMAGE, [], {}),
    ("GlobalMaxPool", IMAGE, [], {}),
    ("ReduceMean", IMAGE, [ints(2, 3)], {"keepdims": 0}),
    ("ReduceMean", IMAGE, [ints(-1)], {}),
    ("ReduceMean", IMAGE, [], {"opset": 17, "axes": [2, 3]}),
    ("ReduceSum", IMAGE, [], {}),
    ("ReduceSum", IMAGE, [], {"noop_with_empty_axes": 1}),
    ("ReduceL2", IMAGE, [ints(1)], {}),
    ("ReduceMax", IMAGE, [ints(1)], {}),
    ("ReduceMin", IMAGE, [ints(1)], {"keepdims": 0}),
    ("BatchNormalization", IMAGE, [noise(4), noise(4), noise(4), np.abs(noise(4))], {"epsilon": 0.01}),
    ("LayerNormalization", IMAGE, [noise(9, 7), noise(9, 7)], {"axis": 2, "epsilon": 0.01}),
    ("InstanceNormalization", IMAGE, [noise(4), noise(4)], {"epsilon": 0.01}),
    ("Softmax", IMAGE, [], {"axis": 1}),
    ("Relu", IMAGE, [], {}),
    ("LeakyRelu", IMAGE, [], {"alpha": 0.2}),
    ("Elu", IMAGE, [], {"alpha": 0.5}),
    ("PRelu", IMAGE, [noise(4, 1, 1)], {}),
    ("Sigmoid", IMAGE, [], {}),
    ("Softplus", IMAGE, [], {}),
    ("Tanh", IMAGE, [], {}),
    ("Mish", IMAGE, [], {}),
    ("Erf", IMAGE, [], {}),
    ("Exp", IMAGE, [], {}),
    ("Log", IMAGE, [], {}),
    ("Sqrt", IMAGE, [], {}),
    ("Reciprocal", IMAGE, [], {}),
    ("Abs", IMAGE, [], {}),
    ("Neg", IMAGE, [], {}),
    ("Identity", IMAGE, [], {}),
    ("HardSwish", IMAGE, [], {}),
    ("HardSigmoid", IMAGE, [], {"alpha": 1 / 6}),
    ("HardSigmoid", IMAGE, [], {"alpha": 0.3, "beta": 0.4}),
    ("Gelu", IMAGE, [], {"opset": 20}),
    ("Gelu", IMAGE, [], {"opset": 20, "approximate": "tanh"}),
    ("Clip", IMAGE, [scalar(0), scalar(0.5)], {}),
    ("Clip", IMAGE, [None, scalar(0.5)], {}),
    ("Clip", IMAGE, [], {}),
    ("Add", IMAGE, [noise(4, 1, 1)], {}),
    ("Add", IMAGE, [scalar(2)], {}),
    ("Sub", IMAGE, [noise(7)], {}),
    ("Mul", IMAGE, [scalar(3)], {}),
    ("Div", IMAGE, [scalar(3)], {}),
    ("Pow", IMAGE, [scalar(1.5)], {}),
    ("Max", IMAGE, [noise(4, 1, 1), scalar(0.1)], {}),
    ("Min", IMAGE, [scalar(0.1)], {}),
    ("Concat", IMAGE, [noise(1, 2, 9, 7), noise(1, 1, 9, 7)], {"axis": 1}),
    ("Split", IMAGE, [], {"axis": 2, "num_outputs": 2, "outputs": 2}),
    ("Split", IMAGE, [ints(1, 3)], {"axis": 1, "outputs": 2}),
    ("Slice", IMAGE, [ints(1, 0), ints(-1, 5), ints(2, -1), ints(1, 2)], {}),
    ("Slice", IMAGE, [ints(0, 1), ints(1, 2**40)], {}),
    ("Gather", IMAGE, [ints(2, -1, 0)], {"axis": 1}),
    ("Gather", IMAGE, [np.array(-2)], {"axis": 3}),
    ("Gather", IMAGE, [np.array([[0, 1], [2, 3]])], {"axis": 1}),
    ("GatherND", IMAGE, [np.array([[[0, 3], [0, -1]]])], {}),
    ("Reshape", IMAGE, [ints(0, 2, -1)], {}),
    ("Flatten", IMAGE, [], {"axis": 2}),
    ("Transpose", IMAGE, [], {"perm": [0, 2, 3, 1]}),
    ("Transpose", IMAGE, [], {}),
    ("Squeeze", (1, 4, 1, 1), [ints(0, -1)], {}),
    ("Squeeze", (1, 4, 1, 1), [], {}),
    ("Unsqueeze", (3, 4), [ints(0, -1)], {}),
    ("Expand", (4, 1, 7), [ints(2, 1, 3, 1)], {}),
    ("Pad", IMAGE, [ints(0, 0, 1, 2, 0, 1, 0, 3), scalar(2)], {}),
    ("Pad", IMAGE, [ints(1, 2), None, ints(2)], {}),
    ("Pad", IMAGE, [ints(0, 0, 1, 2, 0, 0, 2, 1)], {"mode": "reflect"}),
    ("Pad", IMAGE, [ints(0, 0, 1, 2, 0, 0, 2, 1)], {"mode": "edge"}),
    ("Pad", IMAGE, [ints(0, 0, 0, 0, 0, 0, 0, 0)], {"mode": "edge"}),
    ("Pad", IMAGE, [ints(0, 0, 0, 1, 0, 0, 0, 2)], {"mode": "reflect"}),
    ("Pad", IMAGE, [ints(0, 0, 1, 2, 0, 0, 2, 1)], {"mode": "wrap", "opset": 19}),
    (
        "Resize",
        IMAGE,
        [None, None, ints(1, 4, 20, 5)],
        {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
    ),
    (
        "Resize",
        IMAGE,
        [None, None, ints(20, 5)],
        {"mode": "linear", "coordinate_transformation_mode": "align_corners", "axes": [2, 3]},
    ),
    (
        "Resize",
        IMAGE,
        [None, np.array([1, 1, 2, 3], np.float32)],
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    ),
    (
        "Resize",
        IMAGE,
        [None, None, ints(1, 4, 18, 7)],
        {"mode": "nearest", "nearest_mode": "round_prefer_floor"},
    ),
    (  # pixels halfway between two
        "Resize",
        (1, 4, 8, 6),
        [None, None, ints(1, 4, 4, 9)],
        {"mode": "nearest", "nearest_mode": "round_prefer_ceil"},
    ),
    ("Resize", IMAGE, [None, None, ints(1, 4, 18, 14)], {"mode": "cubic"}),
    ("DepthToSpace", (2, 8, 3, 2), [], {"blocksize": 2}),
    ("DepthToSpace", (2, 8, 3, 2), [], {"blocksize": 2, "mode": "CRD"}),
]


@pytest.mark.parametrize(("operator", "shape", "constants", "at"), CASES)
def test_an_operator_gives_what_onnx_runtime_gives(
    operator: str, shape: Sequence[int], constants: list[np.ndarray | None], at: dict[str, Any]
) -> None:
    model = one_node(operator, shape, constants, **at)
    values = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    values = np.abs(values) if operator in POSITIVE else values
    expected = runtime_here("onnxruntime").predictor(model)(values)
    found = RUNTIME.predictor(model)(values)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_every_operator_has_a_case() -> None:
    others = {"Cast", "Constant", "Where"}  # of other types: see the next tests
    assert {operator for operator, *_ in CASES} == set(OPERATORS) - others - COMPARISONS


@pytest.mark.parametrize("operator", sorted(COMPARISONS))
def test_a_comparison_chooses_between_values(operator: str) -> None:
    graph = helper.make_graph(
        [
            helper.make_node(operator, ["input", "limit"], ["is_set"]),
            helper.make_node("Where", ["is_set", "input", "limit"], ["output"]),
        ],
        "chosen",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3])],
        [
            helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 3]),
            helper.make_tensor_value_info("is_set", TensorProto.BOOL, [1, 3]),
        ],
        [numpy_helper.from_array(scalar(1), "limit")],
    )
    opsets = [helper.make_opsetid("", 18)]
    model = bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
    values = np.array([[0, 1, 2]], np.float32)
    expected = runtime_here("onnxruntime").predictor(model)(values)
    found = RUNTIME.predictor(model)(values)
    assert [array.tolist() for array in found] == [array.tolist() for array in expected]
    assert found[1].dtype == bool


def test_nodes_made_of_constants_are_folded_and_other_types_are_kept() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["two"], value_float=2.0),
            helper.make_node("Constant", [], ["ints"], value_ints=[7, -7]),
            helper.make_node("Constant", [], ["three"], value=numpy_helper.from_array(ints(3)[0])),
            helper.make_node("Div", ["ints", "three"], ["quotient"]),
            helper.make_node("Cast", ["quotient"], ["shift"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["input", "shift"], ["sum"]),
            helper.make_node("Cast", ["sum"], ["is_set"], to=TensorProto.BOOL),
            helper.make_node("Where", ["is_set", "sum", "two"], ["output"]),
        ],
        "folded",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [3, 2])],
        [
            helper.make_tensor_value_info("output", TensorProto.FLOAT, [3, 2]),
            helper.make_tensor_value_info("quotient", TensorProto.INT64, [2]),
        ],
    )
    opsets = [helper.make_opsetid("", 18)]
    model = bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
    values = np.array([[-2, 2], [0, 0], [1, 1]], np.float32)
    output, _ = RUNTIME.predictor(model)(values)
    # 7 / 3 and -7 / 3 are 2 and -2 in ONNX's whole numbers; a sum of 0 becomes 2.
    assert output.tolist() == [[2, 2], [2, -2], [3, -1]]
    expected = runtime_here("onnxruntime").predictor(model)(values)
    np.testing.assert_array_equal(output, expected[0])
    assert [name for name, _ in RUNTIME.profile_nodes(model, 2)] == ["sum", "is_set", "output"]


def trained_like(name: str) -> nn.Module:
    """A network of torchvision whose batch norms do something."""
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(name, weights=None)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean = torch.randn(part.num_features) / 4
            part.running_var = torch.rand(part.num_features) + 0.5
    return model.eval()


@pytest.mark.parametrize(
    "name", [pytest.param(own, marks=() if own in QUICK else pytest.mark.slow) for own in FAMILIES]
)
def test_a_whole_network_gives_what_onnx_runtime_gives(name: str) -> None:
    proto = to_onnx(trained_like(name), (2, 3, 64, 64))
    images = np.random.default_rng(0).standard_normal((3, 3, 64, 64), dtype=np.float32)
    (expected,) = runtime_here("onnxruntime").predictor(proto.SerializeToString())(images)
    (found,) = RUNTIME.predictor(proto.SerializeToString())(images)
    size = float(np.abs(expected).max())
    assert size > 0.01
    assert found.shape == (3, 1000)
    assert np.abs(found - expected).max() < 1e-4 * max(1.0, size)
    (halved,) = RUNTIME.predictor(to_fp16(proto).SerializeToString())(images)
    assert halved.dtype == np.float32
    assert 0 < np.abs(halved - expected).max() < 5e-3 * max(1.0, size)


def test_an_operator_that_is_not_known_is_named() -> None:
    with pytest.raises(
        NetworkError, match=r"no operator LpNormalization \(node 'node'\); use another runtime"
    ):
        RUNTIME.build(one_node("LpNormalization", IMAGE))
    with pytest.raises(NetworkError, match=r"no operator com\.microsoft\.Relu"):
        RUNTIME.build(one_node("Relu", IMAGE, domain="com.microsoft"))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (b"nothing", "this is not an ONNX file"),
        (one_node("Relu", (1, None, 3)), "input 'input' has no fixed shape"),
        (one_node("Slice", IMAGE, [ints(-1), ints(-9), ints(3), ints(-1)]), "Slice with a negative step"),
        (one_node("Conv", IMAGE, [noise(6, 3, 3, 3)]), "PyTorch cannot run Conv 'node': RuntimeError: "),
        (one_node("Conv", IMAGE, [noise(6, 4, 3, 3)], auto_pad="SAME_UPPER"), "auto_pad SAME_UPPER"),
        (one_node("MaxPool", IMAGE, kernel_shape=[2, 2], outputs=2), "only the first output of MaxPool"),
        (
            one_node("Resize", IMAGE, [None, None, ints(1, 8, 9, 7)], mode="linear"),
            "does not support Resize of batch or channels",
        ),
        (
            one_node("Resize", IMAGE, [None, None, ints(1, 4, 9, 9)], mode="nearest", nearest_mode="ceil"),
            r"Resize of this kind \(nearest, half_pixel, ceil\)",
        ),
        (  # by 1.5, pixels halfway would be others than PyTorch's
            one_node("Resize", (1, 4, 8, 6), [None, None, ints(1, 4, 12, 9)], mode="nearest"),
            r"Resize of this kind \(nearest, half_pixel, round_prefer_floor\)",
        ),
        (
            one_node("Pad", IMAGE, [ints(0, 1, 0, 0, 0, 1, 0, 0)], mode="reflect"),
            "does not support Pad of batch or channels, reflect",
        ),
        (
            one_node("Split", (1, 5), axis=1, num_outputs=4, outputs=4),
            "does not support Split of 5 into 4 parts",
        ),
    ],
)
def test_what_cannot_be_executed_is_an_error_of_one_line(model: bytes, message: str) -> None:
    with pytest.raises(NetworkError, match=message) as caught:
        RUNTIME.time_network(model, 0, 0.001, 1)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(GPU, reason="there is a GPU")
def test_without_a_gpu_everything_is_refused_with_what_to_do() -> None:
    runtime, model = runtime_here("torch"), one_node("Relu", IMAGE)
    for use in (
        runtime.fingerprint,
        runtime.probe,
        lambda: runtime.build(model),
        lambda: runtime.time_network(model, 0, 0.001, 1),
        lambda: runtime.profile_nodes(model, 1),
        lambda: runtime.predictor(model),
    ):
        with pytest.raises(DeviceError, match=r"^torch finds no CUDA GPU: PyTorch .* `nvidia-smi`") as caught:
            use()
        assert not isinstance(caught.value, NetworkError)
        assert "\n" not in str(caught.value)


def test_a_profile_of_this_runtime_is_labelled_torch_cuda_and_never_runs_elsewhere() -> None:
    profile = HwProfile(name="own", description="", runtime="torch", precision="fp16", batch=8)
    assert setting_of(profile).runtime == "torch-cuda"
    if not GPU:
        assert str(why_not_here(profile)).startswith("device 'own' is not available: torch finds no CUDA GPU")

    class Elsewhere:
        workers = 1

        def call(self, job: Any, limit_s: float) -> dict[str, Any]:
            raise AssertionError("nothing is sent there")

    with pytest.raises(DeviceError, match="only in this process, neither over ssh nor from a recording"):
        runtime_on(Elsewhere(), "torch")
    with pytest.raises(DeviceError, match="in fp32 or fp16, not in int8"):
        runtime_on(LocalDevice(), "torch", precision="int8")


def test_the_profile_in_the_documentation_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "devices.md").read_text(encoding="utf-8")
    (tmp_path / "hw_profiles").mkdir()
    text = next(part for part in page.split("```") if "hw_profiles/h200-torch.toml" in part)
    own = tmp_path / "hw_profiles" / "h200-torch.toml"
    own.write_text(text.removeprefix("toml"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_profile("h200-torch").setting == ("torch-cuda", "fp16", 1, 1, "default")
    assert load_profile("h200-torch").compute_capability == load_profile("h200").compute_capability


def test_every_node_is_timed_and_its_time_is_charged_to_its_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2), nn.ReLU6(), nn.Conv2d(16, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5),
    )  # fmt: skip
    space = discover_space(model, torch.zeros(1, 3, 32, 32), bins=2, channel_multiple=1)
    graph = OnnxSupernet(model, space, (1, 3, 32, 32))
    nodes = RUNTIME.profile_nodes(graph.variant(space.smallest()), 6)
    assert {name for name, _ in nodes} == {name for slot in graph.slots for name in slot.nodes}
    assert all(durations.shape == (6,) for _, durations in nodes)
    layers = attribute(graph.slots, nodes)
    assert [slot.template.op for slot in graph.slots] == ["Conv", "Conv", "ReduceMean", "Gemm"]
    assert (layers > 0).all()
    assert layers.sum() == pytest.approx(sum(durations.sum() for _, durations in nodes))


def test_a_change_of_shape_costs_nothing_and_a_wider_layer_more() -> None:
    flat = dict(RUNTIME.profile_nodes(one_node("Flatten", (1, 4, 1, 1)), 3))
    assert flat["node"].tolist() == [0, 0, 0]
    at = {"pads": [1, 1, 1, 1]}
    narrow, wide = (one_node("Conv", (1, 64, 32, 32), [noise(width, 64, 3, 3)], **at) for width in (8, 256))
    medians = [np.median(RUNTIME.profile_nodes(model, 9)[0][1]) for model in (narrow, wide)]
    assert 2 * medians[0] < medians[1]
    whole = np.median(RUNTIME.time_network(wide, 1, 0.01, 9))
    assert 0.4 < medians[1] / whole < 2.5


def test_an_engine_is_the_file_with_its_own_batch() -> None:
    model = one_node("Relu", (2, 4))
    engine = RUNTIME.build(model)
    assert engine.content == model
    assert engine.info["flavour"] == "torch-cuda"
    assert engine.info["versions"]["runtime_version"] == torch.__version__
    assert RUNTIME.build(model, (2,)).info["batches"] == [2]
    with pytest.raises(DeviceError, match="only static shapes: omit --batch, or set it to 2"):
        RUNTIME.build(model, (1, 8))


def test_tf32_is_off_while_a_network_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    conv: Any = torch.backends.cudnn.conv
    matmul: Any = torch.backends.cuda.matmul
    seen = set()

    def noted(x: torch.Tensor) -> torch.Tensor:
        seen.add((conv.fp32_precision, matmul.fp32_precision))
        return torch.relu(x)

    monkeypatch.setattr("bcnet.runtimes.onnx_torch.OPERATORS", {"Relu": lambda at, x: noted(x)})
    before = conv.fp32_precision, matmul.fp32_precision
    try:
        conv.fp32_precision = matmul.fp32_precision = "tf32"
        RUNTIME.predictor(one_node("Relu", (2, 4)))(np.ones((2, 4), np.float32))
        assert (conv.fp32_precision, matmul.fp32_precision) == ("tf32", "tf32")
    finally:
        conv.fp32_precision, matmul.fp32_precision = before
    assert seen == {("ieee", "ieee")}


def test_the_settings_of_pytorch_are_as_they_were_afterwards() -> None:
    before = torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.benchmark
    RUNTIME.predictor(one_node("Relu", (2, 4)))(np.ones((3, 4), np.float32))
    assert (torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.benchmark) == before
    assert torch.is_grad_enabled()


def test_the_probe_has_the_parts_that_a_table_compares() -> None:
    assert set(RUNTIME.probe()) == {"matmul_ms", "stream_ms"}


class PlayedCuda:
    """torch.cuda as far as the runtime uses it, with tensors that stay on the processor. Notes what is asked.

    A replay does nothing, and an event's time is its number: this shows the order of calls, not that a GPU
    accepts them.
    """

    class Stream:
        def wait_stream(self, other: object) -> None: ...

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.events = 0
        self.properties = SimpleNamespace(name="GPU X", major=8, minor=9, uuid="0-1")

    def is_available(self) -> bool:
        return True

    def get_device_capability(self, index: int) -> tuple[int, int]:
        return self.properties.major, self.properties.minor

    def get_device_name(self, index: int) -> str:
        return str(self.properties.name)

    def get_device_properties(self, index: int) -> SimpleNamespace:
        return self.properties

    def current_stream(self) -> Stream:
        return self.Stream()

    def synchronize(self) -> None:
        self.calls.append("synchronize")

    @contextmanager
    def _noted(self, name: str) -> Iterator[None]:
        self.calls.append(name)
        yield
        self.calls.append(f"end of {name}")

    def stream(self, stream: Stream) -> AbstractContextManager[None]:
        return self._noted("stream")

    def graph(self, graph: object, stream: Stream) -> AbstractContextManager[None]:
        return self._noted("graph")

    def CUDAGraph(self) -> SimpleNamespace:
        return SimpleNamespace(replay=lambda: self.calls.append("replay"))

    def Event(self, enable_timing: bool) -> SimpleNamespace:
        assert enable_timing

        def record() -> None:
            self.events += 1
            event.number = self.events
            self.calls.append("event")

        event = SimpleNamespace(record=record)
        event.elapsed_time = lambda other: float(other.number - event.number)
        return event


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> PlayedCuda:
    cuda = PlayedCuda()
    monkeypatch.setattr("bcnet.runtimes.torch_cuda.cuda", cuda)
    return cuda


def test_each_inference_is_a_replay_between_two_events_of_a_graph_that_was_warmed_up(
    played: PlayedCuda,
) -> None:
    samples = TorchCuda(device="cpu:0").time_network(one_node("Relu", (2, 4)), 0, 0, 3)
    assert samples.tolist() == [1, 1, 1]
    capture = ["stream", "end of stream", "graph", "end of graph"]
    assert played.calls == capture + 4 * ["event", "replay", "event", "synchronize"]


def test_an_application_copies_into_the_inputs_of_the_graph_and_replays_it_once_an_inference(
    played: PlayedCuda,
) -> None:
    samples = TorchCuda(device="cpu:0").time_network(one_node("Relu", (2, 4)), 0, 0, 3, application=True)
    assert len(samples) == 3
    assert (samples > 0).all()
    assert played.calls == ["stream", "end of stream", "graph", "end of graph", *4 * ["replay"]]


def test_a_predictor_keeps_the_weights_whose_addresses_its_graph_has(
    played: PlayedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = []

    def noted(model: bytes, device: torch.device) -> TorchNetwork:
        network = load_network(model, device)
        weights.append(weakref.ref(network.steps[0].fixed[1]))
        return network

    monkeypatch.setattr("bcnet.runtimes.torch_cuda.load_network", noted)
    predict = TorchCuda(device="cpu:0").predictor(one_node("Conv", IMAGE, [noise(6, 4, 3, 3)]))
    gc.collect()
    assert weights[0]() is not None
    del predict
    gc.collect()
    assert weights[0]() is None


def test_a_short_node_is_repeated_in_its_graph_and_its_time_divided(
    played: PlayedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bcnet.runtimes.torch_cuda.REPLAY_MS", 4.0)  # an event's time is 1 here: four copies
    ((name, durations),) = TorchCuda(device="cpu:0").profile_nodes(one_node("Relu", (2, 4)), 2)
    assert (name, durations.tolist()) == ("node", [0.25, 0.25])


def test_a_gpu_is_known_by_its_versions_and_refused_for_another_profile(
    played: PlayedCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text('#!/bin/sh\n[ "$2" = GPU-0-1 ] && echo "580.1, 1980 MHz, 3201 MHz, 700.00 W"\n')
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = TorchCuda("8.9", "cpu:0").fingerprint()
    assert (found["runtime"], found["processor"], found["compute_capability"]) == (
        "torch-cuda",
        "GPU X",
        "8.9",
    )
    assert found["runtime_version"] == torch.__version__
    assert found["tf32"] == "off"
    assert found["driver"] == "580.1"
    assert found["max_sm_clock"] == "1980 MHz"
    smi.write_text("#!/bin/sh\nexit 9\n")
    assert "driver" not in TorchCuda(device="cpu:0").fingerprint()
    with pytest.raises(
        DeviceError, match=r"the GPU GPU X has compute capability 8\.9, the hardware profile 9\.0"
    ):
        TorchCuda("9.0", "cpu:0").probe()


@pytest.mark.gpu
def test_on_a_gpu_outputs_agree_and_times_are_positive() -> None:
    runtime, proto = TorchCuda(), to_onnx(trained_like("mobilenet_v2"), (2, 3, 64, 64))
    model = proto.SerializeToString()
    images = np.random.default_rng(0).standard_normal((3, 3, 64, 64), dtype=np.float32)
    (expected,) = runtime_here("onnxruntime").predictor(model)(images)
    predict = runtime.predictor(model)
    assert np.abs(predict(images)[0] - expected).max() < 1e-3 * max(1.0, float(np.abs(expected).max()))
    assert np.array_equal(predict(images)[0], predict(images)[0])
    whole = np.median(runtime.time_network(model, 10, 0.05, 20))
    nodes = runtime.profile_nodes(model, 5)
    assert 0 < sum(np.median(durations) for _, durations in nodes) < 3 * whole
    assert runtime.fingerprint()["compute_capability"]
