"""Convert ONNX files for older readers: TensorRT 8 reads ONNX up to opset 17.

In: an exported network in opset 18. Out: the same network in opset 17, with the same names.
"""

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper, shape_inference

from bcnet.errors import ModelError, NetworkError, one_line
from bcnet.runtimes.onnx_batch import resize_by_factors

NEWEST = 18
IR_VERSION = 8  # of the release of ONNX that introduced opset 17
# Attributes that opset 18 added to operators, with the value of the previous behaviour.
ADDED: dict[str, dict[str, int | bytes]] = {
    "Resize": {"antialias": 0, "keep_aspect_ratio_policy": b"stretch"},
    "ReduceMean": {"noop_with_empty_axes": 0},
}
REDUCTIONS = frozenset(
    f"Reduce{kind}" for kind in ("Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
)


def at_opset(proto: ModelProto, opset: int) -> ModelProto:
    """The network in opset 17 or, unchanged, 18. Raises ModelError if an operator needs the newer one.

    Reductions get their axes as an attribute, and Resize gets factors, which are valid at any width and
    batch, instead of sizes.
    """
    if opset >= NEWEST:
        return proto
    try:
        result = shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    except shape_inference.InferenceError as cause:
        raise ModelError(f"the sizes inside the network cannot be inferred: {one_line(cause)}") from None
    graph = result.graph
    try:
        resize_by_factors(graph)
    except NetworkError as reason:
        raise ModelError(f"opset {opset}: {reason}") from None
    arrays = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    sizes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    for node in graph.node:
        if node.op_type in REDUCTIONS:
            _axes_as_attribute(node, arrays)
        elif node.op_type == "Split":
            _drop(node, {"num_outputs": len(node.output)})  # without it, all parts are equal
            axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 0)
            if len(node.input) < 2 and len({sizes[name][axis] for name in node.output}) > 1:
                raise ModelError(f"opset {opset}: '{node.name}' splits into parts of different sizes")
        elif node.op_type == "Resize":
            _drop(node, ADDED["Resize"])
    del graph.value_info[:]
    used = {name for node in graph.node for name in node.input} | {entry.name for entry in graph.output}
    kept = [entry for entry in graph.initializer if entry.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for entry in result.opset_import:
        if not entry.domain:
            entry.version = opset
    result.ir_version = min(result.ir_version, IR_VERSION)
    try:
        onnx.checker.check_model(result, full_check=True)
    except Exception as cause:
        raise ModelError(f"the network cannot be written in ONNX opset {opset}: {one_line(cause)}") from None
    return result


def _axes_as_attribute(node: NodeProto, arrays: dict[str, np.ndarray]) -> None:
    _drop(node, ADDED["ReduceMean"])
    if len(node.input) > 1:
        if node.input[1] not in arrays:
            raise ModelError(f"opset 17: the axes of '{node.name}' are calculated")
        node.attribute.append(helper.make_attribute("axes", arrays[node.input[1]].tolist()))
        del node.input[1:]


def _drop(node: NodeProto, added: dict[str, int | bytes]) -> None:
    """Remove newer attributes whose value is the previous behaviour. Raises ModelError for other values."""
    kept = []
    for entry in node.attribute:
        if entry.name not in added:
            kept.append(entry)
        elif helper.get_attribute_value(entry) != added[entry.name]:
            raise ModelError(f"opset 17: '{node.name}' has {entry.name}, which is of opset 18")
    del node.attribute[:]
    node.attribute.extend(kept)
