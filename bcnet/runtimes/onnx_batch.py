"""Make the batch of an ONNX file dynamic. In: a fixed batch. Out: the network for any batch."""

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, numpy_helper, shape_inference

from bcnet.agent.arrays import pack, unpack
from bcnet.agent.errors import JobError
from bcnet.agent.onnxruntime_jobs import TYPES, infer, load
from bcnet.errors import NetworkError, one_line

BATCH = "batch"  # the name of the dynamic size
SETTINGS = {"provider": "cpu", "threads": 1}
# The tolerance, relative to the largest output: at int8, a difference in a float's last bit can be a whole
# step.
CLOSE = 0.02


def with_free_batch(model: bytes) -> bytes:
    """The file with a dynamic first axis of all inputs and outputs.

    Its outputs for a double batch are compared with those of the original, in ONNX Runtime on this processor.
    Raises NetworkError if sizes inside the network depend on the fixed batch.
    """
    proto = onnx.load_from_string(model)
    size = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    if size == 0:
        return model  # it is already dynamic
    try:
        _make_dynamic(proto, size)
    except shape_inference.InferenceError as cause:
        raise NetworkError(f"the sizes inside the network cannot be inferred: {one_line(cause)}") from None
    content: bytes = proto.SerializeToString()
    reason = _differs(model, content, size)
    if reason:
        raise NetworkError(
            f"the batch of the network cannot be made dynamic: {reason}; export it separately for each batch"
        )
    return content


def resize_by_factors(graph: GraphProto) -> None:
    """Give every Resize scale factors for all axes instead of sizes, which are for one batch and width.

    `graph` must have the inferred sizes of its values. Raises NetworkError if factors would select other
    pixels.
    """
    sizes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    for node in graph.node:
        axes = any(entry.name == "axes" for entry in node.attribute)
        if node.op_type != "Resize" or (len(node.input) < 4 and not axes):
            continue
        pairs = list(zip(sizes[node.input[0]], sizes[node.output[0]], strict=True))
        name = f"{node.output[0]}_factors"
        factors = np.array([_factor(*pair) for pair in pairs], np.float32)
        plain = np.array([target / source for source, target in pairs], np.float32)
        linear = any(entry.name == "mode" and entry.s != b"nearest" for entry in node.attribute)
        if not linear and (factors != plain).any():
            raise NetworkError(
                f"'{node.name}' resizes {pairs[-2:]} to the nearest pixel, by a factor that a float cannot "
                "represent: resize by integers, or linearly"
            )
        graph.initializer.append(numpy_helper.from_array(factors, name))
        kept = [entry for entry in node.attribute if entry.name != "axes"]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.input[:] = [node.input[0], "", name]


def _factor(source: int, target: int) -> np.float32:
    """The smallest float factor, at least the rounded ratio, with int(source * factor) >= target."""
    factor = np.float32(target / source)
    while int(source * float(factor)) < target:
        factor = np.nextafter(factor, np.float32(np.inf))
    return factor


def _make_dynamic(proto: ModelProto, size: int) -> None:
    inferred = shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    proto.CopyFrom(inferred)
    graph = proto.graph
    resize_by_factors(graph)
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].dim_value == size:
            dims[0].dim_param = BATCH
    constants = {entry.name: entry for entry in graph.initializer}
    for node in graph.node:
        if node.op_type not in ("Reshape", "Expand") or node.input[1] not in constants:
            continue
        sides = numpy_helper.to_array(constants[node.input[1]]).copy()
        if len(sides) == 0 or sides[0] != size:
            continue
        # 1 lets Expand keep the input's size; for Reshape, 0 copies the input's size, and -1 infers it.
        copies = node.op_type == "Reshape" and -1 in sides
        sides[0] = 1 if node.op_type == "Expand" else 0 if copies else -1
        kept = [entry for entry in node.attribute if not (copies and entry.name == "allowzero")]
        del node.attribute[:]
        node.attribute.extend(kept)
        name = f"{node.output[0]}_sides"
        graph.initializer.append(numpy_helper.from_array(sides, name))
        node.input[1] = name


def _differs(model: bytes, dynamic: bytes, size: int) -> str | None:
    """How the outputs of a double batch differ from those of two batches; None if they do not."""
    rng = np.random.default_rng(0)
    try:
        original, doubled = load(model, SETTINGS), load(dynamic, SETTINGS)
        inputs = []
        for node in original.get_inputs():
            kind = np.dtype(TYPES.get(node.type, "float32"))
            shape = (2 * size, *node.shape[1:])
            noise = rng.standard_normal(shape) if kind.kind == "f" else np.zeros(shape)
            inputs.append(pack(noise.astype(kind)))
        pairs = zip(infer(original, inputs), infer(doubled, inputs), strict=True)
        for number, (wanted, found) in enumerate(pairs):
            reference, other = unpack(wanted), unpack(found)
            if reference.shape != other.shape:
                return f"output {number} has shape {other.shape}, not {reference.shape}"
            error = np.abs(reference.astype(float) - other.astype(float)).max(initial=0.0)
            if error > CLOSE * max(np.abs(reference.astype(float)).max(initial=0.0), 1e-12):
                return f"output {number} of an image depends on the other images of the batch"
    except JobError as cause:
        return cause.message
    except Exception as cause:
        return one_line(cause)
    return None
