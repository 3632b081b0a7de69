"""The network that OpenVINO really runs. In: its models, as read and as compiled. Out: layers, binary layers.

OpenVINO fuses the nodes of an ONNX file, chooses a kernel and a precision for each group, and records all of
this as the runtime information of the model that it executes.
"""

import re
from typing import Any, List, NamedTuple, Sequence, Set, Tuple

# Not executed, or only the network's own inputs and outputs.
OUTSIDE = frozenset(("Parameter", "Result", "Input", "Output", "Const", "Constant"))
# What OpenVINO appends to a node's name where it splits the node into several.
PART = re.compile(r"(/WithoutBiases)+$")
# Names that OpenVINO gives to nodes that the file does not have, e.g. of a dequantisation.
GENERATED = re.compile(r"[A-Z][A-Za-z]*(_\d+)+$")
ONE_BIT = "u1"


class Layer(NamedTuple):
    """A layer of the executed network: OpenVINO's name for it, its kind, the file's nodes fused into it.

    `primitive` is the kernel ("jit_avx512_u1"), `precision` what it computes in ("f32"), `follower` the name
    of the first layer that reads its result, "" if none does.
    """

    name: str
    kind: str
    nodes: List[str]
    primitive: str
    precision: str
    follower: str

    @property
    def one_bit(self) -> bool:
        """Whether its kernel computes with packed bits."""
        return self.primitive.endswith("_" + ONE_BIT) or self.precision == ONE_BIT


def executed(compiled: Any) -> List[Layer]:
    """The layers of a compiled model in order of execution, without constants, inputs and outputs."""
    found: List[Tuple[int, Layer]] = []
    for operation in compiled.get_runtime_model().get_ordered_ops():
        about = {str(key): _text(value) for key, value in operation.get_rt_info().items()}
        if about.get("layerType", operation.get_type_name()) in OUTSIDE:
            continue
        layer = Layer(
            name=operation.get_friendly_name(),
            kind=about.get("layerType", ""),
            nodes=_nodes(about.get("originalLayersNames", "")),
            primitive=about.get("primitiveType", ""),
            precision=about.get("runtimePrecision", ""),
            follower=_follower(operation),
        )
        found.append((int(about.get("execOrder", len(found))), layer))
    return [layer for _, layer in sorted(found, key=lambda entry: entry[0])]


def row_names(layers: Sequence[Layer]) -> List[str]:
    """A name for each layer: its nodes, as "conv + relu"; of a change of layout, "Reorder (conv)".

    The latter has no nodes of its own, and is named after the layer that needs the other layout: by its first
    node that is one of the file.
    """
    by_name = {layer.name: layer for layer in layers}
    names = []
    for layer in layers:
        if layer.nodes:
            names.append(" + ".join(layer.nodes))
            continue
        needs = layer
        seen: Set[str] = set()
        while not needs.nodes and needs.follower in by_name and needs.name not in seen:
            seen.add(needs.name)
            needs = by_name[needs.follower]
        named = [node for node in needs.nodes if not GENERATED.match(node)] or needs.nodes or [layer.name]
        names.append("%s (%s)" % (layer.kind, named[0]))
    return names


def binary_layers(model: Any) -> List[str]:
    """The nodes that are binary in a network as it was read, before it was compiled.

    These are convolutions whose input comes from a FakeQuantize of two levels, and whose weights have one
    magnitude for each output channel. OpenVINO computes them with single bits only where that is exactly 1.
    """
    import numpy as np

    found = []
    for operation in model.get_ordered_ops():
        if operation.get_type_name() != "Convolution":
            continue
        source, weights = (operation.input_value(place).get_node() for place in (0, 1))
        if not _two_levels(source) or weights.get_type_name() != "Constant":
            continue
        sizes = np.abs(weights.get_data()).reshape(weights.get_output_shape(0)[0], -1)
        if sizes.size and (sizes > 0).all() and np.allclose(sizes, sizes[:, :1], rtol=1e-6):
            found += _nodes(operation.get_friendly_name())
    return found


def equal_thresholds(model: Any) -> List[str]:
    """FakeQuantize nodes of two levels whose input_low equals input_high somewhere.

    OpenVINO then divides by zero, and all bits become those of the lower level, without any message.
    """
    import numpy as np

    found = []
    for operation in model.get_ordered_ops():
        if not _two_levels(operation):
            continue
        low, high = (operation.input_value(place).get_node() for place in (1, 2))
        constant = all(limit.get_type_name() == "Constant" for limit in (low, high))
        if constant and bool(np.any(low.get_data() == high.get_data())):
            found.append(operation.get_friendly_name())
    return found


def binary_layers_not_u1(compiled: Any, names: Sequence[str]) -> List[str]:
    """Those of the named nodes that a compiled model does not compute with single bits, in their order.

    `names` are names of convolutions in the ONNX file. A node that is not found in the executed network
    counts as not computed so. The result is empty where every layer runs as a u1 primitive.
    """
    one_bit = {node for layer in executed(compiled) if layer.one_bit for node in layer.nodes}
    return [name for name in names if name not in one_bit]


def _two_levels(operation: Any) -> bool:
    if operation.get_type_name() != "FakeQuantize":
        return False
    return int(operation.get_attributes()["levels"]) == 2


def _nodes(names: str) -> List[str]:
    """Names of the file's nodes, each once, in their order, without the suffixes of a node's parts."""
    plain = (PART.sub("", name) for name in names.split(","))
    return list(dict.fromkeys(name for name in plain if name))


def _follower(operation: Any) -> str:
    for output in operation.outputs():
        for reader in output.get_target_inputs():
            return str(reader.get_node().get_friendly_name())
    return ""


def _text(value: Any) -> str:
    """A value of the runtime information; newer versions return text, older ones a wrapper of it."""
    return str(getattr(value, "value", value))
