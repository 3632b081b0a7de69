"""Readable names of the rows of a runtime's profile. In: an ONNX graph, the rows' names. Out: layers, kinds.

A runtime fuses nodes and renames them: `features.0.2/Clip_output_0_nchwc` is the convolution `features.0.0`
with its activation.
"""

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx import GraphProto, NodeProto

from bcnet.agent.layers import ORIGIN

SUFFIX = re.compile(r"(_nchwc|_token_\d+|/duplicated\w*)+$")
MOVES = re.compile(r"^(Reorder\w*|Reformatting \w+|Transpose)(?=_token_|\b|$)")  # changes of memory layout
SCOPES = "pkg.torch.onnx.name_scopes"
# What a runtime appends to the node before it; other nodes begin a layer.
APPENDED = frozenset(
    (
        *("Add", "BatchNormalization", "Cast", "Clip", "Div", "Elu", "Erf", "Gelu", "HardSigmoid"),
        *("HardSwish", "Identity", "LeakyRelu", "Mish", "Mul", "PRelu", "Relu", "Sigmoid", "Softplus"),
        *("Sub", "Swish", "Tanh"),
    )
)


@dataclass(frozen=True)
class LayerName:
    """A row: its name for people, and the operators of its nodes, as "Conv+Relu"; "" if not known."""

    name: str
    kind: str


def layer_names(graph: GraphProto | None, rows: Sequence[str]) -> list[LayerName]:
    """A name and a kind for each row of a profile, which are those of the row if its nodes are not known."""
    nodes = _Nodes(graph or GraphProto())
    named = [nodes.named_in(row) for row in rows]
    owned = {number for own in named for number in own}
    found = []
    for row, own in zip(rows, named, strict=True):
        members = [nodes.nodes[number] for number in (nodes.fused(own[0], owned) if len(own) == 1 else own)]
        if members:
            kinds = "+".join(dict.fromkeys(node.op_type for node in members))
            found.append(LayerName(_label(members[0], nodes.weights), kinds))
        else:
            found.append(LayerName(SUFFIX.sub("", row), "memory layout" if MOVES.match(row) else ""))
    return found


class _Nodes:
    """The nodes of a graph, by number, with the numbers of those that have a name or make a value."""

    def __init__(self, graph: GraphProto) -> None:
        self.nodes = list(graph.node)  # in topological order
        self.weights = {entry.name for entry in graph.initializer}
        self.maker: dict[str, int] = {}
        self.by_name: dict[str, int] = {}
        constant = {*self.weights, ""}
        for number, node in enumerate(self.nodes):
            if all(name in constant for name in node.input):
                constant.update(node.output)  # computed when the file is loaded
                continue
            self.by_name.setdefault(node.name, number)
            self.maker.update(dict.fromkeys(node.output, number))

    def named_in(self, row: str) -> list[int]:
        """The nodes that a row names: TensorRT lists all, ONNX Runtime the last one of a fused group."""
        names = [text[len("[ONNX Layer: ") : -1] for text in ORIGIN.findall(row)] or row.split(" + ")
        known = []
        for name in names:
            plain = SUFFIX.sub("", name)
            places = (
                self.by_name.get(name),
                self.maker.get(name),
                self.by_name.get(plain),
                self.maker.get(plain),
            )
            known += [place for place in places if place is not None][:1]
        return known

    def fused(self, last: int, owned: set[int]) -> list[int]:
        """The nodes that a runtime has fused into one, of which only the last is named, in order."""
        members, waiting = {last}, [last]
        while waiting:
            node = self.nodes[waiting.pop()]
            if node.op_type not in APPENDED:
                continue
            before = {self.maker[name] for name in node.input if name in self.maker} - owned - members
            members |= before
            waiting += before
        return sorted(members)


def _label(node: NodeProto, weights: set[str]) -> str:
    """The module that a node is of, if a name in the file contains it; else the node's name."""
    scopes = _scopes(node)
    if len(scopes) > 1 and scopes[-2]:
        return scopes[-2]
    for name in node.input:
        if name in weights and name.endswith((".weight", ".bias")):
            return str(name).rpartition(".")[0]
    name = str(node.name or node.output[0])
    return _module_in(name) or name


def _scopes(node: NodeProto) -> list[str]:
    """The names of the modules around a node, the outermost first, as PyTorch's exporter writes them."""
    metadata: Mapping[str, str] = {entry.key: entry.value for entry in node.metadata_props}
    try:
        found = ast.literal_eval(metadata.get(SCOPES, "[]"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return [str(part) for part in found] if isinstance(found, list) else []


def _module_in(name: str) -> str:
    """The module in a name such as `/features/features.0/features.0.2/Clip`: `features.0.2`; "" without."""
    parts: list[str] = []
    for part in name.strip("/").split("/")[:-1]:
        if parts and part.startswith(f"{parts[-1]}."):
            parts[-1] = part
        else:
            parts.append(part)
    return ".".join(parts)
