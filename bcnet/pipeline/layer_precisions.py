"""Which layers of a network have one bit and which are real: a choice beside widths, by a measured table.

In: a trained real network with layers that can be binary, a device with 1-bit kernels, a latency limit. Out:
the layers that are binary in the network of the least loss within it.

The loss of each choice is measured on the real network, with one group narrowed, or with one layer binary;
one linear program adds losses and latencies up. So a group is narrowed or a layer gets one bit, whichever
loses less for what it saves, and a layer whose real form is not slower stays real, in the precision of the
file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bcnet.allocation.loss_tables import unusable
from bcnet.config import latency_share
from bcnet.errors import DeviceError, ModelError
from bcnet.latency_tables.mixed_slots import BITS, ONE_BIT, REAL
from bcnet.methods.latency_milp import Allocation, allocate_exactly
from bcnet.models.binary import has_binary, layers_of_one_bit
from bcnet.pipeline.layer_forms import assigned, binary_names
from bcnet.pipeline.mixed_latency import MixedLatency, mixed_latency
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.results import Values
from bcnet.pipeline.trained_scores import TrainedScores
from bcnet.plain import loss_text
from bcnet.progress import progress_bar, say
from bcnet.space.extract import tensors_of
from bcnet.space.width_space import WidthGroup, Widths, WidthSpace
from bcnet.traits import PrecisionName


class LayerPrecision(Values):
    """A layer in the chosen network: its channels there, and whether it is `binary`.

    `one_bit_ms` and `real_ms` are what its rows take in either form, with what prepares its input, all other
    layers as chosen; `loss` is the rise of the loss with this layer alone binary, in the whole network.
    """

    name: str
    in_channels: int
    out_channels: int
    one_bit_ms: float
    real_ms: float
    loss: float
    binary: bool


class LayerPrecisions(Values):
    """The chosen network: the names of its `binary` layers, the `widths` of its `groups`, its latency.

    Layers that are not binary have the `precision` of the file. `loss` is the sum of what its choices lose,
    `gap` the part of it that another network could save at most. `full_real_ms` and `full_one_bit_ms` are the
    network of full widths with all layers real, and all binary. `rows_measured` were missing in the table;
    `table_error` and `noise` are means over the networks in which rows were measured, `fit_error` how far one
    calibration of all is from that of each.
    """

    device: str
    precision: PrecisionName
    table: str
    limit_ms: float
    predicted_ms: float
    full_real_ms: float
    full_one_bit_ms: float
    binary: tuple[str, ...]
    groups: tuple[str, ...]
    widths: tuple[int, ...]
    loss: float
    gap: float
    layers: tuple[LayerPrecision, ...]
    rows_measured: int
    table_error: float
    noise: float
    fit_error: float


def choose_precisions(problem: Problem) -> LayerPrecisions:
    """Measure what the device's table lacks, and choose; the limit is that of [search].

    A share refers to the real network of full widths. Without a limit, it is the latency of the network of
    full widths whose layers are all binary. Bounds on parameters, multiply-accumulates and size are left to
    the search. Raises DeviceError where there are several devices, or the device has no 1-bit kernels,
    ModelError where the network has no layers that can be binary, is not real, or not trained, BudgetError
    where no network fits.
    """
    _check(problem)
    if problem.config.search.bounded:
        say("bounds other than the latency do not limit this choice; `bcnet search` applies them")
    mixed = mixed_latency(problem)
    losses = choice_losses(problem, mixed.names)
    space = with_bits(problem.space, mixed.names)
    full = Full.of(problem, mixed)
    limit_ms = _limit_ms(problem, full)
    (best,) = allocate_exactly(space, losses, mixed.model, limit_ms)
    return _result(problem, mixed, losses, (limit_ms, full), best)


def _check(problem: Problem) -> None:
    profile = problem.profile
    if problem.further:
        raise DeviceError(
            f"precisions are chosen on one device, and there are several: {', '.join(problem.targets)}; name "
            f"one of them, e.g. --device {profile.name}"
        )
    if not layers_of_one_bit(problem.model):
        raise ModelError(
            f"model '{problem.config.model.name}' has no layers that can be binary (bcnet.models.binary)"
        )
    if not profile.traits.one_bit:
        raise DeviceError(
            f"{profile.runtime} on '{profile.name}' has no 1-bit kernels, so no layer gains by one bit; "
            "choose a device that has them, e.g. --device cpu-openvino"
        )
    if not (profile.number_format.full or profile.number_format.calibrated):
        raise DeviceError(
            f"1-bit kernels are for files in fp32 or int8, not {profile.precision}; set --precision fp32"
        )
    if has_binary(problem.model):
        raise ModelError(
            "precisions are chosen on the real network, from which the binary one is then trained: set "
            "binary = 'none' in [model] args, and model.weights to those of the real network"
        )
    if not problem.trained or problem.untrained_layers or problem.narrow is not None:
        raise ModelError(
            "precisions are chosen by losses of the trained network: set model.weights to those of the real "
            "network, and leave space.expand at 1"
        )


def with_bits(space: WidthSpace, names: Sequence[str]) -> WidthSpace:
    """The space with a group for the bits of each layer behind those of widths; for allocation alone."""
    bits = (WidthGroup(f"bits of {name}", REAL, BITS, (name,)) for name in names)
    return replace(space, groups=(*space.groups, *bits))


def choice_losses(problem: Problem, names: Sequence[str]) -> tuple[np.ndarray, ...]:
    """What each choice of a width, then of bits, loses in the real network: (choices,) a group.

    All on the same validation images, with batch-norm statistics of each network's own, before any training.
    """
    tensors = tensors_of(problem.model)
    scores = TrainedScores(problem, tensors)
    scores.choose_criterion(Widths(own.choices[len(own.choices) // 2] for own in scores.space.groups))
    whole = scores.space.largest()
    tables = scores.tables  # refused where the network itself has no finite loss
    base, rises = scores.loss_of(whole), list[float]()
    with progress_bar("measuring the loss of one bit in each layer", len(names)) as advance:
        for layer, name in enumerate(names):
            bits = tuple(ONE_BIT if number == layer else REAL for number in range(len(names)))
            one = TrainedScores(assigned(problem, names, bits), tensors, importances=scores.importances)
            one.criterion = scores.criterion
            rises.append(one.loss_of(whole) - base)
            advance(f"{name}: loss {loss_text(base + rises[-1])}")
    rises = [rise if np.isfinite(rise) else unusable(rises, base) for rise in rises]
    # A real layer can compute what a binary one does: where the loss fell, that is noise.
    return (*tables, *(np.array([max(rise, 0.0), 0.0]) for rise in rises))


@dataclass(frozen=True)
class Full:
    """The latencies of the network of full widths, in ms: with all layers real, and with all binary."""

    real_ms: float
    one_bit_ms: float

    @classmethod
    def of(cls, problem: Problem, mixed: MixedLatency) -> "Full":
        widths, layers = problem.space.original(), len(mixed.names)
        return cls(*(float(mixed.model((*widths, *[bits] * layers))) for bits in (REAL, ONE_BIT)))


def _limit_ms(problem: Problem, full: Full) -> float:
    search = problem.config.search
    given_ms = search.given_ms(problem.profile.batch)
    if given_ms is not None:
        return given_ms
    return full.one_bit_ms if search.share is None else latency_share(search.share) * full.real_ms


def _result(
    problem: Problem,
    mixed: MixedLatency,
    losses: Sequence[np.ndarray],
    limits: tuple[float, Full],
    best: Allocation,
) -> LayerPrecisions:
    latency, fit, (limit_ms, full) = mixed.model, mixed.model.calibration, limits
    assert fit is not None
    groups = tuple(group.name for group in problem.space.groups)
    widths, bits = best.widths[: len(groups)], best.widths[len(groups) :]

    def layer(number: int) -> LayerPrecision:
        ms = {
            form: mixed.rows_ms(number, widths, (*bits[:number], form, *bits[number + 1 :])) for form in BITS
        }
        convolution = latency.slots[mixed.parts[number][0]].at(best.widths)
        return LayerPrecision(
            name=mixed.names[number],
            in_channels=convolution.in_channels,
            out_channels=convolution.out_channels,
            one_bit_ms=round(ms[ONE_BIT], 5),
            real_ms=round(ms[REAL], 5),
            loss=float(losses[len(groups) + number][0]),
            binary=bits[number] == ONE_BIT,
        )

    return LayerPrecisions(
        device=problem.profile.name,
        precision=problem.profile.precision,
        table=str(problem.table.path),
        limit_ms=round(limit_ms, 5),
        predicted_ms=round(best.predicted_ms, 5),
        full_real_ms=round(full.real_ms, 5),
        full_one_bit_ms=round(full.one_bit_ms, 5),
        binary=binary_names(mixed.names, bits),
        groups=groups,
        widths=tuple(widths),
        loss=best.loss,
        gap=best.gap,
        layers=tuple(map(layer, range(len(mixed.names)))),
        rows_measured=mixed.rows_measured,
        table_error=fit.mean_error or 0.0,
        noise=fit.noise or 0.0,
        fit_error=mixed.fit_error,
    )
