"""ONNX Runtime by its execution providers, and what goes wrong while it runs."""

import time
from functools import cache
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from bcnet.agent import onnxruntime_jobs
from bcnet.errors import DeviceError
from bcnet.onnx_export.onnx_supernet import to_onnx
from bcnet.runtimes.device import LocalDevice
from bcnet.runtimes.onnxruntime import ATTEMPTS, OnnxRuntime, plausible

MODEL = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3)).eval()
RUNTIME = OnnxRuntime(LocalDevice())
OTHERS = [p for p in onnxruntime.get_available_providers() if p != onnxruntime_jobs.CPU]


@cache
def file() -> bytes:
    """`MODEL` as ONNX."""
    return bytes(to_onnx(MODEL, (1, 3, 64, 64)).SerializeToString())


def fails_when_run() -> bytes:
    """A network that ONNX Runtime loads and cannot run: it looks up row -5 of a table that has only one."""
    graph = helper.make_graph(
        [
            helper.make_node("Shape", ["input"], ["five"], start=1),
            helper.make_node("Sub", ["zero", "five"], ["index"]),
            helper.make_node("Gather", ["table", "index"], ["output"], axis=0),
        ],
        "lookup",
        [
            helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 5]),
            helper.make_tensor_value_info("zero", TensorProto.INT64, [1]),
        ],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(np.zeros((1, 2), np.float32), "table")],
    )
    opsets = [helper.make_opsetid("", 18)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider", "cpuexecutionprovider"])
def test_a_provider_has_its_short_or_its_full_name(name: str) -> None:
    assert onnxruntime_jobs.provider_named(name) == "CPUExecutionProvider"
    images = np.ones((2, 3, 64, 64), np.float32)
    with torch.no_grad():
        expected = MODEL(torch.from_numpy(images)).numpy()
    assert OnnxRuntime(LocalDevice(), name).predictor(file())(images)[0] == pytest.approx(expected, abs=1e-5)


def test_a_provider_that_is_not_installed_is_refused_with_those_that_are() -> None:
    with pytest.raises(DeviceError, match=r"no execution provider 'nosuch', only .*cpu"):
        OnnxRuntime(LocalDevice(), "nosuch").time_network(file(), 0, 0.01, 2)


@pytest.mark.skipif(OTHERS != ["AzureExecutionProvider"], reason="needs a provider that takes no layer")
def test_a_provider_that_leaves_all_to_the_cpu_is_refused() -> None:
    azure = OnnxRuntime(LocalDevice(), "azure")
    for use in (
        lambda: azure.time_network(file(), 0, 0.01, 2),
        lambda: azure.profile_nodes(file(), 2),
        lambda: azure.predictor(file())(np.ones((1, 3, 64, 64), np.float32)),
    ):
        with pytest.raises(DeviceError, match="the whole network on the CPU: AzureExecutionProvider"):
            use()


def test_a_network_that_fails_while_it_runs_is_an_error_of_one_line(
    capfd: pytest.CaptureFixture[str],
) -> None:
    content = fails_when_run()
    images, zero = np.zeros((1, 5), np.float32), np.zeros(1, np.int64)
    for use in (
        lambda: RUNTIME.time_network(content, 0, 0.01, 2),
        lambda: RUNTIME.profile_nodes(content, 2),
        lambda: RUNTIME.predictor(content)(images, zero),
    ):
        with pytest.raises(DeviceError, match=r"^ONNX Runtime cannot run the network: .*Gather") as caught:
            use()
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_runs_with_impossible_times_are_told_from_possible_ones() -> None:
    durations = np.array([[1.0, 2.0], [-0.001, 2.0], [1.0, 2.0], [1.0, 1e6]])
    walls = np.array([3.1, 3.1, 2.9, 3.1])
    assert plausible(durations, walls).tolist() == [True, False, False, False]
    # The profiler counts whole microseconds: two nodes may be two too long.
    assert plausible(durations[:1], np.array([2.999])).tolist() == [True]


def test_the_profilers_own_time_is_at_most_that_of_the_shortest_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that was slow while that time was measured would leave a network without any time."""
    monkeypatch.setattr(OnnxRuntime, "_profiler_ms", 1000.0)
    means = [float(durations.mean()) for _, durations in RUNTIME.profile_nodes(file(), 20)]
    assert min(means) == pytest.approx(0, abs=1e-9)
    assert max(means) > 0.01


def clock(monkeypatch: pytest.MonkeyPatch, stands_still: int) -> list[int]:
    """Let the runtime's clock begin with so many readings of zero; the readings are counted."""
    RUNTIME.profile_nodes(file(), 2)  # what the profiler itself adds is measured once, by the real clock
    readings = [0]

    def perf_counter() -> float:
        readings[0] += 1
        return 0.0 if readings[0] <= stands_still else time.perf_counter()

    monkeypatch.setattr(onnxruntime_jobs, "time", SimpleNamespace(perf_counter=perf_counter))
    return readings


def test_runs_in_which_the_clocks_disagree_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    runs, warmup = 5, 3
    RUNTIME.profile_nodes(file(), 2)  # what the profiler adds is measured once a process: not by this clock
    readings = clock(monkeypatch, stands_still=2 * (warmup + 2))
    nodes = RUNTIME.profile_nodes(file(), runs)
    assert all(len(durations) == runs for _, durations in nodes)
    assert readings[0] == 2 * 2 * (warmup + runs)


def test_clocks_that_never_agree_end_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = clock(monkeypatch, stands_still=10**9)
    with pytest.raises(DeviceError, match="disagrees with the machine's monotonic clock in 8 runs"):
        RUNTIME.profile_nodes(file(), 2)
    assert readings[0] == ATTEMPTS * 2 * (3 + 2)


@pytest.mark.parametrize(("version", "too_old"), [("1.10.0", True), ("1.12.0", False), ("1.23.2", False)])
def test_a_version_that_cannot_read_the_files_is_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, version: str, too_old: bool
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", version)
    lacking = onnxruntime_jobs.missing({"provider": "cpu"})
    assert lacking is None if not too_old else f"ONNX Runtime {version} cannot read" in str(lacking)
