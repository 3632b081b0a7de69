"""Accuracy and latency of what was exported, measured through the exported file itself.

In: a network, its ONNX bytes, what was promised. Out: a VerifyReport; `passed` only when every check passed.
"""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from onnx import ModelProto
from torch import nn

from bcnet.config import ExportConfig
from bcnet.data.image_data import ImageData
from bcnet.errors import CheckFailed, NetworkError, one_line
from bcnet.hw_profiles import HwProfile
from bcnet.latency_tables.rows import LatencyStat
from bcnet.measure.network_latency import measure_network, runtime_of
from bcnet.pipeline.answers import Answered
from bcnet.pipeline.file_outputs import Compared, file_outputs
from bcnet.pipeline.raw_images import RawImages
from bcnet.pipeline.repeated import NOISY, Repeated, disagreement
from bcnet.pipeline.results import AgainstOriginal, ExportSummary, VerifyReport
from bcnet.plain import milliseconds
from bcnet.progress import working
from bcnet.runs import json_bytes, write_file
from bcnet.runtimes.onnx_binary import packed_bytes
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.training.task import Task
from bcnet.width_search.budget import Budget
from bcnet.width_search.scorer import evaluate_network

AT_LEAST = 2  # measurements of a network: a single one says nothing about the noise
PATIENCE = 5  # measurements of a network that seems over the budget, or whose measurements disagree


def refuse_failed(summary: ExportSummary, file: Path) -> None:
    """Where a check failed, write the summary to `file` and raise CheckFailed with the reasons."""
    if summary.passed:
        return
    found = summary.to_json()
    write_file(file, json_bytes(found))
    raise CheckFailed(f"verification failed: {'; '.join(summary.failures)} (details in {file})", found)


def check_file(proto: ModelProto) -> None:
    """onnx.checker with shape inference. Raises CheckFailed with its reason."""
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as cause:
        raise CheckFailed(f"onnx.checker refuses the exported file: {one_line(cause)}") from None


def shapes_match(proto: ModelProto, space: WidthSpace, widths: Widths) -> bool:
    """Whether every searched weight in the file has the shape that the widths say."""
    found = {entry.name: tuple(entry.dims) for entry in proto.graph.initializer}
    found |= {name.removesuffix("_quantized"): shape for name, shape in found.items()}
    wanted = {
        layer.weight: space.shape(layer.weight, widths)
        for layer in space.layers
        if layer.weight in space.dimensions
    }
    return all(found.get(name) == shape for name, shape in wanted.items())


@dataclass(frozen=True)
class Artifact:
    """A network's ONNX file, and what the device's runtime built from it where that is run in its place.

    `full` is the unpruned network, timed beside it: a file, or an engine where there is one. `alone` is the
    network without the file's pre-processing, where there is any, in the same form.
    """

    proto: ModelProto
    full: bytes
    engine: bytes | None = None
    alone: bytes | None = None

    @property
    def content(self) -> bytes:
        """What is run."""
        return self.engine or self.proto.SerializeToString()


@dataclass(frozen=True)
class Expected:
    """What an artifact has to meet: the network in PyTorch, its widths, test images, limits, latency in ms.

    Accuracy is the task's metric, where it has another. The prediction for the full network serves to tell a
    slower machine from a slower network in a failure's text. With `raw`, the artifact takes these images, and
    latencies are those of files that do so.
    """

    model: nn.Module
    space: WidthSpace
    widths: Widths
    data: ImageData
    limits: ExportConfig
    predicted_ms: float
    budget: Budget = field(default_factory=Budget)
    full_predicted_ms: float | None = None
    task: Task = field(default_factory=Task)
    raw: RawImages | None = None

    @property
    def tested(self) -> ImageData | RawImages:
        """The test images in the form that the artifact takes."""
        return self.raw or self.data


def verify(
    artifact: Artifact, expected: Expected, profile: HwProfile, not_measured: str | None = None
) -> VerifyReport:
    """Run the artifact on the whole test set and time it beside the unpruned network.

    A budget that is a share is that of the unpruned network as it is measured now, alternating with it. With
    `not_measured`, why its latency on the device cannot be known here, nothing is timed, and all else is
    checked with ONNX Runtime on this processor.
    """
    proto, model, data, limits = artifact.proto, expected.model, expected.data, expected.limits
    check_file(proto)
    content = artifact.content
    if not_measured:
        profile = on_this_processor(profile)
    runtime = runtime_of(profile)
    task, budget_ms = expected.task, expected.budget.target_ms
    compared = Compared.of(expected.tested)
    differences = compared.differences
    answered = Answered(task, data)
    batches = answered.seen(file_outputs(content, model, expected.tested, profile, compared))
    accuracy = task.measure(batches)
    for _ in batches:  # a metric may stop early, the comparison does not
        pass
    with working("the same test images in PyTorch"):
        accuracy_torch = (
            task.measure(iter(compared.by_pillow))
            if compared.pillow
            else evaluate_network(model, data, data.test, task).accuracy
        )
    error, packed = differences.relative, packed_bytes(proto)
    preprocess = compared.pillow.report() if compared.pillow else None
    measured, full_stat, noise, notes = None, None, None, tuple[str, ...]()
    if not not_measured:
        with working("timing the exported and the full network"):
            own, whole, alone = _timed(content, artifact, profile, expected.budget)
        measured, full_stat = own.fastest, whole.fastest if whole else None
        if preprocess and alone:
            preprocess = preprocess.model_copy(update={"without": alone.fastest})
        if expected.budget.share is not None and full_stat is not None:
            budget_ms = expected.budget.asked_ms(expected.budget.counted_ms(full_stat))
        noise = round(max(own.noise, whole.noise if whole else 0.0), 4)
        timed = {"the exported file": own.medians_ms, "the full network": whole.medians_ms if whole else [0]}
        note = disagreement(timed)
        notes = (note,) if note else ()
    match, what = (
        shapes_match(proto, expected.space, expected.widths),
        "engine" if artifact.engine else "file",
    )
    failures = []
    if not match:
        failures.append("the file's shapes are not the searched widths")
    if not differences.finite:
        failures.append("the outputs are not finite")
    elif (allowed := _output_tolerance(profile, limits)) is not None:
        off = error if packed is None else differences.typical
        if off > allowed:
            failures.append(f"outputs differ from PyTorch by {off:.2g}, allowed is {allowed:g}")
    exact = packed is not None and not profile.number_format.calibrated  # at int8, accuracy alone decides
    if exact and 1 - differences.agreement > _accuracy_tolerance(profile, limits):
        failures.append(f"{1 - differences.agreement:.2%} of the answers are not those of PyTorch")
    if accuracy_torch - accuracy > _accuracy_tolerance(profile, limits):
        failures.append(f"accuracy is {accuracy:.4f} in the {what} and {accuracy_torch:.4f} in PyTorch")
    counted_ms = expected.budget.counted_ms(measured) if measured else None
    if budget_ms is not None and counted_ms and counted_ms > budget_ms * (1 + limits.latency_tolerance):
        what_counts = "90th percentile of the measured latency" if expected.budget.p90 else "measured latency"
        over = f"{what_counts} is {milliseconds(counted_ms)} ms, over the {expected.budget.stated(budget_ms)}"
        predicted_ms = expected.full_predicted_ms
        slower = full_stat.median_ms / predicted_ms - 1 if full_stat and predicted_ms else 0.0
        if slower > limits.latency_tolerance / 2:
            over += (
                f" (the full network, too, takes {slower:.0%} longer than predicted: this machine is slower "
                "than when its table was measured; try again, or `bcnet build-lut --again`)"
            )
        failures.append(over)
    return VerifyReport(
        backend=f"{profile.runtime} {runtime.fingerprint()['runtime_version']}",
        precision=profile.precision,
        executed=not not_measured,
        shapes_match=match,
        output_error=error,
        top1_agreement=differences.agreement,
        accuracy_torch=accuracy_torch,
        accuracy=accuracy,
        predicted_ms=expected.predicted_ms,
        measured=measured,
        full=full_stat,
        budget=expected.budget.stated(budget_ms),
        size_bytes=len(content),
        packed_bytes=packed,
        failures=tuple(failures),
        not_verified=not_measured,
        noise=noise,
        notes=notes,
        passed=not failures,
        verified=not failures and not not_measured,
        preprocess=preprocess,
        answers=answered.answers,
    )


def on_this_processor(profile: HwProfile) -> HwProfile:
    """The profile for accuracy alone: ONNX Runtime on this machine, whatever the device."""
    here = {"runtime": "onnxruntime", "provider": "cpu", "threads": 1}
    elsewhere = {"machine": None, "host": (), "recording": None, "record_to": None}
    return profile.model_copy(update={**here, **elsewhere})


def _output_tolerance(profile: HwProfile, limits: ExportConfig) -> float | None:
    """How far outputs may be off, relative to the largest; None at int8, where accuracy decides."""
    if profile.number_format.calibrated:
        return None
    # From compute capability 8.0 on, TensorRT multiplies float32 as TF32: 10 bits of mantissa, as in fp16.
    exact = profile.number_format.full and profile.traits.full_fp32
    return limits.output_tolerance if exact else limits.fp16_output_tolerance


def _accuracy_tolerance(profile: HwProfile, limits: ExportConfig) -> float:
    allowed: float = getattr(limits, f"{profile.number_format.prefix}accuracy_tolerance")
    return allowed


def _timed(
    content: bytes, artifact: Artifact, profile: HwProfile, budget: Budget
) -> tuple[Repeated, Repeated | None, Repeated | None]:
    """Alternating measurements of the network, the full one and the one without pre-processing.

    There are more if they disagree or exceed the budget: other work on the machine only adds time, and ends.
    None for a full network that the runtime cannot run, and if there is no pre-processing.
    """
    first: list[LatencyStat] = []
    second: list[LatencyStat] = []
    alone: list[LatencyStat] = []
    budget_ms = budget.target_ms
    for number in range(1, PATIENCE + 1):
        first.append(measure_network(content, profile, quiet=True))
        with contextlib.suppress(NetworkError):
            second.append(measure_network(artifact.full, profile, quiet=True))
        if artifact.alone is not None:
            alone.append(measure_network(artifact.alone, profile, quiet=True))
        own = Repeated(tuple(first))
        if budget.share is not None and second:
            budget_ms = budget.asked_ms(budget.counted_ms(Repeated(tuple(second)).fastest))
        inside = budget_ms is None or budget.counted_ms(own.fastest) <= budget_ms
        if number >= AT_LEAST and inside and own.noise <= NOISY:
            break
    others = [Repeated(tuple(stats)) if stats else None for stats in (second, alone)]
    return own, others[0], others[1]


def against_original(report: VerifyReport, accuracy: float | None, state: str | None) -> AgainstOriginal:
    """The exported network compared with the original: the original's accuracy, and the latencies.

    `state` is what the original's weights are (`state_of_original`); None where it is not known. Without
    trained weights the original's accuracy means nothing: then no loss of accuracy is given.
    """
    measured, full, now = report.measured, report.full, report.accuracy
    return AgainstOriginal(
        accuracy=accuracy,
        state=None if accuracy is None else state,
        accuracy_lost=None if accuracy is None or now is None else round(accuracy - now, 6),
        median_ms=full.median_ms if full else None,
        speedup=(
            round(full.median_ms / measured.median_ms, 3)
            if measured and full and measured.median_ms > 0
            else None
        ),
    )
