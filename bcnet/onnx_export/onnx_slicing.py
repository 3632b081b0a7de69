"""An ONNX graph whose initialisers can be sliced by groups of channels. In: a subnet. Out: an ONNX file.

Quantised files are sliced like float ones: a weight's scales and zero points are sliced with its channels.
"""

from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from bcnet.latency_tables.model import Terms
from bcnet.space.subnet import Subnet, ranges
from bcnet.space.width_space import Dimension, WidthSpace

Slices = dict[int, Dimension]  # by axis
Sizes = dict[int, Terms]  # by the flat index of an entry


def sliced(array: np.ndarray, slices: Slices, space: WidthSpace, subnet: Subnet) -> np.ndarray:
    """The part of an array that the subnet uses."""
    for axis, dimension in slices.items():
        lead = (slice(None),) * axis
        parts = [array[(*lead, slice(low, high))] for low, high in ranges(space, dimension, subnet)]
        array = parts[0] if len(parts) == 1 else np.concatenate(parts, axis)
    return array


def resized(array: np.ndarray, sizes: Sizes, subnet: Subnet) -> np.ndarray:
    """An integer array with the subnet's channel counts in its `sizes` entries: a copy if there are any."""
    if not sizes:
        return array
    array = array.copy()
    for index, terms in sizes.items():
        array.flat[index] = _total(terms, subnet)
    return array


def _total(terms: Terms, subnet: Subnet) -> int:
    return sum(size if group is None else size * len(subnet.channels[group]) for group, size in terms)


@dataclass(frozen=True)
class SlicedGraph:
    """A graph without its initialisers, the initialisers, and the groups on which their axes depend.

    `sizes` are entries of integer arrays that are channel counts. `grouped` has the convolutions that are
    narrowed by whole groups: {node: (weight, channels per group)}. `counts` are the numbers of groups of
    other convolutions, if they depend on the widths, by node.
    """

    skeleton: ModelProto
    arrays: dict[str, np.ndarray]
    dimensions: dict[str, Slices]
    grouped: dict[str, tuple[str, int]]
    sizes: dict[str, Sizes]
    counts: dict[str, Terms]

    @classmethod
    def of(
        cls,
        proto: ModelProto,
        arrays: dict[str, np.ndarray],
        dimensions: dict[str, Slices],
        grouped: dict[str, tuple[str, int]],
        sizes: dict[str, Sizes],
        counts: dict[str, Terms],
    ) -> "SlicedGraph":
        """The graph of a file, with `arrays` instead of its initialisers."""
        skeleton = ModelProto()
        skeleton.CopyFrom(proto)
        del skeleton.graph.initializer[:]
        return cls(skeleton, arrays, dimensions, grouped, sizes, counts)

    def at(self, space: WidthSpace, subnet: Subnet) -> bytes:
        """The ONNX file of the network with the channels of `subnet`."""
        proto = ModelProto()
        proto.CopyFrom(self.skeleton)
        taken = {}
        for name, array in self.arrays.items():
            array = sliced(array, self.dimensions.get(name, {}), space, subnet)
            array = resized(array, self.sizes.get(name, {}), subnet)
            taken[name] = array
            proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        for node in proto.graph.node:
            if node.name in self.grouped:
                weight, size = self.grouped[node.name]
                _set_attribute(node, "group", taken[weight].shape[0] // size)
            if node.name in self.counts:
                _set_attribute(node, "group", _total(self.counts[node.name], subnet))
        return bytes(proto.SerializeToString())

    def converted(self, proto: ModelProto) -> "SlicedGraph":
        """The same dimensions for an fp16 or quantised file of the whole graph, with the same node names."""
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
        sizes = {name: found for name, found in self.sizes.items() if name in arrays}
        return SlicedGraph.of(proto, arrays, dimensions, grouped, sizes, self.counts)


def _axis(node: NodeProto) -> int:
    """The axis along which a DequantizeLinear has a scale for each channel."""
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "axis"), 1)


def _set_attribute(node: NodeProto, name: str, value: int) -> None:
    for attribute in node.attribute:
        if attribute.name == name:
            attribute.i = value
