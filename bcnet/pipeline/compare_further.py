"""Compared networks on further devices. In: networks, the found one's files. Out: latencies by device.

Each network gets a file for each device, with its batch, precision and opset, as the export makes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from onnx import ModelProto
from torch import nn

from bcnet.hw_profiles import HwProfile
from bcnet.measure.network_latency import measure_network
from bcnet.onnx_export.onnx_supernet import to_onnx
from bcnet.pipeline.engine import FILE, named_for
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.repeated import Repeated, measured_alternately, not_separable
from bcnet.pipeline.results import TimedOnDevice
from bcnet.progress import working
from bcnet.runs import Run
from bcnet.space.width_space import Widths

SHARE_OF_A_ROUND = 0.25  # of the profile's duration, for each network


def exported_further(run: Run, problem: Problem) -> dict[str, bytes]:
    """The found network's file for each further device on which networks can be measured now."""
    measured = [own.profile.name for own in problem.further if _why_not_timed(own) is None]
    return {name: run.stage("export").path(named_for(FILE, name)).read_bytes() for name in measured}


def not_timed_on(problem: Problem) -> list[str]:
    """A note for each further device on which networks cannot be measured now."""
    why = [(own.profile.name, _why_not_timed(own)) for own in problem.further]
    return [f"networks were not timed on {name}: {reason}" for name, reason in why if reason]


def _why_not_timed(device: Problem) -> str | None:
    return device.table.not_measured(device.table.latency_model()) or device.table.replayed


def _device(problem: Problem, name: str) -> Problem:
    return next(own for own in problem.further if own.profile.name == name)


def file_at(problem: Problem, network: nn.Module) -> ModelProto:
    """A network as it would be delivered to the problem's device."""
    proto = to_onnx(network, problem.data.example(problem.profile.batch))
    return problem.delivered(problem.at_precision(proto))


def alternately(
    profile: HwProfile, files: Mapping[str, bytes], rows: Mapping[str, Widths]
) -> dict[str, Repeated]:
    """The files of all rows, timed alternately on a device."""
    return measured_alternately(
        lambda name: measure_network(files[name], profile, SHARE_OF_A_ROUND, quiet=True), rows
    )


@dataclass(frozen=True)
class Further:
    """The rows on further devices, and which of them cannot be separated there, as notes."""

    timed: Mapping[str, tuple[TimedOnDevice, ...]]
    notes: tuple[str, ...]


def timed_further(
    rows: Mapping[str, Widths],
    at: Mapping[str, Problem],
    networks: Mapping[str, nn.Module],
    found: str,
    files: Mapping[str, bytes],
) -> Further:
    """All rows on those further devices for which `files` has that of the row `found`.

    `at` is each row's problem, in the precision of its network; `networks` are those of all other rows.
    """
    timed: dict[str, list[TimedOnDevice]] = {name: [] for name in rows}
    notes = []
    for device, searched in files.items():
        there = {row: _device(problem, device) for row, problem in at.items()}
        contents = {found: searched}
        for row, network in networks.items():
            with working(f"exporting to ONNX for {device}: {row}"):
                contents[row] = file_at(there[row], network).SerializeToString()
        measured = alternately(there[found].profile, contents, rows)
        for row, own in measured.items():
            timed[row].append(
                TimedOnDevice(
                    device=device,
                    latency=own.fastest,
                    rounds_ms=tuple(own.medians_ms),
                    noise=round(own.noise, 4),
                )
            )
        pairs = not_separable({row: own.medians_ms for row, own in measured.items()}, rows)
        notes += [f"on {device}: latency not separable: {first} / {second}" for first, second in pairs]
    return Further({row: tuple(own) for row, own in timed.items()}, tuple(notes))
