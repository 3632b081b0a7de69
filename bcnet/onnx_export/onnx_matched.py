"""Two exports of a network, matched node by node. In: graphs of the full and a narrow network. Out: pairs.

Nodes are matched by position and connections, since the exporter numbers names consecutively. Nodes that
depend only on constants count as constants: the exporter folds them in small networks, but not in large ones.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bcnet.errors import one_line

CONVOLUTIONS = ("Conv", "ConvTranspose")
# The number of a node, and of its input that is a constant; for outputs, the number after the last node.
Use = tuple[int, int]


class FixedGraph(Exception):
    """The graph cannot be sliced: the message says what else depends on the widths."""


@dataclass
class Graph:
    """An exported graph: its constants, and its nodes.

    Nodes that depend only on constants count as constants, unless `whole` is set.
    """

    proto: ModelProto
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    whole: bool = False

    def __post_init__(self) -> None:
        self.arrays = self.arrays or {
            entry.name: numpy_helper.to_array(entry) for entry in self.proto.graph.initializer
        }

    @cached_property
    def fixed(self) -> dict[str, NodeProto]:
        """The nodes that depend only on constants, by their outputs."""
        found: dict[str, NodeProto] = {}
        for node in () if self.whole else self.proto.graph.node:
            if all(name in self.arrays or name in found for name in node.input if name):
                found |= dict.fromkeys(node.output, node)
        return found

    @cached_property
    def nodes(self) -> list[NodeProto]:
        """The other nodes, in order of execution."""
        return [node for node in self.proto.graph.node if node.output[0] not in self.fixed]

    def values(self, arrays: dict[str, np.ndarray], names: Iterable[str]) -> dict[str, np.ndarray]:
        """Constants by name: arrays, and values computed from them. Raises FixedGraph."""
        names = set(names)
        made = sorted(name for name in names if name in self.fixed)
        found = {name: arrays[name] for name in names if name in arrays}
        if not made:
            return found
        nodes = list({id(node): node for node in self.fixed.values()}.values())
        used = {name for node in nodes for name in node.input if name}
        graph = helper.make_graph(
            nodes,
            "constants",
            [],
            [helper.make_empty_tensor_value_info(name) for name in made],
            [initializer(arrays[name], name) for name in used & arrays.keys()],
        )
        model = helper.make_model(
            graph, opset_imports=self.proto.opset_import, ir_version=self.proto.ir_version
        )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            return found | dict(zip(made, session.run(made, {}), strict=True))
        except Exception as cause:
            raise FixedGraph(f"its constants cannot be computed ({one_line(cause)})") from None


@dataclass
class Matched:
    """Two exports of a network with corresponding nodes: pairs of constants by use, pairs of other values."""

    constants: dict[Use, tuple[str, str]]
    names: dict[str, str]  # values of the second graph -> values of the first
    groups: dict[int, tuple[int, int]]  # numbers of groups of convolutions, by the number of the node

    @classmethod
    def of(cls, full: Graph, narrow: Graph, grouped: Iterable[str]) -> "Matched":
        """Match node by node. `grouped`: nodes whose `group` is known to vary. Raises FixedGraph."""
        groups: dict[int, tuple[int, int]] = {}
        names = {entry.name: entry.name for entry in full.proto.graph.input}
        known = set(names)
        constants: dict[Use, tuple[str, str]] = {}

        def same(use: Use, first: str, second: str, where: str) -> None:
            if first in known or second in names:
                if names.get(second) != first:
                    raise FixedGraph(f"narrow networks have other connections at {where}")
            elif first or second:
                constants[use] = first, second

        for number, (first, second) in enumerate(itertools.zip_longest(full.nodes, narrow.nodes)):
            if first is None or second is None or first.op_type != second.op_type:
                kinds = [node.op_type if node is not None else "nothing" for node in (first, second)]
                raise FixedGraph(f"narrow networks have {kinds[1]} instead of {kinds[0]}")
            where = f"'{first.name}' ({first.op_type})"
            if len(first.input) != len(second.input) or len(first.output) != len(second.output):
                raise FixedGraph(f"narrow networks have other inputs at {where}")
            convolves = first.op_type in CONVOLUTIONS
            _compare_attributes(first, second, {"group"} if convolves else set(), where)
            if convolves and first.name not in grouped:
                groups[number] = _groups(first), _groups(second)
            for place, pair in enumerate(zip(first.input, second.input, strict=True)):
                same((number, place), *pair, where)
            names |= dict(zip(second.output, first.output, strict=True))
            known.update(first.output)
        ends = zip(full.proto.graph.output, narrow.proto.graph.output, strict=True)
        for place, (one, other) in enumerate(ends):
            same((len(full.nodes), place), one.name, other.name, "an output")
        return cls(constants, names, groups)


def initializer(array: np.ndarray, name: str) -> TensorProto:
    """A constant as a graph holds it."""
    return numpy_helper.from_array(np.asarray(array, order="C"), name)


def _groups(node: NodeProto) -> int:
    return next((int(entry.i) for entry in node.attribute if entry.name == "group"), 1)


def _compare_attributes(first: NodeProto, second: NodeProto, variable: set[str], where: str) -> None:
    one, other = (
        {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        for node in (first, second)
    )
    named = (one.keys() | other.keys()) - variable
    differs = [name for name in named if one.get(name) != other.get(name)]
    if differs:
        raise FixedGraph(f"'{min(differs)}' of {where} depends on the widths")
