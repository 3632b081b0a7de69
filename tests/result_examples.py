"""Results as stages write them, for tests of their readers. In: what a test changes. Out: a result."""

from typing import Any

from bcnet.latency_tables.rows import LatencyStat
from bcnet.pipeline.results import (
    AgainstOriginal,
    ComparedNetwork,
    CompareSummary,
    ExportSummary,
    ScoredNetwork,
    SearchSummary,
    SliceSummary,
)
from bcnet.width_search.latency_budget import LatencyBudget

BUDGET = LatencyBudget(ms=0.41)
LATENCY = LatencyStat(median_ms=0.393, p90_ms=0.41, spread=0.01, samples=100)
BEST = ScoredNetwork(
    widths=(80,) * 40, predicted_ms=0.405, accuracy=0.9861, loss=0.05, generation=3, measured=LATENCY
)
SEARCH = SearchSummary(
    folder="runs/night/search",
    device="cpu",
    budget=BUDGET,
    min_accuracy=None,
    best=BEST,
    params=1_429_466,
    macs=44_260_480,
    limit_ms=0.4,
    margin=0.02,
    pareto=11,
    candidates=80,
    full_predicted_ms=0.67,
    table_error=0.02,
    seed=0,
    note="",
)
SLICE = SliceSummary(
    folder="runs/night/slice",
    widths=(80,) * 40,
    predicted_ms=0.405,
    budget=BUDGET,
    supernet=1,
    side="left",
    epochs=2,
    from_scratch=False,
    test_accuracy_before=0.9,
    test_accuracy_after=0.98,
    params=1_429_466,
    macs=44_260_480,
)
EXPORT = ExportSummary(
    folder="runs/default/export",
    file="runs/default/export/model.onnx",
    device="cpu",
    backend="onnxruntime 1.23.0",
    precision="fp32",
    executed=True,
    shapes_match=True,
    output_error=4.04e-7,
    top1_agreement=1.0,
    accuracy_torch=0.9875,
    accuracy=0.9875,
    predicted_ms=0.405,
    measured=LATENCY,
    full=None,
    budget=BUDGET,
    size_bytes=5_719_418,
    failures=(),
    noise=0.021,
    passed=True,
    verified=True,
    original=AgainstOriginal(accuracy=0.9972, accuracy_lost=0.0097, median_ms=0.672, speedup=1.71),
    verify_with=None,
)


def compared(name: str, ms: float, passes: int | None = 18, **changed: Any) -> ComparedNetwork:
    """One network of a comparison, of this latency."""
    own: dict[str, Any] = {
        "name": name,
        "widths": (80,),
        "accuracy": 0.9972,
        "accuracy_low": 0.984,
        "accuracy_high": 1.0,
        "latency": LatencyStat(ms, 0.41, 0.01, 100),
        "rounds_ms": (ms,) * 9,
        "noise": 0.034,
        "params": 1_914_490,
        "macs": 75_553_920,
        "size_bytes": 7_000_000,
        "passes": passes,
    }
    return ComparedNetwork(**{**own, **changed})


def comparison(*networks: ComparedNetwork, **changed: Any) -> CompareSummary:
    """A comparison of these networks."""
    own: dict[str, Any] = {
        "device": "cpu",
        "budget": BUDGET,
        "predicted_ms": 0.405,
        "metric": "accuracy",
        "test_images": 359,
        "passes": 18,
        "networks": networks,
        "not_separable": (),
        "notes": (),
        "file": "runs/default/export/model.onnx",
    }
    return CompareSummary(**{**own, **changed})
