"""Rows of TensorRT's profiles charged to layers.

The profiles here are CONSTRUCTED: TensorRT's own way of naming, as public recordings have it (see
docs/reference/tensorrt.md), with the names of the network at hand. Times are made up. The rows of TensorRT
for RTX are real, from its builder.
"""

import re

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from bcnet.errors import DeviceError
from bcnet.hw_profiles import HwProfile
from bcnet.latency_tables.model import LayerSlot
from bcnet.latency_tables.rows import LayerSpec
from bcnet.latency_tables.table import LatencyTable
from bcnet.measure import layer_attribution, network_latency
from bcnet.measure.layer_attribution import attribute_fused, layers_ms
from bcnet.measure.tensorrt_rows import RowReader
from bcnet.onnx_export.onnx_supernet import OnnxSupernet
from bcnet.pipeline import build_lut as stage
from bcnet.space.discover import discover_space


def slot(*nodes: str, op: str = "Conv") -> LayerSlot:
    return LayerSlot(nodes[0], LayerSpec(op, 8, 8), ((None, 8),), ((None, 8),), None, nodes)


# conv_1 -> act_1 -> conv_12 -> add (with pool) -> left and right, joined by cat -> head
ORIGIN = re.compile(r"\[ONNX Layer: [^\]]*\]")
SLOTS = (
    slot("conv_1", "sig_1", "act_1"),
    slot("pool", op="MaxPool"),
    slot("conv_12", "add"),
    slot("left", "relu_l"),
    slot("right", "relu_r"),
    slot("cat", op="Concat"),
    slot("head", "output", op="Gemm"),
)
READERS = {
    "input": ("conv_1",),
    "conv_1": ("sig_1", "act_1"),
    "act_1": ("pool", "conv_12"),
    "conv_12": ("add",),
    "pool": ("add",),
    "add": ("left", "right"),
    "relu_l": ("cat",),
    "relu_r": ("head", "cat"),
    "cat": ("head",),
}
WORK = (6.0, 0.0, 6.0, 1.0, 3.0, 0.0, 2.0)
LAYERS = {own.name: number for number, own in enumerate(SLOTS)}


def whose(*rows: str) -> list[dict[str, float]]:
    """Each row's shares by the names of layers."""
    names = list(LAYERS)
    found = RowReader(SLOTS, READERS, WORK).shares(rows)
    return [{names[layer]: part for layer, part in parts.items()} for parts in found]


@pytest.mark.parametrize(
    ("row", "layer"),
    [
        ("conv_1", "conv_1"),
        ("conv_12", "conv_12"),  # no other's prefix counts
        ("conv_1 + PWN(PWN(sig_1), act_1)", "conv_1"),
        ("PWN(PWN(sig_1), act_1)", "conv_1"),  # not fused: still its layer's
        ("conv_12 + add", "conv_12"),
        ("left.weight + left.weight_QuantizeLinear + left + relu_l", "left"),
        # A sum is fused into whichever convolution runs last; its own layer may be another.
        ("left + add + relu_l", "left"),
        ("conv_1_clone_0", "conv_1"),
        ("reshape_before_head", "head"),
        ("reshape_after_head", "head"),
        (
            "head.weight + head + head.bias + (Unnamed Layer* 306) [Shuffle] + unsqueeze_node_after_b",
            "head",
        ),
        ("squeeze_after_head", "head"),
        ("copied_squeeze_after_head", "head"),
        ("Reformatting CopyNode for Input Tensor 0 to conv_12 + add", "conv_12"),
        ("Reformatting CopyNode for Input Tensor 1 to conv_12 + add", "conv_12"),
        ("Reformatting CopyNode for Input Tensor 0 to reshape_after_head", "head"),
        ("Reformatting CopyNode for Output Tensor 0 to conv_1 + PWN(PWN(sig_1), act_1)", "pool"),
        ("Reformatting CopyNode for Output Tensor 0 to head", "head"),  # nothing comes after it
        ("Reformatting CopyNode for Network Input input", "conv_1"),
        ("Reformatting CopyNode for Network Output output", "head"),
        ("relu_l copy", "cat"),
        ("relu_r copy", "cat"),
        ("input_QuantizeLinear", "conv_1"),
        ("act_1_QuantizeLinear", "pool"),
        ("cat_DequantizeLinear", "head"),
        ("__myl_Fc_myl0_3 [ONNX Layer: head] [ONNX Layer: output]", "head"),
        ("conv_12_myl0_70", "conv_12"),
        ("conv_12_U4_myl0_2", "conv_12"),  # TensorRT for RTX
    ],
)
def test_a_row_is_the_layer_whose_first_node_is_in_it(row: str, layer: str) -> None:
    assert whose(row) == [{layer: 1.0}]


@pytest.mark.parametrize(
    "row",
    [
        "(Unnamed Layer* 3) [Shuffle]",
        "copied_squeeze_after_(Unnamed Layer* 850) [ElementWise]",
        "__myl_Move_myl0_0",
        "entry^bb^wait^2_myl0_1",
        "conv_123 + relu_12",
        "QuantizeLinear_2",
        "Reformatting CopyNode for Input Tensor 0 to (Unnamed Layer* 3) [Shuffle]",
    ],
)
def test_a_row_without_the_networks_names_is_no_layers(row: str) -> None:
    assert whose(row) == [{}]


def test_a_row_of_several_layers_is_split_by_their_arithmetic() -> None:
    assert whose("left + relu_l || right + relu_r") == [{"left": 0.25, "right": 0.75}]
    assert whose("conv_1 + PWN(PWN(sig_1), act_1) + pool") == [{"conv_1": 1.0, "pool": 0.0}]
    assert whose("pool + cat") == [{"pool": 0.5, "cat": 0.5}]  # no arithmetic: evenly
    assert whose("__myl_ConvConv_myl0_1 [ONNX Layer: left][ONNX Layer: right]") == [
        {"left": 0.25, "right": 0.75}
    ]
    assert whose("Reformatting CopyNode for Input Tensor 0 to left + relu_l || right + relu_r") == [
        {"left": 0.25, "right": 0.75}
    ]


def test_a_change_of_format_is_that_of_the_row_that_it_is_for_whatever_is_told_of_itself() -> None:
    fused = "__myl_Fc_myl0_3"
    rows = (
        f"Reformatting CopyNode for Input Tensor 0 to {fused} [ONNX Layer: conv_1]",
        f"{fused} [ONNX Layer: head]",
    )
    assert whose(*rows) == [{"head": 1.0}] * 2
    assert whose("relu_l copy [ONNX Layer: left]") == [{"cat": 1.0}]


def test_a_region_is_what_lies_between_its_ends_and_has_no_row_of_its_own() -> None:
    assert whose("{ForeignNode[conv_12...relu_r]}", "right + relu_r") == [
        {"conv_12": 6 / 7, "left": 1 / 7},
        {"right": 1.0},
    ]
    # An end that is a weight or has no name: up to where the network's other rows are.
    assert whose("conv_1", "{ForeignNode[conv_12.weight...relu_l]}", "right")[1] == {
        "pool": 0.0,
        "conv_12": 6 / 7,
        "left": 1 / 7,
    }
    assert whose("{ForeignNode[left...(Unnamed Layer* 3) [Shuffle]]}", "head") == [
        {"left": 0.25, "right": 0.75, "cat": 0.0},
        {"head": 1.0},
    ]
    rows = (
        "Reformatting CopyNode for Input Tensor 0 to {ForeignNode[left...cat]}",
        "{ForeignNode[left...cat]}",
    )
    assert whose(*rows) == [{"left": 0.25, "right": 0.75, "cat": 0.0}] * 2
    assert whose("{ForeignNode[conv_1...act_1]}") == [{"conv_1": 1.0}]
    assert whose("{ForeignNode[a...b]}", "conv_1", "head")[0].keys() == LAYERS.keys() - {"conv_1", "head"}


def test_a_region_that_has_two_rows_is_the_same_layers_twice() -> None:
    region = "{ForeignNode[left...cat]}"
    assert whose(region, region, "head")[:2] == [{"left": 0.25, "right": 0.75, "cat": 0.0}] * 2


@pytest.mark.parametrize(
    "rows", [[], [("conv_1", np.array([np.nan]))], [("conv_1", np.array([0.0])), ("head", np.array([0.0]))]]
)
def test_a_profile_without_times_is_an_error(
    rows: list[tuple[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Joined().eval()
    space = discover_space(model, torch.zeros(1, 3, 32, 32), bins=2)
    graph = OnnxSupernet(model, space, (1, 3, 32, 32))

    class Empty:
        def profile_nodes(self, model: bytes, runs: int) -> list[tuple[str, np.ndarray]]:
            return rows

    monkeypatch.setattr(layer_attribution, "runtime_of", lambda profile: Empty())
    profile = HwProfile(name="jetson", description="", runtime="tensorrt")
    with pytest.raises(DeviceError, match="tensorrt's profile of a network has no times"):
        layers_ms(graph, space.largest(), b"", profile, 1)


def test_what_has_a_layer_stays_and_the_rest_is_left_to_the_calibration() -> None:
    rows = [
        ("Reformatting CopyNode for Input Tensor 0 to left + relu_l", np.array([1.0, 0.5])),
        ("left + relu_l || right + relu_r", np.array([8.0, 4.0])),
        ("(Unnamed Layer* 3) [Shuffle]", np.array([2.0, 7.0])),
    ]
    shares = RowReader(SLOTS, READERS, WORK).shares([name for name, _ in rows])
    charged = attribute_fused(len(SLOTS), rows, shares)
    assert charged[LAYERS["left"]].tolist() == [1.5, 3.0]  # the fastest run first
    assert charged[LAYERS["right"]].tolist() == [3.0, 6.0]
    assert charged.sum() == 13.5


def test_a_profile_that_names_hardly_any_of_the_network_is_refused() -> None:
    rows = [("head", np.array([0.4])), ("__myl_Move_myl0_0", np.array([0.7])), ("x", np.array([0.1]))]
    shares = RowReader(SLOTS, READERS, WORK).shares([name for name, _ in rows])
    with pytest.raises(DeviceError, match=r"only 33% of the time .* other row is '__myl_Move_myl0_0'"):
        attribute_fused(len(SLOTS), rows, shares)


def test_a_profile_is_not_refused_for_a_run_in_which_a_short_row_was_interrupted() -> None:
    rows = [("head", np.array([0.4, 0.4])), ("Reorder (unknown)", np.array([0.001, 9.0]))]
    shares = RowReader(SLOTS, READERS, WORK).shares([name for name, _ in rows])
    assert attribute_fused(len(SLOTS), rows, shares).sum() == pytest.approx(0.8)


class Joined(nn.Module):
    """A stem, two branches that are joined, a sum, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.SiLU())
        self.left, self.right = (nn.Sequential(nn.Conv2d(16, 8, 1), nn.ReLU()) for _ in range(2))
        self.after = nn.Conv2d(16, 16, 3, 1, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        stem = self.stem(images)
        joined = torch.cat([self.left(stem), self.right(stem)], 1)
        return self.head((self.after(joined) + stem).relu().mean((2, 3)))


def fused_names(graph: OnnxSupernet) -> list[str]:
    """Rows as TensorRT makes them of `Joined`: branches side by side, copies that join, formats changed."""
    stem, left, right, _, after, mean, head = (slot.nodes for slot in graph.slots)
    branches = f"{' + '.join(left)} || {' + '.join(right)}"
    sigmoid, product = stem[1:]
    convolved = f"{stem[0]} + PWN(PWN({sigmoid}), {product})"
    return [
        f"Reformatting CopyNode for Input Tensor 0 to {convolved}",
        convolved,
        branches,
        f"{left[-1]} copy",
        f"{right[-1]} copy",
        " + ".join(after),
        f"Reformatting CopyNode for Output Tensor 0 to {' + '.join(after)}",
        mean[0],
        head[0],
        f"reshape_after_{head[0]}",
        "(Unnamed Layer* 30) [Shuffle]",
    ]


class Profiled:
    """A runtime that answers as TensorRT does through trtexec: one median for each row. Nothing is run."""

    workers = 1

    def __init__(self, graph: OnnxSupernet) -> None:
        self.graph = graph

    def fingerprint(self) -> dict[str, str]:
        return {"runtime_version": "constructed", "processor": "none"}

    def probe(self) -> dict[str, float]:
        return {"loop_ms": 1.0}

    def rows(self, model: bytes) -> list[tuple[str, float]]:
        """A microsecond for a thousand weights of what is named, three for every other row."""
        arrays = {e.name: int(np.prod(e.dims)) for e in onnx.load_from_string(model).graph.initializer}
        weights = {
            node.output[0]: arrays[node.input[1]]
            for node in self.graph.proto.graph.node
            if node.op_type in ("Conv", "Gemm")
        }
        return [
            (name, 0.003 + 1e-6 * sum(weights.get(part, 0) for part in name.split() if "for" not in name))
            for name in fused_names(self.graph)
        ]

    def profile_nodes(self, model: bytes, runs: int) -> list[tuple[str, np.ndarray]]:
        return [(name, np.array([ms])) for name, ms in self.rows(model)]

    def time_network(
        self, model: bytes, warmup_ms: float, seconds: float, iterations: int, *, application: bool = False
    ) -> np.ndarray:
        return np.array([0.02 + sum(ms for _, ms in self.rows(model))] * iterations)


def test_a_table_is_built_from_one_median_a_row_and_the_rest_is_its_constant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model = Joined().eval()
    space = discover_space(model, torch.zeros(1, 3, 32, 32), bins=4, channel_multiple=1)
    graph = OnnxSupernet(model, space, (1, 3, 32, 32))
    monkeypatch.setattr(network_latency, "runtime_here", lambda *_, **__: Profiled(graph))
    profile = HwProfile(name="jetson", description="", runtime="tensorrt", seconds=0.01, iterations=2)
    table = LatencyTable("jetson")
    report = stage.build_lut(graph, profile, table)
    assert report.failed == ()
    assert report.measured == len(table.rows)
    rows = {layer: row.stat for (layer, _), row in table.rows.items()}
    widths = space.largest()
    stem, left, _, cat, after, mean, head = (rows[slot.at(widths)] for slot in graph.slots)
    # A journal keeps tenths of a microsecond; every network that shows a layer says the same of it.
    tenth = pytest.approx(0.0, abs=1e-4)
    assert (stem.spread, after.spread) == (0.0, 0.0)
    assert stem.median_ms - (0.006 + 1e-6 * 16 * 27) == tenth  # its row, and the change of format before it
    assert left.median_ms - (0.003 + 1e-6 * 2 * 128) / 2 == tenth
    assert cat.median_ms - 0.006 == tenth  # two copies
    assert after.median_ms - (0.003 + 1e-6 * 16 * 16 * 9) == tenth
    assert mean.median_ms - 0.006 == tenth
    assert head.median_ms - (0.006 + 1e-6 * 160) == tenth
    # What is left: a row without a name, and what the network takes beside its rows.
    assert report.calibration.offset_ms == pytest.approx(0.023, abs=5e-3)
    assert report.calibration.mean_error == pytest.approx(0.0, abs=0.01)


def test_integers_names_are_read_as_the_quantiser_gives_them() -> None:
    torch.manual_seed(0)
    model = Joined().eval()
    space = discover_space(model, torch.zeros(1, 3, 32, 32), bins=4)
    graph = OnnxSupernet(model, space, (1, 3, 32, 32), "int8", unsigned=False)
    proto = onnx.load_from_string(graph.variant(space.largest()))
    names = [n.name for n in proto.graph.node if n.op_type == "QuantizeLinear"]
    shares = RowReader(graph.slots, graph.readers, [1.0] * len(graph.slots)).shares(names)
    owners = dict(zip(names, [[graph.slots[layer].name for layer in parts] for parts in shares], strict=True))
    assert owners["input_QuantizeLinear"] == [graph.slots[0].name]
    assert all(owners.values()), owners


def listed_by_rtx(model: bytes) -> list[str]:
    """Rows that TensorRT for RTX really makes of a file, as its builder lists them (without a GPU)."""
    trt = pytest.importorskip("tensorrt_rtx")
    said = []

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: object, message: str) -> None:
            said.append(message)

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(network, log).parse(model)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    assert builder.build_serialized_network(network, config) is not None
    lines = next(text for text in said if text.startswith("Layers:")).splitlines()
    return [line[len("Name: ") :] for line in lines if line.startswith("Name: ")]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_rows_of_tensorrt_for_rtx_are_read_with_and_without_what_it_says_of_their_origin(
    precision: str,
) -> None:
    torch.manual_seed(0)
    model = Joined().eval()
    space = discover_space(model, torch.zeros(1, 3, 32, 32), bins=4)
    graph = OnnxSupernet(model, space, (1, 3, 32, 32), precision, unsigned=False)
    lines = listed_by_rtx(graph.variant(graph.space.largest()))
    names = [line.split(", LayerType: ")[0] for line in lines]
    origins = [" ".join(["", *ORIGIN.findall(line)]) for line in lines]
    reader = RowReader(graph.slots, graph.readers, [1.0] * len(graph.slots))
    told = reader.shares([name + origin for name, origin in zip(names, origins, strict=True)])
    with_row = {graph.slots[layer].template.op for parts in told for layer in parts}
    assert with_row >= {"Conv", "ReduceMean", "Gemm"}
    # Only what moves the input, or waits for another stream, is of no node.
    unnamed = [name for name, parts in zip(names, told, strict=True) if not parts]
    assert all(re.match(r"__myl_Move|entry\^|__mye", name) for name in unnamed), names
    convolutions = [slot.name for slot in graph.slots if slot.template.op == "Conv"]
    plain = {graph.slots[layer].name for parts in reader.shares(names) for layer in parts}
    assert {name for name in convolutions if any(row.startswith(f"{name}_U") for row in names)} <= plain
