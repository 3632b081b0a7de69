"""Convolutions of one bit in an ONNX file. In: a file. Out: it in the form that 1-bit kernels need.

ONNX has no binary convolution. An exported one (`models/binary.py`) is a `Conv` of float32 that reads
`Where(Greater(Add(x, shift), 0), 1, -1)`, and whose weights have one absolute value for each output channel,
which comes from the batch norm that was folded into them. OpenVINO runs such a convolution with 1-bit kernels
if it is written in its own way: a `FakeQuantize` of two levels, then weights of exactly -1 and 1.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, load_from_string, numpy_helper

from bcnet.errors import NetworkError

OPENVINO = "org.openvinotoolkit"  # its domain of operators
# Distance of the two limits of a threshold, relative to it and at least to 1. OpenVINO rounds between the
# limits: at equal ones it computes nonsense without a message, and at much closer ones with the rounding
# errors of x / distance.
GAP = np.float32(2**-19)
# By which the distance grows for each further convolution that reads the same signs, so that OpenVINO does
# not make one FakeQuantize of theirs again: those of one that several read would be computed in floats.
WIDER = 1 / 4
SCALE_BYTES = 4  # of an output channel, beside its weights of one bit
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class BinaryConvolution:
    """A convolution of signs.

    `signs` makes its input of -1 and 1 from `source`: 1 above `thresholds` (1, C, 1, 1), or a scalar. `scale`
    is the absolute value of the weights of each output channel (C,), 0 where the batch norm that was folded
    into them ignores the channel.
    """

    node: NodeProto
    signs: NodeProto
    source: str
    thresholds: np.ndarray
    scale: np.ndarray
    half: bool  # whether the file is of float16

    @property
    def name(self) -> str:
        """That of its node, which is that of its output."""
        return str(self.node.output[0])


def constants(graph: GraphProto) -> Arrays:
    """The graph's initialisers, and the values of its Constant nodes."""
    found = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


def binary_convolutions(graph: GraphProto, arrays: Arrays | None = None) -> tuple[BinaryConvolution, ...]:
    """A graph's binary convolutions, in order; `arrays` are its constants, if they are kept elsewhere."""
    arrays = constants(graph) | (arrays or {})
    made_by = {name: node for node in graph.node for name in node.output}
    found = []
    for node in graph.node:
        weight = arrays.get(node.input[1]) if node.op_type == "Conv" else None
        if weight is None:
            continue
        signs = made_by.get(node.input[0])
        threshold = _threshold(signs, made_by, arrays)
        size = np.abs(weight.astype(np.float32)).reshape(len(weight), -1)
        scale = size[:, 0]
        if (
            threshold is not None
            and signs is not None
            and bool((size == scale[:, None]).all())
            and scale.any()
        ):
            half = weight.dtype == np.float16
            found.append(BinaryConvolution(node, signs, *threshold, scale, half))
    return tuple(found)


def _threshold(
    signs: NodeProto | None, made_by: dict[str, NodeProto], arrays: Arrays
) -> tuple[str, np.ndarray] | None:
    """What is compared, and with what, where a node makes 1 above a threshold and else -1; else None."""
    if signs is None or signs.op_type != "Where" or signs.input[0] not in made_by:
        return None
    compared = made_by[signs.input[0]]
    ends = [*signs.input[1:], *compared.input[1:]]
    if compared.op_type != "Greater" or any(name not in arrays for name in ends):
        return None
    if any(not bool((arrays[name] == value).all()) for name, value in zip(ends, (1, -1, 0), strict=True)):
        return None
    source = compared.input[0]
    shifted = made_by.get(source)
    if shifted is not None and shifted.op_type == "Add":
        own, other = shifted.input
        if own in arrays:
            own, other = other, own
        if other in arrays:
            # x + shift > 0 and x > -shift are the same in floating point, too: sums are never rounded to
            # zero.
            return own, -np.asarray(arrays[other], np.float32)
    return source, np.zeros((), np.float32)


def for_openvino(proto: ModelProto) -> tuple[ModelProto, tuple[str, ...]]:
    """A file of float32 as OpenVINO's 1-bit kernels need it, and the names of its binary convolutions.

    A file without any is returned as it is. A value within an ulp or two of its threshold may be on the other
    side of it than in PyTorch. Raises NetworkError for a file of float16.
    """
    found = binary_convolutions(proto.graph)
    if not found:
        return proto, ()
    if found[0].half:
        raise NetworkError(
            "a binary network in fp16 has no form for OpenVINO's 1-bit kernels: choose fp32 or int8"
        )
    arrays, graph = constants(proto.graph), proto.graph
    by_name = {own.name: own for own in found}
    by_signs: dict[str, list[BinaryConvolution]] = {}
    for own in found:
        by_signs.setdefault(own.signs.output[0], []).append(own)
    signs_of = {
        own.name: f"{name}:{number}" if number else name
        for name, several in by_signs.items()
        for number, own in enumerate(several)
    }
    readers = Counter(name for node in graph.node for name in node.input)
    nodes: list[NodeProto] = []
    made: Arrays = {"one_bit:low": np.array(-1, np.float32), "one_bit:high": np.array(1, np.float32)}
    for node in graph.node:
        if node.output[0] in by_signs:
            for number, own in enumerate(by_signs[node.output[0]]):
                width = GAP * np.float32(1 + WIDER * number)
                nodes.append(_two_levels(own, signs_of[own.name], width, made))
        elif node.output[0] in by_name:
            own = by_name[node.output[0]]
            nodes += _scaled(own, signs_of[own.name], arrays, made, readers)
        else:
            nodes.append(node)
    result = ModelProto()
    result.CopyFrom(proto)
    nodes = _read(nodes, (entry.name for entry in graph.output))
    nodes = [node for node in nodes if node.output[0] not in made]  # a weight may be a Constant node
    used = {name for node in nodes for name in node.input}
    entries = [entry for entry in graph.initializer if entry.name in used and entry.name not in made]
    entries += [numpy_helper.from_array(array, name) for name, array in made.items()]
    del result.graph.node[:], result.graph.initializer[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(entries)
    if all(entry.domain != OPENVINO for entry in result.opset_import):
        result.opset_import.append(helper.make_opsetid(OPENVINO, 1))
    return result, tuple(by_name)


def in_one_bit_form(graph: GraphProto) -> bool:
    """Whether a graph is one of those that `for_openvino` makes.

    Files of other tools have FakeQuantize nodes of that domain, too, but not of two levels.
    """
    signs = (node for node in graph.node if node.domain == OPENVINO and node.op_type == "FakeQuantize")
    return any(own.name == "levels" and own.i == 2 for node in signs for own in node.attribute)


@lru_cache(maxsize=2)
def one_bit_file(content: bytes) -> bytes:
    """`for_openvino` for the bytes of a file, which stay the same where there is nothing to change.

    So does what is no ONNX file: the runtime says what is wrong with it.
    """
    try:
        proto = load_from_string(content)
    except Exception:  # protobuf's own, of several classes
        return content
    proto, names = for_openvino(proto)
    return bytes(proto.SerializeToString()) if names else content


def _two_levels(own: BinaryConvolution, output: str, width: np.float32, made: Arrays) -> NodeProto:
    """-1 up to a threshold, 1 above it, between limits of this relative distance."""
    middle = own.thresholds.reshape(own.thresholds.shape or (1, 1, 1, 1))
    half = width * np.maximum(np.abs(middle), 1) / 2
    limits = f"{output}:below", f"{output}:above"
    made[limits[0]], made[limits[1]] = middle - half, middle + half
    inputs = [own.source, *limits, "one_bit:low", "one_bit:high"]
    return helper.make_node("FakeQuantize", inputs, [output], name=output, domain=OPENVINO, levels=2)


def _scaled(
    own: BinaryConvolution, source: str, arrays: Arrays, made: Arrays, readers: Mapping[str, int]
) -> list[NodeProto]:
    """A convolution of `source` with the signs of its weights, then the scale of each channel, and its bias.

    The weights' signs have the name of the weight, which says to which module they belong, unless others
    read it, too.
    """
    node, name = own.node, own.name
    weight, *bias = node.input[1:]
    sums, signs = f"{name}:sums", weight if readers[weight] == 1 else f"{name}:signs"
    convolution = NodeProto()
    convolution.CopyFrom(node)
    del convolution.input[:], convolution.output[:]
    convolution.input.extend([source, signs])
    convolution.output.append(sums)
    made[signs] = np.where(arrays[weight] < 0, -1, 1).astype(np.float32)  # any sign, at a scale of 0
    zeros = np.zeros(len(own.scale), np.float32)
    # As a batch norm, and not as a product: OpenVINO would multiply the weights by that.
    parts = {
        "scale": own.scale,
        "bias": arrays[bias[0]] if bias else zeros,
        "mean": zeros,
        "var": np.ones(len(own.scale), np.float32),
    }
    names = [f"{name}:{part}" for part in parts]
    made.update(zip(names, parts.values(), strict=True))
    norm = helper.make_node("BatchNormalization", [sums, *names], [name], name=f"{name}:scaled", epsilon=0.0)
    return [convolution, norm]


def _read(nodes: Iterable[NodeProto], outputs: Iterable[str]) -> list[NodeProto]:
    """The nodes whose results are used."""
    used, kept = set(outputs), []
    for node in reversed(list(nodes)):
        if used & set(node.output):
            used.update(node.input)
            kept.append(node)
    return kept[::-1]


def one_bit_weights(graph: GraphProto, arrays: Arrays | None = None) -> frozenset[str]:
    """The names of the constants that are weights of binary convolutions; `arrays` as above."""
    return frozenset(own.node.input[1] for own in binary_convolutions(graph, arrays))


def packed_bytes(proto: ModelProto) -> int | None:
    """The size of a file's constants with binary weights in one bit each; None for a file without any."""
    binary = one_bit_weights(proto.graph)
    if not binary:
        return None
    bits = 0
    for entry in proto.graph.initializer:
        array = numpy_helper.to_array(entry)
        packed = array.size + 8 * SCALE_BYTES * len(array) if entry.name in binary else 0
        bits += packed or 8 * array.nbytes
    return -(-bits // 8)
