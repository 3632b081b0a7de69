"""Half precision and opset 17: what is in the files, and that they calculate the same."""

from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from bcnet.config import DataConfig
from bcnet.data.dataset import load_data
from bcnet.errors import ModelError
from bcnet.hw_profiles import HwProfile, load_profile
from bcnet.onnx_export.fp16 import to_fp16
from bcnet.onnx_export.onnx_supernet import OnnxSupernet, to_onnx
from bcnet.onnx_export.opset import at_opset
from bcnet.onnx_export.precision import at_precision
from bcnet.runtimes import runtime_here
from bcnet.runtimes.torch_cuda import TorchCuda
from bcnet.space.discover import discover_space

SHAPE = (1, 3, 14, 14)


class Parts(nn.Module):
    """All that opset 18 writes in another way: means, parts of a channel split, sizes to resize to."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.mix, self.head = nn.Conv2d(32, 24, 1), nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.relu(self.stem(x)).chunk(2, 1)
        y = torch.relu(self.mix(torch.cat([self.a(left), right], 1)))
        small = functional.interpolate(y, size=(6, 9), mode="bilinear")
        z: Tensor = functional.interpolate(self.head(small * y.mean((2, 3), keepdim=True)), size=(18, 27))
        return z


@cache
def graph(precision: str = "fp32", opset: int = 18) -> OnnxSupernet:
    torch.manual_seed(0)
    model = Parts().eval()
    space = discover_space(model, torch.zeros(SHAPE), bins=4, min_width=0.4)
    return OnnxSupernet(model, space, SHAPE, precision, opset=opset)


def outputs(content: bytes) -> np.ndarray:
    images = np.random.default_rng(0).standard_normal((3, *SHAPE[1:]), dtype=np.float32)
    (found,) = runtime_here("onnxruntime").predictor(content)(images)
    return found


def opset_of(proto: ModelProto) -> int:
    return {entry.domain: entry.version for entry in proto.opset_import}[""]


def test_a_half_file_calculates_in_halves_and_takes_and_gives_floats() -> None:
    proto = graph().proto
    found = to_fp16(proto)
    assert found.graph.input == proto.graph.input
    ends = [entry.type.tensor_type.elem_type for entry in (*found.graph.input, *found.graph.output)]
    assert ends == [TensorProto.FLOAT] * 2
    assert TensorProto.FLOAT not in {entry.data_type for entry in found.graph.initializer}
    inside = onnx.shape_inference.infer_shapes(found, strict_mode=True).graph.value_info
    assert {value.type.tensor_type.elem_type for value in inside} == {TensorProto.FLOAT16}
    wanted = outputs(proto.SerializeToString())
    assert 0 < np.abs(outputs(found.SerializeToString()) - wanted).max() < 2e-3 * np.abs(wanted).max()


def test_nodes_keep_their_names_and_only_the_casts_are_new() -> None:
    before, after = ([node.name for node in p.graph.node] for p in (graph().proto, to_fp16(graph().proto)))
    assert after == ["input_half", *before, "output_float"]


def test_values_beyond_the_largest_half_become_it_and_infinity_stays() -> None:
    values = np.array([1e6, -1e6, np.inf, 2.0], np.float32)
    node = helper.make_node("Min", ["input", "limits"], ["output"], name="output")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("input", "output")]
    limits = [numpy_helper.from_array(values, "limits")]
    proto = helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:], limits))
    (found,) = to_fp16(proto).graph.initializer
    assert numpy_helper.to_array(found).tolist() == [65504.0, -65504.0, np.inf, 2.0]


def test_what_keeps_a_norm_from_zero_does_not_vanish() -> None:
    class Direction(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return functional.normalize(x, dim=1)  # at least 1e-12

    content = to_fp16(to_onnx(Direction(), SHAPE)).SerializeToString()
    (found,) = runtime_here("onnxruntime").predictor(content)(np.zeros(SHAPE, np.float32))
    assert np.array_equal(found, np.zeros(SHAPE))


@pytest.mark.parametrize("name", ["onnxruntime", "torch"])
def test_statistics_beyond_the_largest_half_keep_their_values(name: str) -> None:
    norm, conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(torch.tensor([1e5, 0.0, 3e3]))
    norm.running_var.copy_(torch.tensor([1e5, 4e5, 1e6]))
    proto = to_onnx(nn.Sequential(norm, conv), SHAPE)
    assert [node.op_type for node in proto.graph.node] == ["BatchNormalization", "Conv"]
    images = 500 * np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)
    (wanted,) = runtime_here("onnxruntime").predictor(proto.SerializeToString())(images)
    content = to_fp16(proto).SerializeToString()
    runtime = TorchCuda(device="cpu") if name == "torch" else runtime_here(name)
    (found,) = runtime.predictor(content)(images)
    assert np.abs(found - wanted).max() < 2e-3 * np.abs(wanted).max()


class WithAnchors(nn.Module):
    """Gives constants, too, as detectors do: one that it also calculates with, one that it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([[[[1000.1]], [[0.25]], [[3.0]]]]))
        self.register_buffer("anchors", torch.tensor([[500.3, 1.0]]))

    def forward(self, x: Tensor) -> tuple[Tensor, Any, Any]:
        return x * self.shift, self.shift, self.anchors


def test_outputs_that_are_constants_stay_as_they_are() -> None:
    proto = to_onnx(WithAnchors(), SHAPE)
    images = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)
    product, *wanted = runtime_here("onnxruntime").predictor(proto.SerializeToString())(images)
    for converted, tolerance in ((to_fp16(proto), 1e-2), (at_opset(proto, 17), 0.0)):
        scaled, *found = runtime_here("onnxruntime").predictor(converted.SerializeToString())(images)
        assert [array.tolist() for array in found] == [array.tolist() for array in wanted]
        assert np.abs(scaled - product).max() <= tolerance * np.abs(product).max()


def test_an_operator_without_halves_is_named() -> None:
    nodes = [
        helper.make_node("NonMaxSuppression", ["input", "scores"], ["output"], name="boxes"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 4]) for name in ("input", "scores")]
    output = helper.make_tensor_value_info("output", TensorProto.INT64, [None, 3])
    proto = helper.make_model(helper.make_graph(nodes, "g", ends, [output]))
    with pytest.raises(ModelError, match=r"cannot be converted to fp16: .*NonMaxSuppression"):
        to_fp16(proto)


@pytest.mark.parametrize("opset", [17, 18])
def test_narrow_half_files_are_sliced_from_the_full_one(opset: int) -> None:
    floats, halves = graph(), graph("fp16", opset)
    assert halves.sliceable
    space = halves.space
    for widths in (space.largest(), space.random(np.random.default_rng(1)), space.smallest()):
        content = halves.variant(widths)
        onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
        wanted = outputs(floats.variant(widths))
        assert 0 < np.abs(outputs(content) - wanted).max() < 2e-3 * np.abs(wanted).max()
        assert len(content) < len(floats.variant(widths))


def test_opset_17_has_the_same_nodes_and_gives_the_same_outputs() -> None:
    new, old = graph(), graph(opset=17)
    assert (opset_of(new.proto), opset_of(old.proto)) == (18, 17)
    assert old.proto.ir_version <= 8
    assert {"ReduceMean", "Split", "Resize"} <= {node.op_type for node in old.proto.graph.node}
    assert [(n.op_type, n.name) for n in old.proto.graph.node] == [
        (n.op_type, n.name) for n in new.proto.graph.node
    ]
    assert old.slots == new.slots
    for widths in (new.space.largest(), new.space.smallest()):
        wanted = outputs(new.variant(widths))
        assert np.abs(outputs(old.variant(widths)) - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_what_only_opset_18_can_say_is_refused() -> None:
    proto = ModelProto()
    proto.CopyFrom(graph().proto)
    resize = next(node for node in proto.graph.node if node.op_type == "Resize")
    kept = [entry for entry in resize.attribute if entry.name != "antialias"]
    del resize.attribute[:]
    resize.attribute.extend([*kept, helper.make_attribute("antialias", 1)])
    with pytest.raises(ModelError, match=f"opset 17: '{resize.name}' has antialias"):
        at_opset(proto, 17)


def test_a_factor_that_is_no_float_is_refused_where_it_would_take_other_pixels() -> None:
    proto = to_onnx(nn.Upsample(size=(14, 20)).eval(), (1, 2, 6, 9))
    with pytest.raises(
        ModelError, match=r"opset 17: .* resizes \[\(6, 14\), \(9, 20\)\] to the nearest pixel"
    ):
        at_opset(proto, 17)


def test_a_profile_decides_on_precision_and_opset() -> None:
    data = load_data(DataConfig(image_size=16, train_limit=12, test_limit=20), 0)
    proto = to_onnx(nn.Sequential(nn.Conv2d(1, 8, 3), nn.AdaptiveAvgPool2d(1)).eval(), (1, 1, 16, 16))
    profile = HwProfile(name="gpu", description="", runtime="tensorrt", precision="fp16", opset=17)
    found = at_precision(proto, data, profile, 0)
    assert opset_of(found) == 17
    assert [node.name for node in found.graph.node][:: len(found.graph.node) - 1] == [
        "input_half",
        "output_float",
    ]
    same = at_precision(proto, data, profile.model_copy(update={"precision": "fp32", "opset": 18}), 0)
    assert same == proto
    assert load_profile("jetson-xavier-nx").opset == 17
    assert load_profile("jetson").opset == 18
