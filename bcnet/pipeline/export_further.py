"""The files for further devices. In: the small network, its limits there. Out: files, each verified.

A device's file has its profile's batch, precision and opset, and is verified in its runtime.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnx import ModelProto

from bcnet.pipeline.finished import Chosen
from bcnet.pipeline.further_devices import devices_of
from bcnet.pipeline.preprocessed import with_added
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.results import ExportSummary, FurtherExport
from bcnet.pipeline.verify import Artifact, Expected, verify
from bcnet.progress import say, working
from bcnet.runs import Run

FILES = "model-*.onnx"


@dataclass(frozen=True)
class FurtherFile:
    """The file for a further device, and its verification."""

    name: str
    content: bytes
    report: FurtherExport


def verified_further(
    run: Run,
    problem: Problem,
    chosen: Chosen,
    expected: Expected,
    exported: Callable[[Problem], ModelProto],
) -> tuple[FurtherFile, ...]:
    """The file for each further device, verified like that of the first one.

    `expected` is what the first device's file has to meet; its latencies and budget are replaced. `exported`
    makes the network's file for a problem's device, without pre-processing. Raises ArtifactError if the
    network was searched for other devices.
    """
    return tuple(_verified(run, problem, chosen, expected, exported))


def _verified(
    run: Run,
    problem: Problem,
    chosen: Chosen,
    expected: Expected,
    exported: Callable[[Problem], ModelProto],
) -> Iterator[FurtherFile]:
    stage = run.stage("export")
    for device, held in devices_of(problem, chosen.further, run.stage("search")):
        name = device.profile.name
        with working(f"exporting to ONNX for {name}"):
            proto = exported(device)
        alone = proto.SerializeToString() if device.preprocessing else None
        proto = device.delivered(proto)
        latency, table = device.table.latency_model(), device.table
        not_measured = table.not_measured(latency) or table.replayed
        added_ms = held.budget.added_ms if device.preprocessing else 0.0
        own = replace(
            expected,
            predicted_ms=held.predicted_ms + added_ms,
            budget=held.budget.delivered,
            full_predicted_ms=float(latency(problem.space.original())) + added_ms,
            raw=device.raw_images,
        )
        full = b"" if not_measured else device.delivered_original()
        report = verify(Artifact(proto, full, alone=alone), own, device.profile, not_measured)
        file = f"model-{name}.onnx"
        remedy = f"measure on the device itself: bcnet build-lut --device {name}, search, export"
        yield FurtherFile(
            file,
            proto.SerializeToString(),
            FurtherExport(
                device=name,
                file=str(stage.path(file)),
                recorded=device.profile.recording,
                verify_with=remedy if not_measured else None,
                **dict(with_added(report, held)),
            ),
        )


def with_further(summary: ExportSummary, further: Sequence[FurtherExport]) -> ExportSummary:
    """The first device's summary with the findings on further ones: it passed only if all did."""
    if not further:
        return summary

    def joined(own: str | None, key: str) -> str | None:
        others = [f"on {one.device}: {text}" for one in further if (text := getattr(one, key))]
        return "; ".join([*([own] if own else []), *others]) or None

    failures = [f"on {one.device}: {failure}" for one in further for failure in one.failures]
    notes = [f"on {one.device}: {note}" for one in further for note in one.notes]
    changed: dict[str, Any] = {
        "further": tuple(further),
        "passed": summary.passed and all(one.passed for one in further),
        "verified": summary.verified and all(one.verified for one in further),
        "failures": (*summary.failures, *failures),
        "notes": (*summary.notes, *notes),
        "not_verified": joined(summary.not_verified, "not_verified"),
        "verify_with": joined(summary.verify_with, "verify_with"),
    }
    return summary.model_copy(update=changed)


def say_further(summary: ExportSummary) -> None:
    """Report latencies on further devices that are over the budget, but within the tolerance."""
    for one in summary.further or ():
        if one.measured and one.budget and one.budget.counted_ms(one.measured) > one.budget.ms:
            measured = one.budget.counted(one.measured)
            say(f"on {one.device}: measured {measured} is over the {one.budget}, within the tolerance")
