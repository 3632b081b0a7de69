"""The files for further devices. In: the small network, its limits there. Out: files, each verified.

A device's file has its profile's batch, precision and opset, and is verified in its runtime; where that is
TensorRT, an engine is built of it if one is wanted, and where it has 1-bit kernels, a binary network gets the
file for these, too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnx import ModelProto

from bcnet.hw_profiles import HwProfile
from bcnet.pipeline.engine import (
    ENGINE,
    ENGINE_SUFFIX,
    FACTS,
    FILE,
    EngineWanted,
    beside_report,
    build_and_verify,
    engine_profile,
    facts_of,
    named_for,
    trtexec_line,
)
from bcnet.pipeline.finished import Chosen, as_searched
from bcnet.pipeline.further_devices import Held, devices_of
from bcnet.pipeline.preprocessed import with_added
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.results import ExportSummary, FurtherExport
from bcnet.pipeline.verify import Artifact, Expected, verify
from bcnet.progress import say, working
from bcnet.runs import Run, Stage, json_bytes
from bcnet.runtimes.onnx_binary import one_bit_file

ONE_BIT = "model-one-bit.onnx"


@dataclass(frozen=True)
class FurtherFiles:
    """The files for a further device by name, and their verification."""

    files: Mapping[str, bytes]
    report: FurtherExport


def one_bit_files(content: bytes, profile: HwProfile, device: str | None = None) -> dict[str, bytes]:
    """The form of a file that the runtime's 1-bit kernels need, by its name.

    `device` is a further device's name. Empty where the network or the runtime has nothing binary.
    """
    packed = one_bit_file(content) if profile.traits.one_bit else content
    return {} if packed == content else {named_for(ONE_BIT, device): packed}


def verified_further(
    run: Run,
    problem: Problem,
    chosen: Chosen,
    expected: Expected,
    exported: Callable[[Problem], ModelProto],
    wanted: EngineWanted | None = None,
) -> tuple[FurtherFiles, ...]:
    """The files for each further device, verified like those of the first one.

    `expected` is what the first device's file has to meet; its latencies and budget are replaced. `exported`
    makes the network's file for a problem's device, without pre-processing. If engines are `wanted`, each
    device with TensorRT gets one, with its profile's batch. Raises ArtifactError if the network was searched
    for other devices.
    """
    won = {own.profile.name: own for own in as_searched(run, problem).further}
    return tuple(
        _verified(
            run,
            OnDevice(device, won[device.profile.name], held),
            expected,
            exported,
            wanted if device.profile.traits.engines else None,
        )
        for device, held in devices_of(problem, chosen.further, run.stage("search"))
    )


@dataclass(frozen=True)
class OnDevice:
    """A further device: its problem in its own precision and in the one that `won`, and its budget."""

    own: Problem
    won: Problem
    held: Held

    def expected(self, of_first: Expected, target: HwProfile) -> Expected:
        """What the file has to meet there, executed as `target` says."""
        added_ms = self.held.budget.added_ms if self.own.preprocessing else 0.0
        full_ms = float(self.own.table.latency_model()(self.own.space.original())) + added_ms
        return replace(
            of_first,
            predicted_ms=self.held.predicted_ms + added_ms,
            budget=self.held.budget.delivered,
            full_predicted_ms=full_ms if target == self.won.profile else None,
            raw=self.own.raw_images,
        )


def _verified(
    run: Run,
    on: OnDevice,
    of_first: Expected,
    exported: Callable[[Problem], ModelProto],
    wanted: EngineWanted | None,
) -> FurtherFiles:
    """The files for one device."""
    stage, profile, table = run.stage("export"), on.won.profile, on.won.table
    name, target = profile.name, engine_profile(profile, wanted.flavour) if wanted else profile
    with working(f"exporting to ONNX for {name}"):
        proto = exported(on.won)
    alone = proto.SerializeToString() if on.own.preprocessing else None
    proto = on.own.delivered(proto)
    not_measured = table.not_measured(table.latency_model()) or table.replayed
    full = b"" if not_measured and not wanted else on.own.delivered_original()
    artifact, expected = Artifact(proto, full, alone=alone), on.expected(of_first, target)
    one_bit = one_bit_files(artifact.content, target, name)
    files = {named_for(FILE, name): artifact.content, **one_bit}
    built, report = None, None
    if wanted:
        built = build_and_verify(artifact, expected, target, ())
        report = built.report
        if built.engine:
            facts = facts_of(built.engine, artifact.content, target, (), _made_from(run))
            files |= {
                named_for(ENGINE, name): built.engine.content,
                named_for(FACTS, name): json_bytes(facts),
            }
    else:
        report = verify(artifact, expected, target, not_measured)
    engine = named_for(ENGINE, name)
    file = str(stage.path(engine if engine in files else named_for(FILE, name)))
    return FurtherFiles(
        files,
        FurtherExport(
            device=name,
            file=file,
            one_bit_file=next((str(stage.path(own)) for own in one_bit), None),
            recorded=profile.recording,
            verify_with=_remedy(stage, file, proto, target, wanted) if report.not_verified else None,
            **dict(with_added(report, on.held)),
            **(beside_report(built, profile) if built else {}),
        ),
    )


def _made_from(run: Run) -> dict[str, str]:
    """What identifies the network of an engine."""
    return {name: run.stage(name).require({}) for name in ("search", "slice")}


def _remedy(
    stage: Stage, file: str, proto: ModelProto, target: HwProfile, wanted: EngineWanted | None
) -> str:
    """What to do about a device's file that was not verified there."""
    if wanted is None:
        return f"measure on the device itself: bcnet build-lut --device {target.name}, search, export"
    run_flag = stage.command.removeprefix("bcnet export")
    if file.endswith(ENGINE_SUFFIX):
        return f"run `bcnet verify --engine {file}{run_flag}` on the device, or here with --host user@device"
    return (
        f"build it on the device: set host in {target.name}'s profile and run `bcnet export --trt{run_flag}` "
        f"again, or there, without checks: `{trtexec_line(file, proto, target, ())}`"
    )


def with_further(summary: ExportSummary, further: Sequence[FurtherExport]) -> ExportSummary:
    """The first device's summary with the findings on further ones: it passed only if all did."""
    if not further:
        return summary

    def joined(own: str | None, key: str) -> str | None:
        return "; ".join([*([own] if own else []), *_texts(further, key)]) or None

    failures = [f"{_on(one)}{failure}" for one in further for failure in one.failures]
    notes = [f"{_on(one)}{note}" for one in further for note in one.notes]
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


def of_first(summary: ExportSummary) -> ExportSummary:
    """The first device's part of a summary: what `with_further` was given."""
    further = summary.further or ()

    def own(key: str) -> str | None:
        text: str | None = getattr(summary, key)
        others = "; ".join(_texts(further, key))
        return text.removesuffix(others).removesuffix("; ") or None if text else None

    def each(texts: Sequence[str]) -> tuple[str, ...]:
        return tuple(text for text in texts if not text.startswith(tuple(_on(one) for one in further)))

    failures, not_verified = each(summary.failures), own("not_verified")
    changed: dict[str, Any] = {
        "further": None,
        "passed": not failures,
        "verified": not failures and not_verified is None,
        "failures": failures,
        "notes": each(summary.notes),
        "not_verified": not_verified,
        "verify_with": own("verify_with"),
    }
    return summary.model_copy(update=changed)


def _on(one: FurtherExport) -> str:
    return f"on {one.device}: "


def _texts(further: Sequence[FurtherExport], key: str) -> list[str]:
    """The texts of further devices under a key of their results, each with its device's name."""
    return [f"{_on(one)}{text}" for one in further if (text := getattr(one, key))]


def say_further(summary: ExportSummary) -> None:
    """Report latencies on further devices that are over the budget, but within the tolerance."""
    for one in summary.further or ():
        if one.measured and one.budget and one.budget.counted_ms(one.measured) > one.budget.ms:
            measured = one.budget.counted(one.measured)
            say(f"on {one.device}: measured {measured} is over the {one.budget}, within the tolerance")
