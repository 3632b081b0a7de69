"""The latency of a network by its widths and by the precision of each layer that can be binary.

In: a problem whose device has 1-bit kernels. Out: a latency model over the space's groups and the layers'
bits. Both forms of each layer are rows of the device's table, measured in place, in a few networks of the
family.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from bcnet.errors import ModelError, SpaceError
from bcnet.latency_tables.calibration import fit_calibration
from bcnet.latency_tables.failed import runs
from bcnet.latency_tables.mixed_slots import BITS, ONE_BIT, REAL, Bits, MixedSlot, covering_bits, mixed_slots
from bcnet.latency_tables.model import LatencyModel, specs_of
from bcnet.latency_tables.rows import Calibration
from bcnet.measure.network_design import calibration_subnets
from bcnet.models.binary import layers_of_one_bit, only_binary
from bcnet.onnx_export.onnx_supernet import OnnxSupernet
from bcnet.pipeline.build_lut import build_lut
from bcnet.pipeline.problem import Problem
from bcnet.progress import say
from bcnet.runtimes.onnx_binary import binary_convolutions


@dataclass(frozen=True)
class MixedLatency:
    """Latencies by widths, then by bits: one group for each layer of `names`, behind those of the space.

    `parts` are the numbers of the fused layers that depend on each layer, the first its own convolution.
    `rows_measured` were missing in the table; `fit_error` is how far the one calibration is from that of each
    network in which rows were measured.
    """

    model: LatencyModel
    names: tuple[str, ...]
    parts: tuple[tuple[int, ...], ...]
    rows_measured: int
    fit_error: float

    def rows_ms(self, layer: int, widths: Sequence[int], bits: Bits) -> float:
        """What the rows of a layer take: of itself, and of those into which its input's signs are fused."""
        each = self.model.each_layer_ms((*widths, *bits))
        return sum(each[part] for part in self.parts[layer])


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


def mixed_latency(problem: Problem) -> MixedLatency:
    """Measure the rows that the device's table lacks, and bind it to all widths and bits.

    The rows of all forms are in a few networks, each with a calibration of its own (see `covering_bits`). One
    calibration for all is fitted to what these predict for their whole subnets.
    """
    names, seed = tuple(layers_of_one_bit(problem.model)), problem.config.seed
    binary = assigned(problem, names, (ONE_BIT,) * len(names))
    reads = layers_read(binary.graph, binary.model)
    together = [tuple(own) for own in reads]
    networks = {
        bits: assigned(problem, names, bits) if REAL in bits else binary
        for bits in covering_bits(together, len(names))
    }
    choices = (*problem.choices, *[BITS] * len(names))
    slots = _slots(problem, networks, together, choices)
    measured = 0
    with problem.table.being_built() as table:
        for number, (bits, own) in enumerate(networks.items(), 1):
            say(
                f"latency table, network {number} of {len(networks)}: {bits.count(ONE_BIT)} of {len(names)} "
                "layers have one bit"
            )
            report = build_lut(own.graph, problem.profile, table, seed=seed, path=problem.table.path)
            measured += report.measured
    models = {bits: own.table.latency_model() for bits, own in networks.items()}
    some = next(iter(models.values()))  # the table has the rows of all
    latency = LatencyModel(some.table, some.setting, slots, choices, None)
    latency, fit_error = _calibrated(problem, latency, models)
    parts = []
    for layer in range(len(names)):
        places = [(not read[layer], place) for place, read in enumerate(reads) if layer in read]
        parts.append(tuple(place for _, place in sorted(places)))
    return MixedLatency(latency, names, tuple(parts), measured, fit_error)


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


def _slots(
    problem: Problem,
    networks: Mapping[Bits, Problem],
    reads: Sequence[tuple[int, ...]],
    choices: Sequence[tuple[int, ...]],
) -> tuple[MixedSlot, ...]:
    """The fused layers of all networks at once, checked before anything is measured.

    Raises SpaceError where a layer has too many choices, TableError where networks have other layers.
    """
    slots = mixed_slots(
        {bits: own.graph.slots for bits, own in networks.items()}, reads, len(problem.choices)
    )
    if any(specs_of(slot, choices) is None for slot in slots):
        raise SpaceError("a layer has too many choices of widths and bits together; set a lower space.bins")
    return slots


def _calibrated(
    problem: Problem, latency: LatencyModel, models: dict[Bits, LatencyModel]
) -> tuple[LatencyModel, float]:
    """The model, calibrated by what all networks predict; the mean relative difference from these."""
    subnets = calibration_subnets(problem.space, problem.config.seed)
    indices = latency.indices([(*widths, *bits) for bits in models for widths in subnets])
    own_ms = np.concatenate([own.price_many(own.indices(subnets)) for own in models.values()])
    indices, own_ms = indices[runs(own_ms)], own_ms[runs(own_ms)]
    sums, evicted = latency.layers_ms(indices), latency.evicted_mb(indices)
    (offset, scale, memory), _ = fit_calibration(sums, own_ms, evicted)
    fits = [own.calibration for own in models.values() if own.calibration is not None]
    fit = Calibration(
        model="mixed precisions",
        setting=latency.setting,
        rows=latency.rows_digest,
        offset_ms=offset,
        scale=scale,
        fitted=len(own_ms),
        held_out=0,
        mean_error=float(np.mean([own.mean_error or 0.0 for own in fits])),
        within_5=None,
        within_10=None,
        spearman=None,
        noise=float(np.mean([own.noise or 0.0 for own in fits])),
        memory_ms_per_mb=memory,
        cache_mb=latency.cache_mb if memory else 0.0,
    )
    off = np.abs(fit.whole_ms(sums, evicted) / own_ms - 1)
    calibrated = LatencyModel(latency.table, latency.setting, latency.slots, latency.choices, fit)
    return calibrated, float(off.mean())
