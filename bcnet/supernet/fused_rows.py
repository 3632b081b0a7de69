"""Whose time a row of TensorRT's profile is. In: rows' names, a network's layers. Out: each row's shares.

TensorRT joins the names of the ONNX nodes that it has fused: "conv2d_1 + add + relu_1". The forms that are
read here are those of public recordings of versions 8.2 to 10; docs/tensorrt.md lists them.
"""

import re
from collections.abc import Mapping, Sequence

from bcnet.latency_tables.model import LayerSlot

ORIGIN = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
TOLD = re.compile(r" \[ONNX Layer: .*", re.DOTALL)
REFORMAT = re.compile(r"Reformatting CopyNode for (Input|Output) Tensor \d+ to (.*)", re.DOTALL)
NETWORK_REFORMAT = re.compile(r"Reformatting CopyNode for Network (Input|Output) (\S+)")
COPY = re.compile(r"(\S+) copy\b")
FOREIGN = re.compile(r"\{ForeignNode\[(.*)\.\.\.(.*)\]\}", re.DOTALL)
BETWEEN = re.compile(r"[\s(){}\[\],|+]+")
# What TensorRT's parser and its optimiser put around a node's name.
AROUND = re.compile(
    r"^(?:copied_)?(?:un)?(?:squeeze|reshape)_(?:node_)?(?:before|after)_|_clone_\d+$|(?:_U\d+)?_myl\d+_\d+$"
)
QUANTISED = re.compile(r"(.*)_(?:Quantize|Dequantize)Linear(?:_\d+)?$")

Shares = Mapping[int, float]  # layer -> its part of a row; the parts make up one


class RowReader:
    """Reads rows for one network: which layer's they are.

    `readers` names, for each value of the graph, the nodes that take it. `work` tells how large each layer is
    at the widths that are measured; a row of several layers is split by it.
    """

    def __init__(
        self, slots: Sequence[LayerSlot], readers: Mapping[str, Sequence[str]], work: Sequence[float]
    ) -> None:
        self._slots, self._readers, self._work = slots, readers, work
        self._owner = {node: index for index, slot in enumerate(slots) for node in slot.nodes}

    def shares(self, names: Sequence[str]) -> list[Shares]:
        """Of each row, which layers' it is and to which parts; nothing where its name tells of none.

        A row is its anchors': the layers whose first nodes are in it, as a rule one convolution. Activations
        and sums cost next to nothing where they are fused, wherever that is. Rows of several anchors (a
        convolution and a pool, two convolutions side by side, a region of Myelin's) are split in proportion
        to the layers' arithmetic: sums stay right, and each part follows the layer's own widths.
        """
        whole = {TOLD.sub("", name): name for name in names}
        foreign = [FOREIGN.search(name) for name in names]
        found = [
            [] if region else self._layers(name, whole) for name, region in zip(names, foreign, strict=True)
        ]
        seen = {layer for layers in found for layer in layers}
        regions: dict[str, list[int]] = {}
        for name, region in zip(names, foreign, strict=True):
            if region and not REFORMAT.match(name) and region[0] not in regions:  # one may run twice
                regions[region[0]] = self._region(name, region[1], region[2], seen)
                seen.update(regions[region[0]])
        return [
            self._split(regions.get(region[0], []) if region else layers)
            for layers, region in zip(found, foreign, strict=True)
        ]

    def _split(self, layers: Sequence[int]) -> Shares:
        each = {layer: self._work[layer] for layer in layers}
        total = sum(each.values())
        return {layer: work / total if total else 1 / len(each) for layer, work in each.items()}

    def _layers(self, name: str, whole: Mapping[str, str]) -> list[int]:
        """The layers of a row that is no region of Myelin's; `whole` are rows with what is told of them."""
        reformat = REFORMAT.match(TOLD.sub("", name))
        if reformat:  # it is its consumer's: what runs in the other format has asked for it
            side, of = reformat[1], whole.get(reformat[2], reformat[2])
            nodes = self._nodes(of)
            after = self._consumer(nodes[-1]) if side == "Output" and nodes else []
            return after or self._layers(of, whole)
        outer = NETWORK_REFORMAT.match(name)
        if outer:
            return self._consumer(outer[2]) or self._layers(outer[2], whole)
        copied = COPY.match(name)
        if copied:  # a part of a concatenation, which is nothing but such copies
            return self._consumer(copied[1]) or self._layers(copied[1], whole)
        nodes = self._nodes(name)
        anchors = [self._owner[node] for node in nodes if self._slots[self._owner[node]].nodes[0] == node]
        if anchors or nodes:
            return anchors or [self._owner[nodes[0]]]
        # Only a change to integers or back: of a value, or of the network's input.
        for value in (match.group(1) for token in BETWEEN.split(name) if (match := QUANTISED.match(token))):
            if value in self._readers or value in self._owner:
                return self._consumer(value) or [self._owner[value]]
        return []

    def _region(self, name: str, first: str, last: str, seen: set[int]) -> list[int]:
        """The layers of "{ForeignNode[first...last]}": what lies between and has no row of its own."""
        if ORIGIN.search(name):
            return self._layers(name, {})
        begin = [self._owner[node] for node in self._nodes(first)]
        end = [self._owner[node] for node in self._nodes(last)]
        low = begin[0] if begin else 0
        later = [layer for layer in seen if layer > low]
        high = end[-1] if end else min(later, default=len(self._slots)) - 1
        within = [layer for layer in range(low, high + 1) if layer not in seen]
        return within or begin[:1] or end[-1:]

    def _nodes(self, name: str) -> list[str]:
        """The network's nodes that a name tells of, in its order. They are whole: conv_1 is not conv_12."""
        if name in self._owner:
            return [name]
        found = []
        for token in ORIGIN.findall(name) or BETWEEN.split(name):
            while token not in self._owner and AROUND.search(token):
                token = AROUND.sub("", token)
            if token in self._owner:
                found.append(token)
        return found

    def _consumer(self, value: str) -> list[int]:
        """The layer that reads a value: the concatenation, if there is one among several."""
        layers = [self._owner[node] for node in self._readers.get(value, ()) if node in self._owner]
        joined = [layer for layer in layers if self._slots[layer].template.op == "Concat"]
        return (joined or layers)[:1]
