"""Rows of a profile, named after the modules and operators of the file."""

import numpy as np
import pytest
from onnx import GraphProto, TensorProto, helper, numpy_helper

from bcnet.measure.layer_names import LayerName, layer_names


@pytest.fixture
def graph() -> GraphProto:
    """Two convolutions, the second with a residual connection, then a multiplication and a linear layer."""
    conv = helper.make_node("Conv", ["x", "stem.conv.weight"], ["c0"], name="/stem/stem.0/Conv")
    scoped = helper.make_node("Conv", ["r0", "w1"], ["c1"], name="node_conv1")
    entry = scoped.metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", "['', 'layer1', 'layer1.conv', 'conv2d']"
    nodes = [
        helper.make_node("Identity", ["w1"], ["w1_same"], name="folded"),
        conv,
        helper.make_node("Relu", ["c0"], ["r0"], name="/stem/stem.0/Relu"),
        scoped,
        helper.make_node("Add", ["c1", "r0"], ["a1"], name="add"),
        helper.make_node("Clip", ["a1"], ["r1"], name="clip"),
        helper.make_node("Mul", ["r1", "r1"], ["m"], name="/head/head.1/Mul"),
        helper.make_node("Gemm", ["m", "w2"], ["y"], name="gemm"),
    ]
    weights = [numpy_helper.from_array(np.zeros(1, np.float32), n) for n in ("stem.conv.weight", "w1", "w2")]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    return helper.make_graph(nodes, "g", values[:1], values[1:], weights)


def test_rows_of_onnx_runtime_name_the_last_node_of_a_fused_group(graph: GraphProto) -> None:
    rows = ["r0_nchwc", "r1_nchwc_token_12", "ReorderOutput_token_9", "/head/head.1/Mul", "gemm", "odd_3"]
    assert layer_names(graph, rows) == [
        LayerName("stem.conv", "Conv+Relu"),
        LayerName("layer1.conv", "Conv+Add+Clip"),
        LayerName("ReorderOutput", "memory layout"),
        LayerName("head.1", "Mul"),
        LayerName("gemm", "Gemm"),
        LayerName("odd_3", ""),
    ]


def test_nodes_with_a_row_of_their_own_are_in_no_other_row(graph: GraphProto) -> None:
    names = layer_names(graph, ["c0_nchwc", "/stem/stem.0/Relu", "node_conv1", "clip"])
    assert [own.kind for own in names] == ["Conv", "Relu", "Conv", "Add+Clip"]


@pytest.mark.parametrize(
    "row",
    ["node_conv1 + add + clip", "__myl_7 [ONNX Layer: node_conv1] [ONNX Layer: add] [ONNX Layer: clip]"],
)
def test_rows_of_tensorrt_name_all_their_nodes(row: str, graph: GraphProto) -> None:
    assert layer_names(graph, [row]) == [LayerName("layer1.conv", "Conv+Add+Clip")]


def test_rows_of_an_engine_keep_their_names() -> None:
    rows = ["conv1 + relu", "Reformatting CopyNode for Input Tensor 0 to conv1"]
    assert layer_names(None, rows) == [LayerName(rows[0], ""), LayerName(rows[1], "memory layout")]


def test_metadata_that_is_no_list_is_ignored(graph: GraphProto) -> None:
    for text in ("((", "5", "(" * 10_000):
        graph.node[3].metadata_props[0].value = text
        assert layer_names(graph, ["c1"]) == [LayerName("node_conv1", "Conv")]
