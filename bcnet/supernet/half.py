"""FP16 files: newer TensorRT takes the precision from the file. In: an exported float network. Out: the same
network in half precision, from a cast of its inputs to a cast of its outputs, so that both stay float32.
"""

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bcnet.errors import FOREIGN, ModelError, one_line

LARGEST = float(np.finfo(np.float16).max)
SMALLEST = float(np.finfo(np.float16).smallest_subnormal)
SCALES = 2  # the input of a Resize that stays float32, by ONNX's definition
STATISTICS = (3, 4)  # inputs of a BatchNormalization that may


def half(proto: ModelProto) -> ModelProto:
    """An FP16 copy of a float network. Nodes keep their names, inputs and outputs their names and types.

    Finite values beyond the largest half (65504), such as limits of a Clip, become that; statistics of a
    batch norm that have such values stay float32. A single value too small for a half, such as the 1e-12 that
    keeps a norm from being 0, becomes the smallest. Outputs that are constants stay as they are. Raises
    ModelError where an operator of the network has no half precision.
    """
    result = ModelProto()
    result.CopyFrom(proto)
    graph = result.graph
    del graph.value_info[:]
    large = {entry.name for entry in graph.initializer if _overflows(entry)}
    floats = {node.input[place] for node in graph.node for place in _float_places(node, large)}
    others = {
        name
        for node in graph.node
        for place, name in enumerate(node.input)
        if place not in _float_places(node, large)
    }
    ends = {entry.name for entry in graph.output}
    for entry in list(graph.initializer):
        name, used = entry.name, entry.name in others
        if used and name in floats:  # the exporter makes equal tensors one
            _copy(graph, entry, f"{name}_float32")
        if used and name in ends and entry.data_type == TensorProto.FLOAT:
            _copy(graph, entry, name)
            entry.name = f"{name}_half"  # as `_cast_ends` calls it
        if used or name not in floats | ends:
            _convert(entry)
    for node in graph.node:
        for place in _float_places(node, large):
            if node.input[place] in others:
                node.input[place] = f"{node.input[place]}_float32"
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _convert(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    _cast_ends(graph)
    try:
        onnx.checker.check_model(result, full_check=True)
    except FOREIGN as cause:
        raise ModelError(f"the network cannot be made half precision: {one_line(cause)}") from None
    return result


def _float_places(node: NodeProto, large: set[str]) -> tuple[int, ...]:
    """Which inputs of a node stay float32."""
    if node.op_type == "Resize" and len(node.input) > SCALES and node.input[SCALES]:
        return (SCALES,)
    if node.op_type == "BatchNormalization" and any(node.input[place] in large for place in STATISTICS):
        return STATISTICS
    return ()


def _overflows(tensor: TensorProto) -> bool:
    if tensor.data_type != TensorProto.FLOAT:
        return False
    values = np.abs(numpy_helper.to_array(tensor))
    return bool((np.isfinite(values) & (values > LARGEST)).any())


def _copy(graph: onnx.GraphProto, entry: TensorProto, name: str) -> None:
    graph.initializer.append(entry)
    graph.initializer[-1].name = name


def _convert(tensor: TensorProto) -> None:
    """A float32 tensor to half; others stay as they are."""
    if tensor.data_type == TensorProto.FLOAT:
        values = numpy_helper.to_array(tensor)
        limited = np.where(np.isfinite(values), np.clip(values, -LARGEST, LARGEST), values)
        if values.size == 1:
            tiny = (values != 0) & (np.abs(values) < SMALLEST)
            limited = np.where(tiny, np.copysign(SMALLEST, values), limited)
        tensor.CopyFrom(numpy_helper.from_array(limited.astype(np.float16), tensor.name))


def _cast_ends(graph: onnx.GraphProto) -> None:
    """Cast float inputs to half where they enter, and half outputs to float where they leave."""
    fixed = {entry.name for entry in graph.initializer}
    floats = [
        {entry.name for entry in entries if entry.type.tensor_type.elem_type == TensorProto.FLOAT}
        for entries in (graph.input, graph.output)
    ]
    inputs, outputs = floats[0] - fixed, floats[1]
    inner = {name: f"{name}_half" for name in inputs | outputs}
    for node in graph.node:
        node.input[:] = [inner.get(name, name) for name in node.input]
        node.output[:] = [inner.get(name, name) for name in node.output]
    before = [
        helper.make_node("Cast", [name], [inner[name]], name=inner[name], to=TensorProto.FLOAT16)
        for name in sorted(inputs)
    ]
    after = [
        helper.make_node("Cast", [inner[name]], [name], name=f"{name}_float", to=TensorProto.FLOAT)
        for name in sorted(outputs - inputs - fixed)
    ]
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
