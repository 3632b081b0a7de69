"""Convert ONNX files to fp16: newer TensorRT takes the precision from the file.

In: an exported float32 network. Out: the network in fp16, with casts of its inputs and outputs, which stay
float32.
"""

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bcnet.errors import FOREIGN, ModelError, one_line

LARGEST = float(np.finfo(np.float16).max)
SMALLEST = float(np.finfo(np.float16).smallest_subnormal)
SCALES = 2  # the input of a Resize that stays float32, by its definition in ONNX
STATISTICS = (3, 4)  # inputs of a BatchNormalization that may stay float32


def to_fp16(proto: ModelProto) -> ModelProto:
    """An fp16 copy of a float32 network. Nodes keep their names, inputs and outputs their names and types.

    Finite values above the largest fp16 number (65504), e.g. limits of a Clip, are clipped to it; batch-norm
    statistics with such values stay float32. A single value that would underflow, e.g. the 1e-12 that keeps a
    norm from being 0, becomes the smallest fp16 number. Constant outputs are unchanged. Raises ModelError if
    an operator of the network does not support fp16.
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
        if used and name in floats:  # the exporter merges equal tensors
            _copy(graph, entry, f"{name}_float32")
        if used and name in ends and entry.data_type == TensorProto.FLOAT:
            _copy(graph, entry, name)
            entry.name = f"{name}_half"  # its name in `_cast_ends`
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
        raise ModelError(f"the network cannot be converted to fp16: {one_line(cause)}") from None
    return result


def _float_places(node: NodeProto, large: set[str]) -> tuple[int, ...]:
    """The indices of a node's inputs that stay float32."""
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
    """Convert a float32 tensor to fp16 in place; others are unchanged."""
    if tensor.data_type == TensorProto.FLOAT:
        values = numpy_helper.to_array(tensor)
        limited = np.where(np.isfinite(values), np.clip(values, -LARGEST, LARGEST), values)
        if values.size == 1:
            tiny = (values != 0) & (np.abs(values) < SMALLEST)
            limited = np.where(tiny, np.copysign(SMALLEST, values), limited)
        tensor.CopyFrom(numpy_helper.from_array(limited.astype(np.float16), tensor.name))


def _cast_ends(graph: onnx.GraphProto) -> None:
    """Cast float32 inputs of the graph to fp16, and fp16 outputs to float32."""
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
