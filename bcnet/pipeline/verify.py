"""Accuracy and latency of what was exported, measured through the exported file itself.

In: a network, its ONNX bytes, what was promised. Out: a VerifyReport; `passed` only when every check passed.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from bcnet.config import ExportConfig
from bcnet.data.image_data import ImageData
from bcnet.errors import CheckFailed, NetworkError, one_line
from bcnet.hw_profiles import HwProfile
from bcnet.latency_tables.rows import LatencyStat
from bcnet.measure.network_latency import measure_network, runtime_of
from bcnet.pipeline.answers import Answered
from bcnet.pipeline.repeated import NOISY, Repeated, disagreement
from bcnet.pipeline.results import AgainstOriginal, ExportSummary, VerifyReport
from bcnet.progress import progress_bar, working
from bcnet.runs import json_bytes, write_file
from bcnet.space.inputs import arguments
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

    `full` is the unpruned network, timed beside it: a file, or an engine where there is one.
    """

    proto: ModelProto
    full: bytes
    engine: bytes | None = None

    @property
    def content(self) -> bytes:
        """What is run."""
        return self.engine or self.proto.SerializeToString()


@dataclass(frozen=True)
class Expected:
    """What an artifact is held to: the network in PyTorch, its widths, test images, limits, latency in ms.

    Accuracy is the task's metric, where it has another. The prediction for the full network serves to tell a
    slower machine from a slower network in a failure's text.
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
    differences = Differences()
    answered = Answered(task, data)
    batches = answered.seen(file_outputs(content, model, data, profile, differences))
    accuracy = task.measure(batches)
    for _ in batches:  # a metric may stop early, the comparison does not
        pass
    with working("the same test images in PyTorch"):
        accuracy_torch = evaluate_network(model, data, data.test, task).accuracy
    error = differences.relative
    measured, full_stat, noise, notes = None, None, None, tuple[str, ...]()
    if not not_measured:
        with working("timing the exported and the full network"):
            own, whole = _timed(content, artifact.full, profile, expected.budget)
        measured, full_stat = own.fastest, whole.fastest if whole else None
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
    elif (allowed := _output_tolerance(profile, limits)) is not None and error > allowed:
        failures.append(f"outputs differ from PyTorch by {error:.2g}, allowed is {allowed:g}")
    if accuracy_torch - accuracy > _accuracy_tolerance(profile, limits):
        failures.append(f"accuracy is {accuracy:.4f} in the {what} and {accuracy_torch:.4f} in PyTorch")
    counted_ms = expected.budget.counted_ms(measured) if measured else None
    if budget_ms is not None and counted_ms and counted_ms > budget_ms * (1 + limits.latency_tolerance):
        what_counts = "90th percentile of the measured latency" if expected.budget.p90 else "measured latency"
        over = f"{what_counts} is {counted_ms:.4g} ms, the budget {budget_ms:.4g} ms"
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
        budget_ms=budget_ms,
        budget_p90=expected.budget.p90 or None,
        size_bytes=len(content),
        failures=tuple(failures),
        not_verified=not_measured,
        noise=noise,
        notes=notes,
        passed=not failures,
        verified=not failures and not not_measured,
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
    content: bytes, full: bytes, profile: HwProfile, budget: Budget
) -> tuple[Repeated, Repeated | None]:
    """A few measurements of each, alternating; more where they disagree, or exceed the budget.

    A machine's other work only adds time, and passes. None for a full network that the runtime cannot run.
    """
    first: list[LatencyStat] = []
    second: list[LatencyStat] = []
    budget_ms = budget.target_ms
    for number in range(1, PATIENCE + 1):
        first.append(measure_network(content, profile, quiet=True))
        with contextlib.suppress(NetworkError):
            second.append(measure_network(full, profile, quiet=True))
        own = Repeated(tuple(first))
        if budget.share is not None and second:
            budget_ms = budget.asked_ms(budget.counted_ms(Repeated(tuple(second)).fastest))
        inside = budget_ms is None or budget.counted_ms(own.fastest) <= budget_ms
        if number >= AT_LEAST and inside and own.noise <= NOISY:
            break
    return own, Repeated(tuple(second)) if second else None


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


class Differences:
    """How far a file's outputs are from PyTorch's, over all batches that were added."""

    def __init__(self) -> None:
        self.finite = True
        self._largest: dict[int, tuple[float, float]] = {}  # output -> its largest difference and value
        self._agreed = self._answers = 0

    def add(self, outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
        """One batch, each output beside its own. Raises CheckFailed where they are of other shapes."""
        shapes, wanted = ([tuple(tensor.shape) for tensor in side] for side in (outputs, expected))
        if shapes != wanted:
            raise CheckFailed(f"the exported file gives outputs of {shapes}, PyTorch of {wanted}")
        for number, (output, reference) in enumerate(zip(outputs, expected, strict=True)):
            if not output.numel():
                continue
            self.finite = self.finite and bool(output.isfinite().all())
            before = self._largest.get(number, (0.0, 0.0))
            # In double: integers, too, and the largest of floats.
            found = (output.double() - reference.double()).abs().max(), reference.double().abs().max()
            self._largest[number] = max(before[0], float(found[0])), max(before[1], float(found[1]))
        if outputs and outputs[0].ndim > 1:
            same = outputs[0].argmax(1) == expected[0].argmax(1)
            self._agreed += int(same.sum())
            self._answers += same.numel()

    @property
    def relative(self) -> float:
        """The largest difference of an output, relative to its largest value; of the worst output."""
        return max((error / max(size, 1e-12) for error, size in self._largest.values()), default=0.0)

    @property
    def agreement(self) -> float:
        """The share of the first output's answers (largest along axis 1) that are the same."""
        return self._agreed / self._answers if self._answers else 1.0


def file_metric(content: bytes, model: nn.Module, data: ImageData, profile: HwProfile, task: Task) -> float:
    """The task's metric of an ONNX file on the whole test set, through the profile's runtime.

    `model` is the network in PyTorch: its outputs' structure is the file's.
    """
    return task.measure(file_outputs(content, model, data, profile))


def file_outputs(
    content: bytes,
    model: nn.Module,
    data: ImageData,
    profile: HwProfile,
    differences: Differences | None = None,
) -> Iterator[tuple[Any, Any]]:
    """(outputs, targets) of an ONNX file on the test images, through the profile's runtime.

    Outputs have the structure that `model` gives them; `differences` gets both beside each other.
    """
    model.eval()
    predict = runtime_of(profile).predictor(content)
    with progress_bar(
        f"test images in {profile.runtime}", math.ceil(len(data.test) / data.evaluated)
    ) as advance:
        for number, (inputs, targets) in enumerate(data.batches(data.test, data.evaluated)):
            if number == 0 or differences is not None:
                args, kwargs = arguments(inputs)
                with torch.no_grad():
                    leaves, structure = tree_flatten(model(*args, **kwargs))
            arrays = [leaf.contiguous().numpy() for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
            outputs = [torch.from_numpy(array) for array in predict(*arrays)]
            if differences is not None:
                differences.add(outputs, [leaf for leaf in leaves if isinstance(leaf, Tensor)])
            waiting = iter(outputs)
            filled = [next(waiting) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            yield tree_unflatten(filled, structure), targets
            advance("")
