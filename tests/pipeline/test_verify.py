"""What is exported is evaluated by what its file really does."""

import copy
import json
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from onnx import ModelProto, numpy_helper
from torch import nn

from bcnet.config import DataConfig, ExportConfig
from bcnet.data.dataset import load_data
from bcnet.data.image_data import ImageData
from bcnet.errors import CheckFailed
from bcnet.hw_profiles import HwProfile
from bcnet.latency_tables.rows import LatencyStat
from bcnet.models.digits import digits
from bcnet.models.reactnet import reactnet_small
from bcnet.onnx_export.precision import at_precision
from bcnet.pipeline.export import export
from bcnet.pipeline.results import AgainstOriginal, VerifyReport
from bcnet.pipeline.verify import Artifact, Expected, against_original, check_file, verify
from bcnet.runtimes.onnx_binary import packed_bytes
from bcnet.space.discover import discover_space
from bcnet.space.supernet import cut
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.width_search.budget import Budget
from bcnet.width_search.latency_budget import LatencyBudget

QUICK = HwProfile(name="cpu", description="", runtime="onnxruntime", warmup_ms=1, seconds=0.02, iterations=6)


@dataclass(frozen=True)
class Exported:
    """A network, its narrowest subnet, and the file of that."""

    data: ImageData
    full: nn.Module
    space: WidthSpace
    widths: Widths
    small: nn.Module
    proto: ModelProto


@cache
def exported() -> Exported:
    """What all tests here verify."""
    data = load_data(DataConfig(image_size=16, train_limit=40, test_limit=40), 0)
    torch.manual_seed(0)
    full = digits().eval()
    space = discover_space(full, data.example(1), bins=2)
    widths = space.smallest()
    small = cut(full, space, widths).eval()
    proto = export(small, data.example(1), {"widths": str(widths)})
    return Exported(data, full, space, widths, small, proto)


def report(
    widths: Widths | None = None,
    budget_ms: float | None = None,
    full_predicted_ms: float | None = None,
    budget_share: float | None = None,
    budget_p90: bool = False,
) -> VerifyReport:
    own = exported()
    full = export(own.full, own.data.example(1), {}).SerializeToString()
    budget = Budget(budget_ms, budget_share, p90=budget_p90)
    expected = Expected(
        own.small,
        own.space,
        widths or own.widths,
        own.data,
        ExportConfig(),
        1.0,
        budget,
        full_predicted_ms,
    )
    return verify(Artifact(own.proto, full), expected, QUICK)


def test_a_faithful_file_passes_every_check() -> None:
    found = report(budget_ms=1000.0)
    assert found.passed
    assert found.shapes_match
    assert found.output_error < 1e-4
    assert found.accuracy == found.accuracy_torch
    assert found.top1_agreement == 1.0
    assert 0 < found.measured.median_ms < found.full.median_ms
    assert found.size_bytes == len(exported().proto.SerializeToString())


def test_shapes_that_are_not_the_searched_widths_fail() -> None:
    assert report(widths=exported().space.largest()).failures == (
        "the file's shapes are not the searched widths",
    )


def test_a_budget_that_was_missed_fails() -> None:
    (failure,) = report(budget_ms=1e-6).failures
    assert failure.startswith("measured latency is 0.")
    assert failure.endswith("ms, over the budget 1e-06 ms")


def test_a_budget_of_the_90th_percentile_fails_where_the_median_is_inside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def measure(content: bytes, profile: HwProfile, *, quiet: bool) -> LatencyStat:
        return LatencyStat(0.75, 1.25, 0.0, 10)

    monkeypatch.setattr("bcnet.pipeline.verify.measure_network", measure)
    assert report(budget_ms=1.0).passed
    found = report(budget_ms=1.0, budget_p90=True)
    assert found.budget == LatencyBudget(ms=1.0, p90=True)
    assert found.failures == (
        "90th percentile of the measured latency is 1.250 ms, over the p90 budget 1.000 ms",
    )


@pytest.mark.parametrize(("full_ms", "passed"), [(3.0, True), (1.5, True), (1.0, False)])
def test_a_share_is_of_the_full_network_as_it_is_measured_beside_the_file(
    monkeypatch: pytest.MonkeyPatch, full_ms: float, passed: bool
) -> None:
    """The budget was 0.5 ms when it was searched; meanwhile the machine has become slower, or faster."""

    def measure(content: bytes, profile: HwProfile, *, quiet: bool) -> LatencyStat:
        return LatencyStat(
            0.75 if content == exported().proto.SerializeToString() else full_ms, 0.75, 0.0, 10
        )

    monkeypatch.setattr("bcnet.pipeline.verify.measure_network", measure)
    found = report(budget_ms=0.5, budget_share=0.5)
    assert found.budget == LatencyBudget(ms=0.5 * full_ms, share=0.5)
    assert found.passed is passed


def test_a_machine_that_is_slower_now_is_told_from_a_network_that_is_too_slow() -> None:
    (failure,) = report(budget_ms=1e-6, full_predicted_ms=1e-6).failures
    assert "this machine is slower than when its table was measured" in failure
    (failure,) = report(budget_ms=1e-6, full_predicted_ms=1e6).failures
    assert "this machine" not in failure


def test_measurements_that_disagree_are_repeated_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of 0.7 ms on a machine that is busy once; the times of the full network are steady."""
    own, whole = iter([0.877, 0.693, 0.7, 0.7, 0.7]), iter([2.0] * 5)

    def measure(content: bytes, profile: HwProfile, *, quiet: bool) -> LatencyStat:
        ms = next(own if content == exported().proto.SerializeToString() else whole)
        return LatencyStat(ms, ms, 0.0, 10)

    monkeypatch.setattr("bcnet.pipeline.verify.measure_network", measure)
    found = report(budget_ms=0.8)
    assert next(own, None) is None
    assert found.verified
    assert found.measured.median_ms == 0.693
    assert found.noise == round(0.877 / 0.693 - 1, 4)
    (note,) = found.notes
    assert "measurements of the exported file disagree by 27%, 0.693 to 0.877 ms" in note
    lost = against_original(found, found.accuracy + 0.125, "as it was given")
    assert lost == AgainstOriginal(
        accuracy=found.accuracy + 0.125,
        state="as it was given",
        accuracy_lost=0.125,
        median_ms=2.0,
        speedup=round(2 / 0.693, 3),
    )


@pytest.mark.parametrize(
    ("factor", "message"), [(1.5, "outputs differ from PyTorch"), (np.nan, "not finite")]
)
def test_outputs_that_are_not_the_networks_fail(factor: float, message: str) -> None:
    own, proto = exported(), ModelProto()
    proto.CopyFrom(own.proto)
    (head,) = (entry for entry in proto.graph.initializer if entry.name.endswith("6.weight"))
    head.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(head) * np.float32(factor), head.name))
    limits = ExportConfig(accuracy_tolerance=1.0)
    expected = Expected(own.small, own.space, own.widths, own.data, limits, 1.0)
    found = verify(Artifact(proto, proto.SerializeToString()), expected, QUICK)
    assert len(found.failures) == 1
    assert message in found.failures[0]
    assert not found.passed


@pytest.mark.parametrize(
    ("precision", "reasons"),
    [("fp32", ["outputs differ from PyTorch by ", "100.00% of the answers are not those"]), ("int8", [])],
)
def test_answers_of_a_binary_network_have_to_be_pytorchs_unless_it_is_rounded_to_integers(
    precision: str, reasons: list[str]
) -> None:
    """The file names each class as the one before it; the network is not trained, so accuracy stays low."""
    data, quick = exported().data, QUICK.model_copy(update={"precision": precision})
    torch.manual_seed(0)
    model = reactnet_small(1, 10, widths=(32,), depths=(1,)).eval()
    space = discover_space(model, data.example(1), bins=2)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other[-1].parameters():  # type: ignore[union-attr]
            parameter.copy_(parameter.roll(-1, 0))
    proto = at_precision(export(other, data.example(1), {}), data, quick, 0)
    limits = ExportConfig(accuracy_tolerance=0.5, int8_accuracy_tolerance=0.5)
    expected = Expected(model, space, space.largest(), data, limits, 1.0)
    found = verify(Artifact(proto, proto.SerializeToString()), expected, quick)
    assert found.top1_agreement < 0.5
    assert found.packed_bytes == packed_bytes(proto)
    assert len(found.failures) == len(reasons)
    assert all(reason in own for own, reason in zip(found.failures, reasons, strict=True))


def test_a_file_that_is_no_onnx_network_is_refused() -> None:
    proto = ModelProto()
    proto.CopyFrom(exported().proto)
    proto.graph.node[0].op_type = "Convolution"
    with pytest.raises(CheckFailed, match=r"onnx\.checker refuses the exported file"):
        check_file(proto)


def test_a_report_of_endless_outputs_is_json_all_the_same() -> None:
    found = VerifyReport(**{**dict(report()), "output_error": float("inf")}).to_json()
    assert found["output_error"] is None
    json.loads(json.dumps(found), parse_constant=pytest.fail)
