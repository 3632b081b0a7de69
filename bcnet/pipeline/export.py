"""Stage 5, export. In: the small network. Out: an ONNX file that was run on the whole test set, and timed.

`export/`: model.onnx, verify.json; where an engine was built, model.engine, engine.json; for further devices
the same with their names (model-NAME.onnx); of a binary network for a runtime with 1-bit kernels
model-one-bit.onnx, of a further device model-one-bit-NAME.onnx; and for a folder of images predict.py,
test_files.json. A failed check leaves the earlier files in place. Where the device is not available, or its
table is an estimate, the file is written and all but its latency is checked: not verified.
"""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto
from torch import Tensor, nn

from bcnet.onnx_export.onnx_supernet import to_onnx
from bcnet.onnx_export.preprocess import LAYOUT
from bcnet.pipeline.answers import FILE as ANSWERS
from bcnet.pipeline.deployment import KEY, beside_onnx, preprocessing
from bcnet.pipeline.engine import (
    ENGINE,
    FACTS,
    FILE,
    EngineWanted,
    beside_report,
    build_and_verify,
    engine_profile,
    engine_profiles,
    facts_of,
    how_to_verify,
)
from bcnet.pipeline.export_further import one_bit_files, say_further, verified_further, with_further
from bcnet.pipeline.file_outputs import file_metric
from bcnet.pipeline.finished import Chosen, as_searched, sliced, sliced_model
from bcnet.pipeline.kept import announce_replacement, finish_export
from bcnet.pipeline.original import original_network, state_of_original
from bcnet.pipeline.preprocessed import preprocessing_input, with_added
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.repeated import disagreement
from bcnet.pipeline.results import AgainstOriginal, ExportSummary, ScoredNetwork, SearchSummary, VerifyReport
from bcnet.pipeline.verify import (
    Artifact,
    Expected,
    against_original,
    on_this_processor,
    refuse_failed,
    verify,
)
from bcnet.progress import announce, say, working
from bcnet.runs import Run, alone_in, digest, json_bytes
from bcnet.runtimes.onnx_batch import BATCH, with_free_batch
from bcnet.space.width_space import Widths
from bcnet.training.recipe import metric_digest

EARLIER = "*.engine", "engine*.json", "model-*.onnx"  # files that not every export has


def export(model: nn.Module, example: Any, metadata: Mapping[str, str]) -> ModelProto:
    """The network as ONNX for inputs as `example` (see `to_onnx`), with metadata that a deployer needs."""
    proto = to_onnx(model, example)
    for key, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    return proto


def stage_inputs(run: Run, problem: Problem) -> dict[str, str]:
    """What this stage's manifest records."""
    config = problem.config
    supernet = run.stage("train").require(problem.inputs())
    made_from = {"supernet": supernet, "device": problem.device_key, **preprocessing_input(problem)}
    search = run.stage("search").require(made_from)
    return {
        "slice": run.stage("slice").require({"supernet": supernet, "search": search}),
        "search": search,
        "limits": digest(config.export.model_dump(exclude={"preprocess", "input_size"})),
        **preprocessing_input(problem),
        "metric": metric_digest(config),
        "device": problem.device_key,
    }


@alone_in("export")
def run(run: Run, problem: Problem, wanted: EngineWanted | None = None) -> ExportSummary:
    """Export, verify, save; with `wanted`, build its engine, too. Raises CheckFailed (exit 3).

    In the summary, `not_verified` says why the latency could not be checked, and `verify_with` what to do
    about it; both are None where it was.
    """
    config = problem.config
    stage, inputs = run.stage("export"), stage_inputs(run, problem)
    won = as_searched(run, problem)
    if wanted:
        engine_profiles([own.profile for own in won.devices], wanted.flavour, wanted.batches)
    here = wanted if won.profile.traits.engines else None  # of several devices, another one has TensorRT
    target = engine_profile(won.profile, here.flavour) if here else won.profile
    batches = here.batches if here else ()
    found = SearchSummary.read(run.stage("search"))
    chosen = sliced(run, problem)
    widths = chosen.widths
    model = sliced_model(run, problem)
    data = problem.data
    with working("exporting to ONNX"):
        metadata = _metadata(problem, widths, found.estimate, bool(batches))
        metadata[KEY] = preprocessing(model, data, None if batches else target.batch, problem.preprocessing)
        proto = won.at_precision(export(model, data.example(target.batch), metadata))
        if batches:
            proto = onnx.load_from_string(with_free_batch(proto.SerializeToString()))
        alone = proto.SerializeToString() if problem.preprocessing else None
        proto = problem.delivered(proto)
    content = proto.SerializeToString()
    added_ms = chosen.budget.added_ms if problem.preprocessing else 0.0
    predicted_ms = chosen.predicted_ms + added_ms
    announce_replacement(run, config, "export")
    announce("verifying on the test images", len(data.test) / target.batch * predicted_ms / 1000)
    expected = Expected(
        model,
        problem.space,
        widths,
        data,
        config.export,
        predicted_ms,
        chosen.budget.delivered,
        found.full_predicted_ms + added_ms if target == won.profile else None,
        problem.task,
        problem.raw_images,
    )
    not_measured = won.table.not_measured(won.table.latency_model()) or won.table.replayed
    full = b"" if not_measured and not here else problem.delivered_original()
    artifact = Artifact(proto, full, alone=alone)
    one_bit = one_bit_files(content, target)
    files = {FILE: content, **one_bit}
    if here:
        built = build_and_verify(artifact, expected, target, batches)
        report = built.report
        if built.engine:
            facts = facts_of(built.engine, content, target, batches, inputs)
            files |= {ENGINE: built.engine.content, FACTS: json_bytes(facts)}
    else:
        built, report = None, verify(artifact, expected, target, not_measured)
    report = with_added(report, chosen)
    file = str(stage.path(ENGINE if ENGINE in files else FILE))
    verify_with = None
    if report.not_verified:
        flags = stage.command.removeprefix("bcnet export")
        if ENGINE not in files:
            flags += "".join(f" --device {own.profile.name}" for own in problem.further)
        verify_with = (
            how_to_verify(file, proto, won.profile, target, batches, flags)
            if here
            else f"measure on the device itself: bcnet build-lut --device {target.name}, search, export"
        )
    notes = (*report.notes, *_since_the_search(found.best, chosen, report))
    further = verified_further(
        run, problem, chosen, expected, lambda own: _file_for(own, model, widths), wanted
    )
    for own in further:
        files |= own.files
    of_first = ExportSummary(
        folder=str(stage.folder),
        file=file,
        one_bit_file=next((str(stage.path(own)) for own in one_bit), None),
        device=target.name,
        metric=config.task.metric,
        estimate=found.estimate,
        recorded=problem.profile.recording,
        **dict(report.model_copy(update={"notes": notes})),
        original=against_original(report, original_accuracy(run, problem), state_of_original(problem)),
        verify_with=verify_with,
        **(beside_report(built, problem.profile) if built else {}),
    )
    summary = with_further(of_first, [own.report for own in further])
    refuse_failed(summary, stage.path("failed.json"))
    files |= beside_onnx(data, problem.task)
    if report.answers:
        files[ANSWERS] = json_bytes(report.answers.to_json())
    finish_export(run, inputs, {**files, summary.FILE: json_bytes(summary.to_json())})
    stage.path("failed.json").unlink(missing_ok=True)
    _remove_earlier(stage.folder, files)
    if summary.not_verified:
        return summary
    budget, measured = report.budget, report.measured
    if budget is not None and measured and budget.counted_ms(measured) > budget.ms:
        allowed = f"{config.export.latency_tolerance:.0%} that export.latency_tolerance allows"
        say(f"measured {budget.counted(measured)} is over the {budget}, within the {allowed}")
    say_further(summary)
    for note in summary.notes:
        say(note)
    if beside := _against_original(summary.original, config.task.metric):
        say(f"against the original network: {beside}")
    say(f"verified: {file}")
    return summary


def _remove_earlier(folder: Path, files: Mapping[str, bytes]) -> None:
    """Remove those networks of an earlier export, and the facts of their engines, that this one lacks."""
    for path in sorted(path for pattern in EARLIER for path in folder.glob(pattern)):
        if path.name not in files:
            if path.suffix != ".json":
                say(f"removed {path}, which was from an earlier export")
            path.unlink()


def _against_original(original: AgainstOriginal, metric: str) -> str:
    """What is lost and gained compared with the original network; empty where neither is known."""
    words = []
    if original.accuracy_lost is not None:
        lost = original.accuracy_lost
        much = f"{100 * abs(lost):.2f} points" if metric == "accuracy" else f"{abs(lost):.4f} of {metric}"
        words.append(f"{much} {'lost' if lost >= 0 else 'gained'}")
    if original.speedup is not None:
        words.append(f"{original.speedup:.2f} times as fast")
    return ", ".join(words)


def original_accuracy(run: Run, problem: Problem) -> float | None:
    """Accuracy of the original network, through an ONNX file; None unless all its weights are trained."""
    original = original_network(run, problem)
    if original is None:
        return None
    proto = problem.at_precision(to_onnx(original, problem.data.example(problem.profile.batch)))
    profile = on_this_processor(problem.profile)
    content = problem.delivered(proto).SerializeToString()
    return round(file_metric(content, problem.model, problem.tested, profile, problem.task), 6)


def _since_the_search(best: ScoredNetwork, chosen: Chosen, report: VerifyReport) -> list[str]:
    """A note where the winner was much faster or slower during the search than it is now."""
    if best.measured is None or best.widths != chosen.widths or report.measured is None:
        return []
    alone = (
        report.preprocess.without if report.preprocess else None
    )  # the search measures networks without pre-processing
    both = [best.measured.median_ms, (alone or report.measured).median_ms]
    note = disagreement({"the winner, in the search and now,": both})
    return [note] if note else []


def _file_for(problem: Problem, model: nn.Module, widths: Widths) -> ModelProto:
    """The small network's file for a problem's device, at its batch and precision, without pre-processing."""
    metadata = _metadata(problem, widths, problem.table.latency_model().estimate, False)
    metadata[KEY] = preprocessing(model, problem.data, problem.profile.batch, problem.preprocessing)
    return problem.at_precision(export(model, problem.data.example(problem.profile.batch), metadata))


def _metadata(problem: Problem, widths: Widths, estimate: bool, any_batch: bool) -> dict[str, str]:
    """What the file says of itself."""
    data, example = problem.data, problem.data.example(problem.profile.batch)
    metadata = {
        "bcnet_version": version("bcnet"),
        "widths": str(widths),
        "classes": json.dumps(data.classes),
    }
    if estimate:
        metadata["latency"] = "estimate, not measured"
    elif problem.table.replayed:
        metadata["latency"] = problem.table.replayed
    batch = BATCH if any_batch else problem.profile.batch
    if own := problem.preprocessing:
        metadata["input"] = json.dumps({"layout": LAYOUT, "shape": own.shape(batch)})
        return metadata
    if isinstance(example, Tensor) and example.ndim == 4:
        metadata["input"] = json.dumps({"layout": "NCHW", "shape": [batch, *example.shape[1:]]})
    if data.mean:  # a Dataset's items are final: what it does to images, only its author knows
        metadata["preprocessing"] = json.dumps({"scale": 1 / 255, "mean": data.mean, "std": data.std})
    return metadata
