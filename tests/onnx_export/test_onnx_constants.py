"""Constants that follow the widths: the sliced ONNX file equals the export of the cut network."""

import re
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from bcnet.errors import ModelError
from bcnet.onnx_export.onnx_supernet import OnnxSupernet
from bcnet.pipeline.build_lut import say_exports
from bcnet.space.discover import discover_space
from bcnet.space.extract import tensors_of
from bcnet.space.subnet import Subnet, subnet_state
from bcnet.space.supernet import cut
from tests.space.witnesses import anywhere

IMAGE = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Derived(nn.Module):
    """Slopes that are reshaped, a weight with a gain, one that two layers share, and a slice by a width."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.slopes = nn.Conv2d(3, 16, 1), nn.PReLU(16)
        self.gain, self.weight = (
            nn.Parameter(torch.rand(24, 1, 1, 1)),
            nn.Parameter(torch.randn(24, 16, 1, 1)),
        )
        self.shared = nn.Parameter(torch.randn(12, 24))
        self.c, self.fc = nn.Conv2d(40, 8, 1), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.slopes(self.a(x))
        b = F.conv2d(a, self.gain * self.weight)
        y = torch.cat([b[:, : a.shape[1]] + a, b[:, a.shape[1] :], a], 1)
        shared = F.linear(F.linear(b.mean((2, 3)), self.shared).relu(), self.shared.t())
        return self.fc(torch.cat([self.c(y).mean((2, 3)), shared], 1))


class Standardised(nn.Module):
    """Weight standardisation: the weights of a narrow network are not slices of the full one's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 24, 1), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.b.weight - self.b.weight.mean((1, 2, 3), keepdim=True)
        return self.fc(F.conv2d(self.a(x).relu(), weight, self.b.bias).mean((2, 3)))


class Chunked(nn.Module):
    """The block of YOLO: half of the channels is processed further, and all are concatenated at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 32, 1), nn.Conv2d(16, 24, 3, padding=1)
        self.c, self.fc = nn.Conv2d(56, 8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.a(x).relu().chunk(2, 1)
        y = torch.cat([first, second, self.b(second[:, :, 1:])[:, :, :1].expand(-1, -1, 8, -1)], 1)
        return self.fc(self.c(y).mean((2, 3)))


class Computed(nn.Module):
    """Two convolutions with a function between them, and the largest value of each channel at the end."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 8, 1), nn.Linear(8, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.between(self.a(x)))
        y = y.reshape(y.shape[0] * y.shape[1], -1).amax(1)
        return self.fc(y.view(len(x), -1))


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The progress messages."""
    said: list[str] = []
    monkeypatch.setattr("bcnet.onnx_export.onnx_supernet.say", said.append)
    return said


def assert_variants_are_the_cut_networks(graph: OnnxSupernet, seeds: int = 3) -> None:
    for seed in range(seeds):
        widths = graph.space.random(np.random.default_rng(seed))
        for subnet in (Subnet.at(graph.space, widths), anywhere(graph.space, widths, seed)):
            session = onnxruntime.InferenceSession(graph.variant(subnet), providers=["CPUExecutionProvider"])
            (found,) = session.run(None, {"input": IMAGE.numpy()})
            with torch.no_grad():
                expected = cut(graph.model, graph.space, subnet)(IMAGE).numpy()
            np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_constants_that_are_derived_from_weights_are_sliced(quiet: list[str]) -> None:
    torch.manual_seed(0)
    model = Derived().eval()
    graph = OnnxSupernet(model, discover_space(model, IMAGE, channel_multiple=1), IMAGE)
    assert graph.sliceable
    assert quiet == []
    assert_variants_are_the_cut_networks(graph)


def test_the_file_of_channels_that_lie_apart_holds_exactly_their_weights() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    graph = OnnxSupernet(model, discover_space(model, IMAGE, channel_multiple=1), IMAGE)
    subnet = Subnet.keeping(graph.space, [[0, 2, 3, 7]])
    wanted = subnet_state(tensors_of(model), graph.space, subnet)
    file = onnx.load_from_string(graph.variant(subnet))
    arrays = {entry.name: numpy_helper.to_array(entry) for entry in file.graph.initializer}
    assert {name: array.tolist() for name, array in arrays.items()} == {
        name: tensor.tolist() for name, tensor in wanted.items()
    }


def test_a_network_that_must_be_exported_for_each_width_says_so_and_why(
    quiet: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = Standardised().eval()
    graph = OnnxSupernet(model, discover_space(model, IMAGE, channel_multiple=1), IMAGE)
    assert not graph.sliceable
    assert len(quiet) == 1
    assert "the ONNX file of Standardised is exported again for each width" in quiet[0]
    assert "depends on the widths by more than its size" in quiet[0]
    assert_variants_are_the_cut_networks(graph, seeds=1)
    monkeypatch.setattr("bcnet.pipeline.build_lut.say", quiet.append)
    graph.export_seconds = 2.0
    say_exports(graph, [graph.space.smallest()] * 3)
    say_exports(graph, [graph.space.smallest()] * 240)
    assert [line.partition(",")[0] for line in quiet[1:]] == [
        "exporting 3 networks takes about 6 s",
        "exporting 240 networks takes about 8 min",
    ]


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda y: F.elu(y, y.shape[1] / 10), "'alpha' of .* \\(Elu\\) depends on the widths"),
        (lambda y: y.clamp(max=y.shape[1] / 32), "the constant .* by more than its size"),
        pytest.param(
            lambda y: torch.add(y, y.relu(), alpha=y.shape[1] / 16),
            "narrow networks have Mul instead of Add",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_numbers_computed_from_the_number_of_channels_are_those_of_each_width(
    between: Callable[[Tensor], Tensor], reason: str
) -> None:
    torch.manual_seed(0)
    model = Computed(between).eval()
    graph = OnnxSupernet(model, discover_space(model, IMAGE, channel_multiple=1), IMAGE)
    assert graph.not_sliced is not None
    assert re.search(reason, graph.not_sliced)
    assert_variants_are_the_cut_networks(graph, seeds=1)


def test_a_reshape_to_a_row_for_each_channel_follows_the_widths(quiet: list[str]) -> None:
    torch.manual_seed(0)
    model = Computed(torch.relu).eval()
    graph = OnnxSupernet(model, discover_space(model, IMAGE, channel_multiple=1), IMAGE)
    assert graph.sliceable
    assert quiet == []
    assert_variants_are_the_cut_networks(graph)


class Blurred(nn.Module):
    """One fixed filter for each of however many channels there are."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 8, 1), nn.Linear(8, 3)
        self.register_buffer("kernel", torch.rand(1, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        channels = y.shape[1]
        y = F.conv2d(y, self.kernel.expand(channels, -1, -1, -1), groups=channels)
        return self.fc(self.b(y).mean((2, 3)))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_fixed_filter_of_each_channel_is_sliced_and_priced_with_its_groups(
    quiet: list[str], precision: str
) -> None:
    torch.manual_seed(0)
    model = Blurred().eval()
    graph = OnnxSupernet(model, discover_space(model, IMAGE, channel_multiple=1), IMAGE, precision=precision)
    assert graph.sliceable
    assert quiet == []
    if precision == "fp32":
        assert_variants_are_the_cut_networks(graph)
    widths = graph.space.random(np.random.default_rng(0))
    filters = [spec for spec in (slot.at(widths) for slot in graph.slots) if spec.kernel == (3, 3)]
    assert [(spec.in_channels, spec.groups) for spec in filters] == [(widths[0], widths[0])]
    nodes = onnx.load_from_string(graph.variant(widths)).graph.node
    groups = [
        entry.i
        for node in nodes
        if node.op_type == "Conv"
        for entry in node.attribute
        if entry.name == "group"
    ]
    assert groups == [1, widths[0], 1]


def test_layers_behind_a_chunk_are_priced_at_the_channels_that_they_have() -> None:
    torch.manual_seed(0)
    model = Chunked().eval()
    graph = OnnxSupernet(model, discover_space(model, IMAGE, channel_multiple=1), IMAGE)
    assert_variants_are_the_cut_networks(graph, seeds=1)
    widths = graph.space.random(np.random.default_rng(1))
    arrays = {
        entry.name: entry.dims for entry in onnx.load_from_string(graph.variant(widths)).graph.initializer
    }
    priced = [slot.at(widths) for slot in graph.slots]
    convolutions = [(spec.out_channels, spec.in_channels) for spec in priced if spec.op == "Conv"]
    assert convolutions == [tuple(arrays[f"{name}.weight"][:2]) for name in "abc"]
    assert {spec.in_channels for spec in priced if spec.op == "Split"} == {2 * widths[0]}


class Deformed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.offsets, self.d = nn.Conv2d(3, 18, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = deform_conv2d(self.b(self.a(x)), self.offsets(x), self.d.weight, self.d.bias, padding=1)
        return self.fc(y.mean((2, 3)))


def test_an_operator_that_onnx_does_not_know_is_named() -> None:
    model, x = Deformed().eval(), torch.randn(1, 3, 12, 12)
    with pytest.raises(ModelError, match=r"ONNX does not have the operator 'DeformConv' \(.*deform_conv2d"):
        OnnxSupernet(model, discover_space(model, x), x)
