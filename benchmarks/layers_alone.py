"""Layers timed alone, as Once-for-All's and NetAdapt's tables do it: the alternative to measuring in place.

In: a supernet's ONNX graph. Out: milliseconds of every fused layer at every width, each a network of its own.
"""

import numpy as np
import onnx
from onnx import ModelProto, shape_inference
from onnx.utils import Extractor

from bcnet.hw_profiles import HwProfile
from bcnet.latency_tables.model import LayerSlot
from bcnet.latency_tables.rows import LayerSpec
from bcnet.measure.network_design import covering_design
from bcnet.measure.network_latency import runtime_of
from bcnet.onnx_export.onnx_supernet import OnnxSupernet
from bcnet.progress import progress_bar


def layer_network(network: Extractor, slot: LayerSlot) -> ModelProto:
    """The nodes of one fused layer, cut out into a network with the layer's own inputs and outputs."""
    own = set(slot.nodes)
    fixed = {entry.name for entry in network.graph.initializer}
    made_of_constants: set[str] = set()
    inputs, used_outside = dict[str, None](), {value.name for value in network.graph.output}
    for node in network.graph.node:
        needed = {name for name in node.input if name} - fixed - made_of_constants
        if not needed:
            made_of_constants |= set(node.output)
        elif own & set(node.output):
            inputs |= dict.fromkeys(sorted(needed - own))
        else:
            used_outside |= needed
    return network.extract_model(list(inputs), [name for name in slot.nodes if name in used_outside])


def time_layers_alone(graph: OnnxSupernet, profile: HwProfile) -> dict[LayerSpec, float]:
    """Median milliseconds of each layer at all widths that the space's networks can have.

    The networks that show every pair of widths (`covering_design`) are taken apart; each layer is timed once,
    for 30 ms and ten runs after 5 ms of warm-up, by the same runtime.
    """
    runtime = runtime_of(profile)
    found: dict[LayerSpec, float] = {}
    networks = covering_design(graph.space)
    with progress_bar("timing layers alone", len(networks)) as advance:
        for widths in networks:
            network = Extractor(shape_inference.infer_shapes(onnx.load_from_string(graph.variant(widths))))
            for slot in graph.slots:
                spec = slot.at(widths)
                if spec not in found:
                    layer = layer_network(network, slot).SerializeToString()
                    samples = runtime.time_network(layer, 5.0, 0.03, 10)
                    found[spec] = float(np.median(samples))
            advance(f"{len(found)} layers")
    return found
