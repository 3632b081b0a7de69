"""The latency of a network by its widths and by the precision of each layer that can be binary.

In: a problem whose device has 1-bit kernels. Out: a latency model over the space's groups and the layers'
bits. Both forms of each layer are rows of the device's table, measured in place, in a few networks of the
family.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bcnet.errors import SpaceError
from bcnet.latency_tables.calibration import fit_calibration
from bcnet.latency_tables.failed import runs
from bcnet.latency_tables.mixed_slots import BITS, ONE_BIT, Bits, MixedSlot, mixed_slots
from bcnet.latency_tables.model import LatencyModel, specs_of
from bcnet.latency_tables.rows import Calibration
from bcnet.measure.network_design import calibration_subnets
from bcnet.pipeline.build_lut import build_lut
from bcnet.pipeline.layer_forms import Forms
from bcnet.pipeline.problem import Problem
from bcnet.plain import counted
from bcnet.progress import say


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


def mixed_latency(problem: Problem) -> MixedLatency:
    """Measure the rows that the device's table lacks, and bind it to all widths and bits.

    The rows of all forms are in a few networks, each with a calibration of its own (see `covering_bits`). One
    calibration for all is fitted to what these predict for their whole subnets.
    """
    forms, seed = Forms.of(problem), problem.config.seed
    names, reads, networks = forms.names, forms.reads, forms.networks
    choices = (*problem.choices, *[BITS] * len(names))
    slots = _slots(problem, networks, [tuple(own) for own in reads], choices)
    measured = 0
    with problem.table.being_built() as table:
        for number, (bits, own) in enumerate(networks.items(), 1):
            say(
                f"latency table, network {number} of {len(networks)}: one bit in {bits.count(ONE_BIT)} of "
                f"{counted(len(names), 'layer')}"
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
