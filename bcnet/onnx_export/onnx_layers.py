"""The fused layers of an exported graph, which are the rows of a latency table.

In: the full network's graph, and the groups on which its constants depend. Out: layers, each with its
channels as functions of the widths.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from onnx import GraphProto, NodeProto, helper

from bcnet.errors import ModelError
from bcnet.latency_tables.model import LayerSlot, Terms
from bcnet.latency_tables.rows import BINARY, LayerSpec
from bcnet.onnx_export.onnx_slicing import Slices
from bcnet.runtimes.onnx_binary import binary_convolutions
from bcnet.space.width_space import Dimension, Segment, WidthSpace

# Operators that start a fused layer; all others are fused into the layer whose result they read.
STARTS_LAYER = frozenset(
    (
        *("Conv", "ConvTranspose", "Gemm", "MatMul", "Concat", "Resize", "Softmax"),
        *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean"),
        *("LayerNormalization", "InstanceNormalization", "GroupNormalization"),
    )
)
SHAPE_ONLY = frozenset(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"))

Channels = dict[str, Dimension]  # of each value


def group_sizes(space: WidthSpace) -> dict[str, int]:
    """{weight: output channels per group} of the convolutions that are narrowed by whole groups."""
    weights = {layer.weight for layer in space.layers}
    sizes = {sized.tensor: sized.each for sized in space.sized if sized.attribute == "groups"}
    for sized in space.sized:  # a module may use another name for its number of groups
        whole = sized.tensor in weights and 1 not in space.dimensions[sized.tensor]
        if (
            whole
            and sized.axis == 0
            and sized.each
            and sized.attribute not in ("out_channels", "out_features")
        ):
            sizes.setdefault(sized.tensor, sized.each)
    return sizes


@dataclass
class Layers:
    """A graph of the full network: constants by name, axes that depend on groups, shapes of values."""

    space: WidthSpace
    graph: GraphProto
    arrays: dict[str, np.ndarray]
    dimensions: dict[str, Slices]
    shapes: dict[str, tuple[int, ...]]
    grouped: Collection[str]  # the convolutions whose number of groups follows the widths

    def slots(self) -> tuple[LayerSlot, ...]:
        """Group the graph's nodes into fused layers, each with its channels as functions of the widths."""
        channels: Channels = {
            entry.name: (Segment(None, (*self.shapes[entry.name], 1, 1)[1]),) for entry in self.graph.input
        }
        layer_of: dict[str, int] = {}  # value -> its layer
        order: dict[str, int] = {}  # value -> when it was made
        binary = {own.name for own in binary_convolutions(self.graph, self.arrays)}
        layers: list[LayerSlot] = []
        for number, node in enumerate(self.graph.node):
            output = node.output[0]
            shape = self.shapes.get(output, ())
            inputs = [name for name in node.input if name in channels]
            if not inputs:
                continue  # depends only on constants: folded by the runtime
            for name, dimension in zip(node.output, self._channels(node, inputs, channels), strict=True):
                channels[name] = dimension
            order[output] = number
            latest = max(inputs, key=lambda name: order.get(name, -1))
            owner = layer_of.get(latest)
            joins = node.op_type not in STARTS_LAYER and owner is not None
            if joins and owner is not None and node.op_type not in SHAPE_ONLY:
                joins = shape == self.shapes[layers[owner].name]
            if joins and owner is not None:
                layers[owner] = _joined(layers[owner], node, inputs, layer_of)
            else:
                owner = len(layers)
                layers.append(self._layer(node, latest, channels))
                if output in binary:
                    template = replace(layers[owner].template, op=BINARY)
                    layers[owner] = replace(layers[owner], template=template)
            for name in node.output:
                layer_of[name] = owner
                order[name] = number
        return tuple(layers)

    def _channels(self, node: NodeProto, inputs: list[str], channels: Channels) -> list[Dimension]:
        """Each output's channels as segments: its second axis, or the last one (NHWC, tokens)."""
        if node.op_type == "Split" and self._axis(node, 0) == 1:
            whole, start, parts = channels[inputs[0]], 0, []
            for name in node.output:
                size = self.shapes[name][1]
                parts.append(self._part(whole, start, start + size))
                start += size
            return parts
        return [self._of_first(node, inputs, channels)] * len(node.output)

    def _of_first(self, node: NodeProto, inputs: list[str], channels: Channels) -> Dimension:
        """The channels of a node's first output."""
        shape = self.shapes.get(node.output[0], ())
        if node.op_type in ("MatMul", "ConvTranspose") and 1 in self.dimensions.get(node.input[1], {}):
            return self.dimensions[node.input[1]][1]
        if node.op_type in ("Conv", "Gemm") and node.input[1] in self.arrays:
            weight = node.input[1]
            return self.dimensions.get(weight, {}).get(0, (Segment(None, self.arrays[weight].shape[0]),))
        if node.op_type == "Concat":
            joined = tuple(segment for name in inputs for segment in channels[name])
            if self._size(joined) == shape[self._axis(node, 1)]:
                return joined
        if node.op_type == "Slice" and (part := self._sliced(node, channels[inputs[0]])) is not None:
            return part
        full = shape[1] if len(shape) > 1 else 1
        for name in inputs:
            dimension = channels[name]
            size = self._size(dimension)
            if size == full or (len(shape) > 2 and size == shape[-1]):
                return dimension
            if node.op_type in SHAPE_ONLY and size and full % size == 0:
                return tuple(replace(segment, size=segment.size * (full // size)) for segment in dimension)
        return (Segment(None, full),)

    def _axis(self, node: NodeProto, default: int) -> int:
        """The axis that a node names, counted from the front."""
        axis = next((int(entry.i) for entry in node.attribute if entry.name == "axis"), default)
        return axis % max(len(self.shapes.get(node.output[0], ())), 1)

    def _sliced(self, node: NodeProto, whole: Dimension) -> Dimension | None:
        """The segments that a Slice along the second axis selects; None for other slices."""
        given = [self.arrays[name] for name in node.input[1:] if name in self.arrays]
        if len(given) < 3 or len(given[2]) != 1 or given[2][0] % len(self.shapes[node.input[0]]) != 1:
            return None
        if len(given) > 3 and given[3][0] != 1:
            return None
        start, stop, _ = slice(int(given[0][0]), int(given[1][0])).indices(self._size(whole))
        return self._part(whole, start, stop)

    def _part(self, whole: Dimension, start: int, stop: int) -> Dimension:
        """The segments between two entries of the full network; a fixed size if a segment would be split."""
        at, taken = 0, []
        for segment in whole:
            low, at = at, at + self._size((segment,))
            if low >= start and at <= stop:
                taken.append(segment)
            elif segment.group is None and min(at, stop) > max(low, start):
                taken.append(Segment(None, min(at, stop) - max(low, start)))
        return tuple(taken) if self._size(tuple(taken)) == stop - start else (Segment(None, stop - start),)

    def _size(self, dimension: Dimension) -> int:
        return sum(
            segment.size * (1 if segment.group is None else self.space.groups[segment.group].channels)
            for segment in dimension
        )

    def _layer(self, node: NodeProto, source: str, channels: Channels) -> LayerSlot:
        attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        shape = self.shapes.get(source if node.op_type in STARTS_LAYER else node.output[0])
        if shape is None:
            raise ModelError(
                f"ONNX does not have the operator '{node.op_type}' ('{node.name}' of the exported network) "
                "at this opset, so its output has no shape; replace it with operators of ONNX"
            )
        sides = shape[1:-1] if node.op_type == "MatMul" else shape[2:4]
        spatial = (*sides, 1, 1)[:2]
        group_size = None
        if node.op_type == "Conv" and node.name in self.grouped:
            group_size = self._size(channels[source]) // int(attributes.get("group", 1))
        kernel = attributes.get("kernel_shape", ())
        if node.op_type == "Conv" and node.input[1] in self.arrays:
            kernel = self.arrays[node.input[1]].shape[2:]
        # A concatenation is keyed by the sum of its inputs, which is its output.
        incoming = channels[node.output[0]] if node.op_type == "Concat" else channels[source]
        outgoing = channels[node.output[0]]
        return LayerSlot(
            name=node.output[0],
            template=LayerSpec(
                op=node.op_type,
                in_channels=self._size(incoming),
                out_channels=self._size(outgoing),
                kernel=tuple(kernel),
                stride=tuple(attributes.get("strides", ())),
                padding=tuple(attributes.get("pads", ())),
                dilation=tuple(attributes.get("dilations", ())),
                groups=int(attributes.get("group", 1)),
                in_height=spatial[0],
                in_width=spatial[1],
            ),
            in_terms=_terms(incoming),
            out_terms=_terms(outgoing),
            group_size=group_size,
            nodes=(node.output[0],),
        )


def _joined(layer: LayerSlot, node: NodeProto, inputs: list[str], layer_of: dict[str, int]) -> LayerSlot:
    """The layer with another operator fused into it: a residual sum, an activation, or a change of shape."""
    template = layer.template
    if node.op_type not in SHAPE_ONLY:
        sources = {layer_of.get(name) for name in inputs}
        if node.op_type == "Add" and len(sources) > 1:
            template = replace(template, add=True)
        else:
            followed = f"{template.activation}+{node.op_type}" if template.activation else node.op_type
            template = replace(template, activation=followed)
    return replace(layer, template=template, nodes=(*layer.nodes, *node.output))


def _terms(dimension: Dimension) -> Terms:
    return tuple((segment.group, segment.size) for segment in dimension)
