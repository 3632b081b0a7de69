"""The forms of a network's layers where each of some layers may have one bit.

In: a problem whose network has such layers. Out: a few networks that contain every form of every fused layer.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from bcnet.errors import ModelError
from bcnet.latency_tables.mixed_slots import ONE_BIT, REAL, Bits, covering_bits
from bcnet.latency_tables.rows import LayerSpec
from bcnet.measure.network_design import needed_layers
from bcnet.models.binary import has_binary, layers_of_one_bit, only_binary
from bcnet.onnx_export.onnx_supernet import OnnxSupernet
from bcnet.pipeline.problem import Problem
from bcnet.runtimes.onnx_binary import binary_convolutions


@dataclass(frozen=True)
class Forms:
    """The layers that may have one bit, and the problems of networks with all forms, by their bits.

    `reads` has for each fused layer the numbers of those that it is a part of (see `layers_read`).
    """

    names: tuple[str, ...]
    reads: Sequence[Mapping[int, bool]]
    networks: Mapping[Bits, Problem]

    @classmethod
    def of(cls, problem: Problem) -> "Forms":
        """Those of a real network. Raises ModelError where not every such layer is binary in its file."""
        names = tuple(layers_of_one_bit(problem.model))
        binary = assigned(problem, names, (ONE_BIT,) * len(names))
        reads = layers_read(binary.graph, binary.model)
        networks = {
            bits: assigned(problem, names, bits) if REAL in bits else binary
            for bits in covering_bits([tuple(own) for own in reads], len(names))
        }
        return cls(names, reads, networks)


def forms_of_layers(problem: Problem) -> set[LayerSpec]:
    """The rows of all forms on the problem's device; none where no layer's bits can be chosen there."""
    form, layers = problem.profile.number_format, layers_of_one_bit(problem.model)
    kernels = problem.profile.traits.one_bit and (form.full or form.calibrated)
    if not kernels or not layers or has_binary(problem.model):
        return set()
    networks = Forms.of(problem).networks.values()
    return {spec for own in networks for spec in needed_layers(own.graph)}


def binary_names(names: Sequence[str], bits: Bits) -> tuple[str, ...]:
    """The layers of one bit."""
    return tuple(name for name, own in zip(names, bits, strict=True) if own == ONE_BIT)


def assigned(problem: Problem, names: Sequence[str], bits: Bits) -> Problem:
    """The problem of a real network with these bits of its layers; tensors and all else are the same."""
    if ONE_BIT not in bits:
        return problem
    model = copy.deepcopy(problem.model)
    only_binary(model, binary_names(names, bits))
    return problem.of_model(model)


def layers_read(graph: OnnxSupernet, model: nn.Module) -> list[dict[int, bool]]:
    """For each fused layer of the all-binary network the numbers of the layers that it is a part of.

    Numbers are those in `layers_of_one_bit`. True if it is the convolution, False if the signs that the
    convolution reads are fused into it. Signs are found by the nodes that make them: in a real network their
    thresholds may equal other shifts, with which they are then one constant.
    """
    names = {module: name for name, module in model.named_modules()}
    number_of = {
        f"{names[module]}.weight": number
        for number, modules in enumerate(layers_of_one_bit(model).values())
        for module in modules
        if isinstance(module, nn.Conv2d)
    }
    slot_of = {node: place for place, slot in enumerate(graph.slots) for node in slot.nodes}
    reads: list[dict[int, bool]] = [{} for _ in graph.slots]
    found = binary_convolutions(graph.proto.graph, graph.arrays)
    if sorted(own.node.input[1] for own in found) != sorted(number_of):
        raise ModelError("not every layer that can be binary is a binary convolution in the exported file")
    for own in found:
        number = number_of[own.node.input[1]]
        reads[slot_of[own.signs.output[0]]].setdefault(number, False)
        reads[slot_of[own.name]][number] = True
    return reads
