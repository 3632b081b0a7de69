"""`bcnet verify --engine`. In: an exported engine and the run that it is of. Out: its verify.json, executed.

The same checks that `bcnet export --trt` makes where the device is available: outputs, accuracy, latency.
"""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import onnx
from pydantic import BaseModel, ConfigDict, Field

from bcnet.errors import ArtifactError, NotVerified
from bcnet.measure.network_latency import replayed, runtime_of, why_not_here
from bcnet.onnx_export.onnx_supernet import to_onnx
from bcnet.pipeline.answers import FILE as ANSWERS
from bcnet.pipeline.engine import beside_engine, full_engine
from bcnet.pipeline.export_further import of_first, with_further
from bcnet.pipeline.finished import refuse_noisy_search, sliced, sliced_model
from bcnet.pipeline.preprocessed import with_added
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.results import ExportSummary, SearchSummary, parsed
from bcnet.pipeline.verify import Artifact, Expected, against_original, refuse_failed, verify
from bcnet.progress import say
from bcnet.runs import Run, json_bytes, read_json, write_file
from bcnet.traits import PrecisionName

REMEDY = "bcnet export --trt"


class EngineFacts(BaseModel):
    """What verifying an engine needs of the engine.json beside it (see `facts_of`)."""

    model_config = ConfigDict(strict=True, frozen=True)

    flavour: Literal["tensorrt", "tensorrt-rtx", "onnxruntime"]  # ONNX Runtime's engine is the file itself
    precision: PrecisionName
    batches: Annotated[list[Annotated[int, Field(ge=1, le=65_536)]], Field(min_length=1)]
    dynamic: bool
    device: str
    sha256: str
    onnx_sha256: str
    search: str
    slice: str


def facts_beside(engine: Path) -> EngineFacts:
    """The engine.json beside an engine. Raises ArtifactError where it is missing, or another engine's."""
    onnx_file, path = beside_engine(engine)
    facts = parsed(EngineFacts, read_json(path, REMEDY), path, REMEDY, "export")
    for file, sha256 in ((engine, facts.sha256), (onnx_file, facts.onnx_sha256)):
        if not file.is_file():
            raise ArtifactError(f"{file} is missing; run `{REMEDY}`")
        if hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
            raise ArtifactError(f"{file} is not the file that {path} describes; run `{REMEDY}` again")
    return facts


def run(run: Run, problem: Problem, engine: Path) -> ExportSummary:
    """Execute an engine on its device and write what was found into the verify.json beside it.

    The problem's device, batch and precision are those of the engine's facts. Raises NotVerified (exit 4)
    where the device is not available, CheckFailed (exit 3) where a check failed: verify.json stays then.
    """
    facts = facts_beside(engine)
    config = problem.config
    target = problem.profile.model_copy(update={"runtime": facts.flavour})
    stage, search = run.stage("export"), run.stage("search")
    inside = engine.parent.resolve() == stage.folder.resolve()
    manifest = stage.manifest() if inside else None
    _check_network(run, problem, engine, facts)
    path = engine.with_name("verify.json")
    before = ExportSummary.parsed(read_json(path, REMEDY), path, REMEDY) if path.exists() else None
    found = SearchSummary.read(search)
    there = next((own for own in found.further or () if own.device == target.name), found)
    refuse_noisy_search(there.noise, search, problem)
    reason = why_not_here(target) or replayed(target)
    if reason:
        raise NotVerified(
            f"{engine} is not verified: {reason}; run this on the device itself, or here with "
            "--host user@device"
        )
    chosen, model = sliced(run, problem), sliced_model(run, problem)
    batches = facts.batches if facts.dynamic else ()
    builder = runtime_of(target)
    full, alone = full_engine(builder, problem.delivered_original(), batches), None
    if problem.preprocessing:
        own = problem.at_precision(to_onnx(model, problem.data.example(target.batch)))
        alone = builder.build(own.SerializeToString(), batches).content
    artifact = Artifact(onnx.load(beside_engine(engine)[0]), full, engine.read_bytes(), alone)
    held = next((own for own in chosen.further if own.device == target.name), None)
    asked = held or chosen
    added_ms = asked.budget.added_ms if problem.preprocessing else 0.0
    expected = Expected(
        model,
        problem.space,
        chosen.widths,
        problem.data,
        config.export,
        asked.predicted_ms + added_ms,
        replace(asked.budget.delivered, share=None),  # in ms, as measured when the file was exported
        there.full_predicted_ms + added_ms if target == problem.profile else None,
        problem.task,
        problem.raw_images,
    )
    report = with_added(verify(artifact, expected, target), asked)
    executed = {"file": str(engine), "device": target.name, **dict(report), "verify_with": None}
    if before and held:
        others = [
            own.model_copy(update=executed) if own.device == held.device else own
            for own in before.further or ()
        ]
        summary = with_further(of_first(before), others)
    elif before:
        executed["original"] = against_original(report, before.original.accuracy, before.original.state)
        summary = with_further(before.model_copy(update=executed), before.further or ())
    else:
        executed["original"] = against_original(report, None, None)
        summary = ExportSummary(folder=str(engine.parent), metric=config.task.metric, **executed)
    refuse_failed(summary, engine.with_name("failed.json"))
    if manifest:
        kept = {name: stage.path(name).read_bytes() for name in manifest["outputs"]}
        if report.answers and not held:
            kept[ANSWERS] = json_bytes(report.answers.to_json())
        stage.finish(manifest["inputs"], {**kept, path.name: json_bytes(summary.to_json())})
    else:
        write_file(path, json_bytes(summary.to_json()))
    engine.with_name("failed.json").unlink(missing_ok=True)
    for note in report.notes:
        say(note)
    say(f"verified: {engine}")
    return summary


def _check_network(run: Run, problem: Problem, engine: Path, facts: EngineFacts) -> None:
    """Raises ArtifactError where an engine is not of the network that the run holds now.

    The device may have another setting than it was searched for: a power mode, for one.
    """
    made_from = {"search": facts.search, "slice": facts.slice}
    changed = [name for name, was in made_from.items() if run.stage(name).require({}) != was]
    if changed:
        raise ArtifactError(
            f"{engine} was made with another {' and '.join(changed)}; run `{run.stage('export').command} "
            "--trt` again, or name its run with --run NAME"
        )
    run.stage("train").require(problem.inputs())
