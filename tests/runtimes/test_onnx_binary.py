"""Binary convolutions in ONNX files: where they are found, and that OpenVINO runs them with 1-bit kernels."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Refused
from onnx import ModelProto, helper, numpy_helper
from torch import Tensor, nn

from bcnet.errors import NetworkError
from bcnet.hw_profiles import load_profile
from bcnet.models.binary import BinaryConv2d, RPReLU, RSign, only_binary
from bcnet.onnx_export.fp16 import to_fp16
from bcnet.onnx_export.int8 import quantized
from bcnet.onnx_export.onnx_supernet import OnnxSupernet, to_onnx
from bcnet.pipeline.binary_layers import not_in_single_bits, without_kernels
from bcnet.pipeline.export_further import one_bit_files
from bcnet.runtimes import runtime_here
from bcnet.runtimes.onnx_binary import (
    binary_convolutions,
    constants,
    for_openvino,
    in_one_bit_form,
    one_bit_file,
    packed_bytes,
)
from bcnet.space.discover import discover_space

IMAGES = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A real convolution, two binary ones, of which one has a stride, and another real one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 1, 1)
        self.sign1, self.conv1, self.norm1 = RSign(32), BinaryConv2d(32, 64, 3, 2), nn.BatchNorm2d(64)
        self.act = RPReLU(64)
        self.sign2, self.conv2, self.norm2 = RSign(64), BinaryConv2d(64, 32, 1), nn.BatchNorm2d(32)
        self.head = nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.act(self.norm1(self.conv1(self.sign1(x))))
        y: Tensor = self.head(self.norm2(self.conv2(self.sign2(x))))
        return y


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    model = Net().eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and name.startswith(("sign", "act", "norm")):
                tensor.uniform_(0.5, 1.5) if name.endswith("running_var") else tensor.uniform_(-1, 1)
    return model


@pytest.fixture(scope="module")
def proto(net: nn.Module) -> ModelProto:
    return to_onnx(net, IMAGES)


def test_convolutions_of_signs_are_found_with_their_thresholds_and_scales(
    net: nn.Module, proto: ModelProto
) -> None:
    first, second = binary_convolutions(proto.graph)
    weights = constants(proto.graph)
    assert [own.node.input[1] for own in (first, second)] == ["conv1.weight", "conv2.weight"]
    assert np.array_equal(first.thresholds, -net.sign1.bias.detach().numpy())
    assert np.array_equal(second.thresholds, -net.sign2.bias.detach().numpy())
    assert np.array_equal(first.scale, np.abs(weights["conv1.weight"][:, 0, 0, 0]))
    assert first.scale.std() > 0  # those of the batch norm


def test_a_convolution_of_other_weights_is_not_binary(proto: ModelProto) -> None:
    other = ModelProto()
    other.CopyFrom(proto)
    for entry in other.graph.initializer:
        if entry.name == "conv1.weight":
            changed = numpy_helper.to_array(entry).copy()
            changed[0, 0, 0, 0] *= 2
            entry.CopyFrom(numpy_helper.from_array(changed, entry.name))
    assert [own.node.input[1] for own in binary_convolutions(other.graph)] == ["conv2.weight"]


def test_a_layer_stays_binary_where_its_batch_norm_ignores_a_channel(net: nn.Module) -> None:
    """Such a channel has weights of zero in the file, and all others would be computed in floats with it."""
    model = copy.deepcopy(net)
    with torch.no_grad():
        model.get_parameter("norm1.weight")[3:5] = 0
        wanted = model(IMAGES).numpy()
    proto = to_onnx(model, IMAGES)
    assert [own.scale.min() > 0 for own in binary_convolutions(proto.graph)] == [False, True]
    (found,), kernels = run_in_openvino(for_openvino(proto)[0], IMAGES)
    assert sorted("u1" in own for own in kernels.values()) == [False, False, True, True]
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_a_file_without_binary_convolutions_is_left_as_it_is() -> None:
    proto = to_onnx(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), IMAGES)
    assert for_openvino(proto) == (proto, ())
    assert packed_bytes(proto) is None


def test_nodes_of_the_openvino_form_have_names_of_their_own_and_the_weights_keep_theirs(
    proto: ModelProto,
) -> None:
    """ONNX Runtime refuses two nodes of one name, and names of weights say to which modules layers belong."""
    graph = for_openvino(proto)[0].graph
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    arrays = constants(graph)
    for weight in ("conv1.weight", "conv2.weight"):
        assert set(arrays[weight].flatten().tolist()) == {-1, 1}


def test_weights_of_constant_nodes_are_replaced_in_the_openvino_form(proto: ModelProto) -> None:
    """Other exporters write them so; a name that a node and an initialiser have is invalid."""
    other = ModelProto()
    other.CopyFrom(proto)
    weight = next(entry for entry in other.graph.initializer if entry.name == "conv1.weight")
    node = helper.make_node("Constant", [], [weight.name], name=weight.name, value=weight)
    other.graph.node.insert(0, node)
    other.graph.initializer.remove(weight)
    made, names = for_openvino(other)
    assert len(names) == 2
    assert weight.name in {entry.name for entry in made.graph.initializer}
    assert all(own.op_type != "Constant" or own.output[0] != weight.name for own in made.graph.node)


def test_only_signs_make_a_file_one_in_the_openvino_form(proto: ModelProto) -> None:
    """An INT8 file of NNCF has FakeQuantize nodes of many levels in the same domain."""
    made, _ = for_openvino(proto)
    assert in_one_bit_form(made.graph)
    assert not in_one_bit_form(proto.graph)
    for node in made.graph.node:
        for own in node.attribute:
            own.i = 256 if own.name == "levels" else own.i
    assert not in_one_bit_form(made.graph)


def test_a_binary_network_in_fp16_is_refused_in_one_line(proto: ModelProto) -> None:
    with pytest.raises(
        NetworkError, match=r"fp16 has no form for OpenVINO's 1-bit kernels: choose fp32 or int8"
    ):
        one_bit_file(to_fp16(proto).SerializeToString())


def test_the_openvino_form_is_timed_by_openvino_alone_and_with_its_own_batch(
    proto: ModelProto, folder: Path, refused: Refused
) -> None:
    Path("small.onnx").write_bytes(one_bit_file(proto.SerializeToString()))
    line = refused(1, "time", "small.onnx", "--device", "cpu")
    assert "small.onnx is in the form for OpenVINO's 1-bit kernels, which 'cpu' does not read: give" in line
    line = refused(2, "time", "small.onnx", "--device", "cpu-openvino", "--batch", "4")
    assert "whose batch stays as it is; give the model.onnx beside it" in line


def test_a_binary_network_gets_no_table_at_a_precision_without_1_bit_kernels(net: nn.Module) -> None:
    graph = OnnxSupernet(net, discover_space(net, IMAGES, bins=2), IMAGES)
    here = load_profile("cpu-openvino")
    half, integers = (here.model_copy(update={"precision": name}) for name in ("fp16", "int8"))
    assert [not_in_single_bits(graph, own) for own in (here, integers, load_profile("cpu"))] == [None] * 3
    assert not_in_single_bits(graph, half) == (
        "cpu-openvino runs the network's 2 binary layers with single bits at fp32 and int8, not at fp16: "
        "choose one of these precisions"
    )
    assert without_kernels(graph, here) is None
    said = without_kernels(graph, load_profile("cpu"))
    assert said is not None
    assert said.startswith("onnxruntime has no 1-bit kernels, and computes the network's 2 binary layers in")


def test_binary_weights_count_one_bit_each(proto: ModelProto) -> None:
    arrays = {entry.name: numpy_helper.to_array(entry) for entry in proto.graph.initializer}
    binary = {name: arrays.pop(name) for name in ("conv1.weight", "conv2.weight")}
    bits = sum(own.size + 32 * len(own) for own in binary.values())
    assert packed_bytes(proto) == bits // 8 + sum(own.nbytes for own in arrays.values())


def test_thresholds_of_the_openvino_form_lie_between_two_limits(net: nn.Module, proto: ModelProto) -> None:
    arrays = constants(for_openvino(proto)[0].graph)
    below = [own for name, own in arrays.items() if name.endswith(":below")]
    above = [own for name, own in arrays.items() if name.endswith(":above")]
    for low, high, layer in zip(below, above, (net.sign1, net.sign2), strict=True):
        assert (low < high).all()
        assert np.allclose((low + high) / 2, -layer.bias.detach().numpy(), rtol=0, atol=1e-7)
        assert (high - low).max() < 3e-6


def test_each_device_with_1_bit_kernels_gets_a_file_of_its_own(proto: ModelProto) -> None:
    content = proto.SerializeToString()
    here, other = load_profile("cpu-openvino"), load_profile("cpu")
    assert one_bit_files(content, other) == {}
    assert one_bit_files(content, here) == {"model-one-bit.onnx": one_bit_file(content)}
    assert list(one_bit_files(content, here, "box")) == ["model-one-bit-box.onnx"]
    real = to_onnx(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), IMAGES).SerializeToString()
    assert one_bit_files(real, here) == {}


def run_in_openvino(proto: ModelProto, x: Tensor) -> tuple[list[np.ndarray], dict[str, str]]:
    """The outputs, and by the name of each convolution the kernel that ran it."""
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "PERF_COUNT": True,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = core.compile_model(core.read_model(proto.SerializeToString()), "CPU", settings)
    request = compiled.create_infer_request()
    outputs = [np.array(own) for own in request.infer([x.numpy()]).values()]
    rows = request.get_profiling_info()
    return outputs, {row.node_name: row.exec_type for row in rows if "Convolution" in row.node_type}


def test_openvino_runs_every_binary_convolution_in_one_bit_with_pytorchs_result(
    net: nn.Module, proto: ModelProto
) -> None:
    converted, names = for_openvino(proto)
    (found,), kernels = run_in_openvino(converted, IMAGES)
    assert len(names) == 2
    assert sorted("u1" in own for own in kernels.values()) == [False, False, True, True]
    with torch.no_grad():
        wanted = net(IMAGES).numpy()
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("binary", [["conv1"], ["conv2"], []])
def test_openvino_runs_the_binary_layers_of_a_mixed_network_in_one_bit_and_no_others(
    net: nn.Module, binary: list[str]
) -> None:
    mixed = copy.deepcopy(net)
    only_binary(mixed, binary)
    proto = to_onnx(mixed, IMAGES)
    converted, names = for_openvino(proto)
    found = [own.node.input[1] for own in binary_convolutions(proto.graph)]
    assert found == [f"{name}.weight" for name in binary]
    (outputs,), kernels = run_in_openvino(converted, IMAGES)
    assert len(names) == sum("u1" in own for own in kernels.values()) == len(binary)
    with torch.no_grad():
        wanted = mixed(IMAGES).numpy()
    assert np.abs(outputs - wanted).max() < 1e-5 * np.abs(wanted).max()
    arrays = {entry.name: numpy_helper.to_array(entry) for entry in proto.graph.initializer}
    bits = [arrays.pop(f"{name}.weight") for name in binary]
    packed = sum(own.size // 8 + 4 * len(own) for own in bits) + sum(own.nbytes for own in arrays.values())
    assert packed_bytes(proto) == (packed if binary else None)


def test_in_an_int8_file_binary_layers_keep_one_bit_and_others_become_integers(
    net: nn.Module, proto: ModelProto
) -> None:
    generator = torch.Generator().manual_seed(2)
    feeds = [{"input": torch.randn(1, 3, 12, 12, generator=generator).numpy()} for _ in range(8)]
    integers = quantized(proto, feeds, unsigned=True)
    (first, second), floats = binary_convolutions(integers.graph), binary_convolutions(proto.graph)
    assert [own.name for own in (first, second)] == [own.name for own in floats]
    assert np.array_equal(first.thresholds, floats[0].thresholds)
    (found,), kernels = run_in_openvino(for_openvino(integers)[0], IMAGES)
    assert sorted(own.rpartition("_")[2] for own in kernels.values()) == ["I8", "I8", "u1", "u1"]
    with torch.no_grad():
        wanted = net(IMAGES).numpy()
    (in_floats,) = runtime_here("onnxruntime").predictor(integers.SerializeToString())(IMAGES.numpy())
    # Where rounding to integers moves a sum over its threshold, outputs differ.
    assert np.corrcoef(found.ravel(), in_floats.ravel())[0, 1] > 0.99
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.9
    stored = {entry.name: numpy_helper.to_array(entry).dtype for entry in integers.graph.initializer}
    assert stored["conv1.weight"] == stored["conv2.weight"] == np.float32
    assert stored["head.weight_quantized"] == np.int8


def test_openvino_compares_with_a_threshold_as_pytorch_does() -> None:
    layer, conv = RSign(32), BinaryConv2d(32, 32, 1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        layer.bias.uniform_(-20, 20, generator=generator)
        layer.bias[0, :2] = 0
        threshold = -layer.bias
        near = threshold.abs().clamp_min(1) * 2**-21
        x = torch.cat([threshold + near, threshold - near, threshold + 1, threshold - 1], 3)
    model = nn.Sequential(layer, conv, nn.BatchNorm2d(32)).eval()
    (found,), _ = run_in_openvino(for_openvino(to_onnx(model, x))[0], x)
    with torch.no_grad():
        assert np.abs(found - model(x).numpy()).max() < 1e-4


class SharedSigns(nn.Module):
    """Three binary convolutions that read the same signs, as two do where ReActNet doubles its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.sign = nn.Conv2d(3, 32, 3, 1, 1), RSign(32)
        self.convs = nn.ModuleList(BinaryConv2d(32, 32, 1) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(32) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        bits = self.sign(self.stem(x))
        return torch.cat([norm(conv(bits)) for conv, norm in zip(self.convs, self.norms, strict=True)], 1)


def test_openvino_runs_all_convolutions_that_read_the_same_signs_in_one_bit() -> None:
    torch.manual_seed(0)
    model = SharedSigns().eval()
    with torch.no_grad():
        model.sign.bias.uniform_(-1, 1)
        wanted = model(IMAGES).numpy()
    converted, names = for_openvino(to_onnx(model, IMAGES))
    (found,), kernels = run_in_openvino(converted, IMAGES)
    assert len(names) == 3
    assert sorted("u1" in own for own in kernels.values()) == [False, True, True, True]
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_the_runtime_runs_an_exported_file_in_single_bits_by_itself(
    net: nn.Module, proto: ModelProto
) -> None:
    pytest.importorskip("openvino")
    runtime = runtime_here("openvino")
    content = proto.SerializeToString()
    (found,) = runtime.predictor(content)(IMAGES.numpy())
    with torch.no_grad():
        wanted = net(IMAGES).numpy()
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()
    first = binary_convolutions(proto.graph)[0]  # the other one may take less than a microsecond
    assert first.name in [name.split(" + ")[0] for name, _ in runtime.profile_nodes(content, 8)]
    assert one_bit_file(one_bit_file(content)) == one_bit_file(content) != content
