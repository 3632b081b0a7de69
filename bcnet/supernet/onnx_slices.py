"""An ONNX graph whose initialisers know which groups of channels they follow. In: widths. Out: an ONNX file.

Files of integers are sliced as those of floats are: a weight's scales and zero points go with its channels.
"""

from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from bcnet.supernet.paths import Path, ranges
from bcnet.supernet.space import Dimension, WidthSpace


@dataclass(frozen=True)
class SlicedGraph:
    """A graph without its initialisers, these, and which axes of which of them follow which groups.

    `grouped` names the convolutions that are narrowed by whole groups: {node: (weight, channels of a group)}.
    """

    skeleton: ModelProto
    arrays: dict[str, np.ndarray]
    dimensions: dict[str, dict[int, Dimension]]
    grouped: dict[str, tuple[str, int]]

    @classmethod
    def of(
        cls,
        proto: ModelProto,
        arrays: dict[str, np.ndarray],
        dimensions: dict[str, dict[int, Dimension]],
        grouped: dict[str, tuple[str, int]],
    ) -> "SlicedGraph":
        """The graph of a file, with `arrays` in the place of its initialisers."""
        skeleton = ModelProto()
        skeleton.CopyFrom(proto)
        del skeleton.graph.initializer[:]
        return cls(skeleton, arrays, dimensions, grouped)

    def at(self, space: WidthSpace, path: Path) -> bytes:
        """The ONNX file of the network with the channels of `path`."""
        proto = ModelProto()
        proto.CopyFrom(self.skeleton)
        sliced = {}
        for name, array in self.arrays.items():
            for axis, dimension in self.dimensions.get(name, {}).items():
                parts = [
                    array[(slice(None),) * axis + (slice(low, high),)]
                    for low, high in ranges(space, dimension, path)
                ]
                array = parts[0] if len(parts) == 1 else np.concatenate(parts, axis)
            sliced[name] = array
            proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        for node in proto.graph.node:
            if node.name in self.grouped:
                weight, size = self.grouped[node.name]
                _set_attribute(node, "group", sliced[weight].shape[0] // size)
        return bytes(proto.SerializeToString())

    def converted(self, proto: ModelProto) -> "SlicedGraph":
        """The same dimensions on a half or quantised file of the whole graph, with the same node names."""
        arrays = {entry.name: numpy_helper.to_array(entry) for entry in proto.graph.initializer}
        dequantized = {
            node.output[0]: node
            for node in proto.graph.node
            if node.op_type == "DequantizeLinear" and node.input[0] in arrays
        }
        before = {node.name: node for node in self.skeleton.graph.node}
        dimensions = {}
        for node in proto.graph.node:
            for old, new in (
                zip(before[node.name].input, node.input, strict=True) if node.name in before else ()
            ):
                axes = self.dimensions.get(old, {})
                if new in dequantized:
                    values, *parameters = dequantized[new].input
                    dimensions[values] = axes
                    channels = axes.get(_axis(dequantized[new]))
                    if channels is not None:
                        dimensions |= {name: {0: channels} for name in parameters if arrays[name].ndim}
                elif axes:
                    dimensions[new] = axes
        grouped = {
            node.name: (dequantized[node.input[1]].input[0], self.grouped[node.name][1])
            if node.input[1] in dequantized
            else self.grouped[node.name]
            for node in proto.graph.node
            if node.name in self.grouped
        }
        return SlicedGraph.of(proto, arrays, dimensions, grouped)


def _axis(node: NodeProto) -> int:
    """The axis along which a DequantizeLinear has a scale for each channel."""
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "axis"), 1)


def _set_attribute(node: NodeProto, name: str, value: int) -> None:
    for attribute in node.attribute:
        if attribute.name == name:
            attribute.i = value
