"""An ONNX file of fixed batch -> the same network for any batch. The result is run, to see that it is."""

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, numpy_helper, shape_inference

from bcnet.agent.arrays import pack, unpack
from bcnet.agent.errors import JobError
from bcnet.agent.onnxruntime_jobs import TYPES, infer, load
from bcnet.errors import NetworkError, one_line

BATCH = "batch"  # the name of the size that is free
SETTINGS = {"provider": "cpu", "threads": 1}
CLOSE = 0.02  # relative to the largest output: at int8, what differs in the last bit of a float can be a step


def with_free_batch(model: bytes) -> bytes:
    """The file with the first side of all inputs and outputs free.

    Its outputs for two batches at once are compared with those of the file itself, in ONNX Runtime on this
    processor. Raises NetworkError where sizes inside the network are those of its batch.
    """
    proto = onnx.load_from_string(model)
    size = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    if size == 0:
        return model  # it is free already
    try:
        _free(proto, size)
    except shape_inference.InferenceError as cause:
        raise NetworkError(f"the sizes inside the network cannot be inferred: {one_line(cause)}") from None
    content: bytes = proto.SerializeToString()
    reason = _differs(model, content, size)
    if reason:
        raise NetworkError(
            f"the network cannot be made one of any batch: {reason}; export it with each batch of its own"
        )
    return content


def resize_by_factors(graph: GraphProto) -> None:
    """Let every Resize have factors for all axes, in the place of sizes, which hold for one batch and width.

    `graph` has the inferred sizes of its values. Raises NetworkError where factors would take other pixels.
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
                f"'{node.name}' resizes {pairs[-2:]} to the nearest pixel, by a factor that is no float: "
                "resize by whole numbers, or linearly"
            )
        graph.initializer.append(numpy_helper.from_array(factors, name))
        kept = [entry for entry in node.attribute if entry.name != "axes"]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.input[:] = [node.input[0], "", name]


def _factor(source: int, target: int) -> np.float32:
    """What `source` is multiplied with, and rounded down, to give `target`: above what a float can say."""
    factor = np.float32(target / source)
    while int(source * float(factor)) < target:
        factor = np.nextafter(factor, np.float32(np.inf))
    return factor


def _free(proto: ModelProto, size: int) -> None:
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
        # An Expand leaves what it is given for 1; a Reshape copies a side for 0, -1 is the rest.
        copies = node.op_type == "Reshape" and -1 in sides
        sides[0] = 1 if node.op_type == "Expand" else 0 if copies else -1
        kept = [entry for entry in node.attribute if not (copies and entry.name == "allowzero")]
        del node.attribute[:]
        node.attribute.extend(kept)
        name = f"{node.output[0]}_sides"
        graph.initializer.append(numpy_helper.from_array(sides, name))
        node.input[1] = name


def _differs(model: bytes, freed: bytes, size: int) -> str | None:
    """How the outputs of a double batch differ from those of its halves; None where they do not."""
    rng = np.random.default_rng(0)
    try:
        original, doubled = load(model, SETTINGS), load(freed, SETTINGS)
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
            far = np.abs(reference.astype(float) - other.astype(float)).max(initial=0.0)
            if far > CLOSE * max(np.abs(reference.astype(float)).max(initial=0.0), 1e-12):
                return f"output {number} changes with its neighbours in the batch"
    except JobError as cause:
        return cause.message
    except Exception as cause:
        return one_line(cause)
    return None
