"""Attribute rows of fused nodes to layers. In: a profile's names of rows, a network's layers. Out: shares.

TensorRT joins the names of fused ONNX nodes: "conv2d_1 + add + relu_1". The supported forms are those of
public recordings of versions 8.2 to 10; docs/reference/tensorrt.md lists them. OpenVINO's rows are written in
the same form (`bcnet.agent.openvino_graph.row_names`).
"""

import re
from collections.abc import Mapping, Sequence

from bcnet.latency_tables.model import LayerSlot

ORIGIN = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
ORIGINS = re.compile(r" \[ONNX Layer: .*", re.DOTALL)
REFORMAT = re.compile(r"Reformatting CopyNode for (Input|Output) Tensor \d+ to (.*)", re.DOTALL)
NETWORK_REFORMAT = re.compile(r"Reformatting CopyNode for Network (Input|Output) (\S+)")
COPY = re.compile(r"(\S+) copy\b")
FOREIGN = re.compile(r"\{ForeignNode\[(.*)\.\.\.(.*)\]\}", re.DOTALL)
SEPARATORS = re.compile(r"[\s(){}\[\],|+]+")
# Prefixes and suffixes that TensorRT's parser and optimiser add to a node's name.
AFFIXES = re.compile(
    r"^(?:copied_)?(?:un)?(?:squeeze|reshape)_(?:node_)?(?:before|after)_|_clone_\d+$|(?:_U\d+)?_myl\d+_\d+$"
)
QUANTISED = re.compile(r"(.*)_(?:Quantize|Dequantize)Linear(?:_\d+)?$")

Shares = Mapping[int, float]  # layer -> its fraction of a row; they add up to 1


class RowReader:
    """Attributes rows to the layers of one network.

    `readers` names, for each value of the graph, the nodes that read it. `work` is the number of operations
    of each layer at the measured widths, by which a row of several layers is split.
    """

    def __init__(
        self, slots: Sequence[LayerSlot], readers: Mapping[str, Sequence[str]], work: Sequence[float]
    ) -> None:
        self._slots, self._readers, self._work = slots, readers, work
        self._owner = {node: index for index, slot in enumerate(slots) for node in slot.nodes}

    def shares(self, names: Sequence[str]) -> list[Shares]:
        """For each row its layers with their shares; empty if its name has no node of the network.

        A row is attributed to the layers that start in it, i.e. whose first nodes it contains, usually one
        convolution: fused activations and sums cost almost nothing. Rows in which several layers start (a
        convolution and a pool, two parallel convolutions, a region of Myelin) are split in proportion to the
        layers' operations, so that sums stay right and each share depends on the layer's own widths.
        """
        whole = {ORIGINS.sub("", name): name for name in names}
        foreign = [FOREIGN.search(name) for name in names]
        found = [
            [] if region else self._layers(name, whole) for name, region in zip(names, foreign, strict=True)
        ]
        seen = {layer for layers in found for layer in layers}
        regions: dict[str, list[int]] = {}
        for name, region in zip(names, foreign, strict=True):
            if region and not REFORMAT.match(name) and region[0] not in regions:  # a region may run twice
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
        """The layers of a row that is not a region of Myelin; `whole` maps names to names with origins."""
        reformat = REFORMAT.match(ORIGINS.sub("", name))
        if reformat:  # belongs to its consumer, which needs the other format
            side, of = reformat[1], whole.get(reformat[2], reformat[2])
            nodes = self._nodes(of)
            after = self._consumer(nodes[-1]) if side == "Output" and nodes else []
            return after or self._layers(of, whole)
        outer = NETWORK_REFORMAT.match(name)
        if outer:
            return self._consumer(outer[2]) or self._layers(outer[2], whole)
        copied = COPY.match(name)
        if copied:  # a part of a concatenation, which consists of such copies
            return self._consumer(copied[1]) or self._layers(copied[1], whole)
        nodes = self._nodes(name)
        starting = [self._owner[node] for node in nodes if self._slots[self._owner[node]].nodes[0] == node]
        if starting or nodes:
            return starting or [self._owner[nodes[0]]]
        # A quantisation or dequantisation of a value, or of the network's input.
        for token in SEPARATORS.split(name):
            match = QUANTISED.match(token)
            if match and (match[1] in self._readers or match[1] in self._owner):
                return self._consumer(match[1]) or [self._owner[match[1]]]
        return []

    def _region(self, name: str, first: str, last: str, seen: set[int]) -> list[int]:
        """The layers of "{ForeignNode[first...last]}": those in between without a row of their own."""
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
        """The network's nodes in a name, in its order. Names match as a whole: conv_1 is not conv_12."""
        if name in self._owner:
            return [name]
        found = []
        for token in ORIGIN.findall(name) or SEPARATORS.split(name):
            while token not in self._owner and AFFIXES.search(token):
                token = AFFIXES.sub("", token)
            if token in self._owner:
                found.append(token)
        return found

    def _consumer(self, value: str) -> list[int]:
        """The layer that reads a value; of several preferably a concatenation."""
        layers = [self._owner[node] for node in self._readers.get(value, ()) if node in self._owner]
        joined = [layer for layer in layers if self._slots[layer].template.op == "Concat"]
        return (joined or layers)[:1]
