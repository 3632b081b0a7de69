"""Accuracy and latency of what was exported, measured through the exported file itself.

In: a network, its ONNX bytes, what was promised. Out: a VerifyReport; `passed` only when every check passed.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto
from torch import Tensor, nn

from bcnet.config import ExportConfig
from bcnet.data import ImageData
from bcnet.errors import CheckFailed, one_line
from bcnet.hw_profiles import HwProfile
from bcnet.latency_tables.table import LatencyStat
from bcnet.progress import progress_bar, working
from bcnet.runtimes import runtime_named
from bcnet.supernet.measure import measure_network
from bcnet.supernet.space import Widths, WidthSpace

PATIENCE = 5  # measurements of a network that seems over the budget


@dataclass(frozen=True)
class VerifyReport:
    """One backend's findings.

    `output_error` is the largest difference to PyTorch, relative to the largest output; `failures` say in
    words what did not pass.
    """

    backend: str
    executed: bool
    shapes_match: bool
    output_error: float
    top1_agreement: float
    accuracy_torch: float
    accuracy: float
    predicted_ms: float
    measured: LatencyStat
    full: LatencyStat
    budget_ms: float | None
    size_bytes: int
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {**asdict(self), "passed": self.passed}


def check_file(proto: ModelProto) -> None:
    """onnx.checker with shape inference. Raises CheckFailed with its reason."""
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as cause:
        raise CheckFailed(f"onnx.checker refuses the exported file: {one_line(cause)}") from None


def shapes_match(proto: ModelProto, space: WidthSpace, widths: Widths) -> bool:
    """Whether every searched weight in the file has the shape that the widths say."""
    found = {entry.name: tuple(entry.dims) for entry in proto.graph.initializer}
    wanted = {
        layer.weight: space.shape(layer.weight, widths)
        for layer in space.layers
        if layer.weight in space.dimensions
    }
    return all(found.get(name) == shape for name, shape in wanted.items())


def verify(
    model: nn.Module,
    proto: ModelProto,
    space: WidthSpace,
    widths: Widths,
    data: ImageData,
    profile: HwProfile,
    limits: ExportConfig,
    *,
    predicted_ms: float,
    budget_ms: float | None,
    full: bytes,
    full_predicted_ms: float | None = None,
) -> VerifyReport:
    """Run the file on the whole test set and time it beside the unpruned network, `full`.

    `full_predicted_ms` serves to tell a slower machine from a slower network in a failure's text.
    """
    check_file(proto)
    content = proto.SerializeToString()
    runtime = runtime_named(profile.runtime)
    expected = torch_outputs(model, data)
    outputs = file_outputs(content, data, profile)
    labels = data.test.labels.numpy()
    accuracy_torch = float((expected.argmax(1) == labels).mean())
    accuracy = float((outputs.argmax(1) == labels).mean())
    error = float(np.abs(outputs - expected).max() / max(float(np.abs(expected).max()), 1e-12))
    with working("timing the exported and the full network"):
        measured, full_stat = _timed(content, full, profile, budget_ms)
    match = shapes_match(proto, space, widths)
    failures = []
    if not match:
        failures.append("the file's shapes are not the searched widths")
    if not np.isfinite(outputs).all():
        failures.append("the outputs are not finite")
    elif error > limits.output_tolerance:
        failures.append(f"outputs differ from PyTorch by {error:.2g}, allowed is {limits.output_tolerance:g}")
    if accuracy_torch - accuracy > limits.accuracy_tolerance:
        failures.append(f"accuracy is {accuracy:.4f} in the file and {accuracy_torch:.4f} in PyTorch")
    if budget_ms is not None and measured.median_ms > budget_ms * (1 + limits.latency_tolerance):
        over = f"measured latency is {measured.median_ms:.4g} ms, the budget {budget_ms:.4g} ms"
        slower = full_stat.median_ms / full_predicted_ms - 1 if full_predicted_ms else 0.0
        if slower > limits.latency_tolerance / 2:
            over += (
                f" (the full network, too, takes {slower:.0%} longer than predicted: this machine is slower "
                "than when its table was measured; try again, or delete the table and build it anew)"
            )
        failures.append(over)
    return VerifyReport(
        backend=f"{profile.runtime} {runtime.fingerprint()['runtime_version']}",
        executed=True,
        shapes_match=match,
        output_error=error,
        top1_agreement=float((outputs.argmax(1) == expected.argmax(1)).mean()),
        accuracy_torch=accuracy_torch,
        accuracy=accuracy,
        predicted_ms=predicted_ms,
        measured=measured,
        full=full_stat,
        budget_ms=budget_ms,
        size_bytes=len(content),
        failures=tuple(failures),
    )


def _timed(
    content: bytes, full: bytes, profile: HwProfile, budget_ms: float | None
) -> tuple[LatencyStat, LatencyStat]:
    """The fastest of a few measurements of each, taken in turn; one each where the first is in the budget.

    A machine's other work only adds time, and passes.
    """
    pairs: list[tuple[LatencyStat, LatencyStat]] = []
    for _ in range(PATIENCE):
        pairs.append((measure_network(content, profile), measure_network(full, profile)))
        if budget_ms is None or pairs[-1][0].median_ms <= budget_ms:
            break
    first, second = zip(*pairs, strict=True)
    return min(first, key=_median), min(second, key=_median)


def _median(stat: LatencyStat) -> float:
    return stat.median_ms


def torch_outputs(model: nn.Module, data: ImageData) -> np.ndarray:
    """The network's outputs on the test images, in PyTorch."""
    model.eval()
    with torch.no_grad():
        return _over_test_set("test images in PyTorch", data, lambda images: model(images).numpy())


def file_accuracy(content: bytes, data: ImageData, profile: HwProfile) -> float:
    """The accuracy of an ONNX file on the whole test set, through the profile's runtime."""
    outputs = file_outputs(content, data, profile)
    return float((outputs.argmax(1) == data.test.labels.numpy()).mean())


def file_outputs(content: bytes, data: ImageData, profile: HwProfile) -> np.ndarray:
    """The outputs of an ONNX file on the test images, through the profile's runtime."""
    predict = runtime_named(profile.runtime).predictor(content, profile.threads)
    return _over_test_set(
        f"test images in {profile.runtime}", data, lambda images: predict(images.contiguous().numpy())
    )


def _over_test_set(
    description: str, data: ImageData, outputs_of: Callable[[Tensor], np.ndarray]
) -> np.ndarray:
    size = 256
    outputs = []
    with progress_bar(description, math.ceil(len(data.test) / size)) as advance:
        for images, _ in data.batches(data.test, size):
            outputs.append(outputs_of(images))
            advance("")
    return np.concatenate(outputs)
