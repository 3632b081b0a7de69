"""OpenVINO as a runtime: outputs, times, layers by its counters, precisions, and what is refused."""

import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from sshd import PYTHON, SSHD, Sshd
from torch import Tensor, nn

from bcnet.agent import openvino_jobs
from bcnet.agent.openvino_graph import Layer, executed, row_names
from bcnet.agent.openvino_profile import means_ms, readings_at
from bcnet.errors import DeviceError, NetworkError
from bcnet.hw_profiles import load_profile
from bcnet.measure.layer_attribution import layers_ms
from bcnet.measure.layer_names import LayerName, layer_names
from bcnet.onnx_export.onnx_supernet import OnnxSupernet, to_onnx
from bcnet.runtimes.device import LocalDevice
from bcnet.runtimes.openvino import OpenVino
from bcnet.runtimes.replay import Recorded, Recording
from bcnet.runtimes.ssh import SshDevice
from bcnet.space.discover import discover_space

pytest.importorskip("openvino", reason="needs OpenVINO: pip install openvino")

RUNTIME = OpenVino(LocalDevice())
SETTINGS = {"provider": "cpu", "threads": 1, "precision": "fp32"}


class Residual(nn.Module):
    """Two convolutions with a sum, a depthwise one behind them, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.inner = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32))
        self.depthwise = nn.Conv2d(32, 32, 3, groups=32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (self.inner(x) + x).relu()
        return self.head(nn.functional.hardtanh(self.depthwise(x), 0, 6).mean((2, 3)))


@cache
def network() -> nn.Module:
    torch.manual_seed(0)
    return Residual().eval()


@cache
def file(batch: int = 1) -> bytes:
    return bytes(to_onnx(network(), (batch, 3, 32, 32)).SerializeToString())


def one_node(operator: str, domain: str = "") -> bytes:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 5]) for name in ("x", "y")]
    node = helper.make_node(operator, ["x"], ["y"], name="node", domain=domain)
    graph = helper.make_graph([node], "one", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("my.domain", 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


@pytest.mark.parametrize("batch", [1, 2])
def test_outputs_are_those_of_pytorch_for_any_number_of_images(batch: int) -> None:
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32), dtype=np.float32)
    with torch.no_grad():
        expected = network()(torch.from_numpy(images)).numpy()
    (found,) = RUNTIME.predictor(file(batch))(images)
    assert found.dtype == np.float32
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_dynamic_batch_is_run_in_parts() -> None:
    engine = RUNTIME.build(file(), [1, 4])
    assert engine.info["flavour"] == "openvino"
    images = np.random.default_rng(0).standard_normal((70, 3, 32, 32), dtype=np.float32)
    (found,) = RUNTIME.predictor(engine.content)(images)
    assert found.shape == (70, 10)
    assert found[[0, 69]] == pytest.approx(RUNTIME.predictor(file())(images[[0, 69]])[0], abs=1e-5)


def test_a_network_is_run_by_one_stream_and_one_thread_in_float32() -> None:
    """A processor with bfloat16 would otherwise be given it, and outputs would be off by a percent."""
    compiled = openvino_jobs.load(file(), SETTINGS)
    wanted = {
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": 1,
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "<Type: 'float32'>",
    }
    assert {key: compiled.get_property(key) for key in wanted if "HINT" not in key} == {
        key: value for key, value in wanted.items() if "HINT" not in key
    }
    assert str(compiled.get_property("INFERENCE_PRECISION_HINT")) == wanted["INFERENCE_PRECISION_HINT"]
    assert {layer.precision for layer in executed(compiled)} == {"f32"}


def test_a_layer_in_fewer_bits_than_the_file_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lower = Layer("conv", "Convolution", ["conv", "relu"], "brgconv_avx512_bf16", "bf16", "")
    monkeypatch.setattr(openvino_jobs, "executed", lambda compiled: [lower])
    with pytest.raises(DeviceError, match=r"^OpenVINO computes 'conv \+ relu' in bf16, not in fp32: "):
        RUNTIME.time_network(file(), 0, 0.01, 2)
    assert len(OpenVino(LocalDevice(), precision="int8").time_network(file(), 0, 0, 2)) == 2


@pytest.mark.parametrize("application", [False, True])
def test_times_are_positive_and_as_many_as_were_asked_for(application: bool) -> None:
    samples = RUNTIME.time_network(file(), 1.0, 0.0, 7, application=application)
    assert len(samples) == 7
    assert (samples > 0).all()


def test_layers_have_the_names_of_the_files_nodes_in_their_order() -> None:
    content = file()
    rows = RUNTIME.profile_nodes(content, 60)
    assert {len(durations) for _, durations in rows} == {len(readings_at(60)) - 1}
    names = layer_names(onnx.load_from_string(content).graph, [name for name, _ in rows])
    ms = {own.name: float(durations.min()) for own, (_, durations) in zip(names, rows, strict=True)}
    kinds = {own.name: own.kind for own in names}
    assert [name for name, kind in kinds.items() if "Conv" in kind] == ["stem", "inner.0", "depthwise"]
    assert (kinds["stem"], kinds["depthwise"]) == ("Conv+Relu", "Conv+Clip")
    assert max(ms, key=ms.__getitem__) == "inner.0"  # eleven times the operations of any other
    whole = float(np.median(RUNTIME.time_network(content, 5, 0.05, 20)))
    assert 0.3 * whole < sum(durations.min() for _, durations in rows) < 3 * whole


def test_a_change_of_memory_layout_is_named_after_the_layer_that_needs_it() -> None:
    conv = Layer("conv", "Convolution", ["conv", "relu"], "", "f32", "out")
    first = Layer("in_to_view", "Reorder", [], "", "f32", "view_to_conv")
    second = Layer("view_to_conv", "Reorder", [], "", "f32", "conv")
    last = Layer("conv_to_out", "Reorder", [], "", "f32", "out")
    names = row_names([first, second, conv, last])
    assert names == ["Reorder (conv)", "Reorder (conv)", "conv + relu", "Reorder (conv_to_out)"]
    nodes = [
        "Convert_12",
        "Subtract_13_0",
        "relu_QuantizeLinear",
        "prelu",
    ]  # two are not of the file
    rounded = Layer("Subtract_13_0", "Subgraph", nodes, "", "u8", "out")
    assert row_names([Layer("a", "Reorder", [], "", "u8", rounded.name), rounded])[0] == (
        "Reorder (relu_QuantizeLinear)"
    )
    assert layer_names(None, names[:1]) == [LayerName("Reorder (conv)", "memory layout")]


def test_every_layer_of_a_network_gets_its_time() -> None:
    profile = load_profile("cpu-openvino")
    space = discover_space(network(), torch.zeros(1, 3, 32, 32), bins=3, channel_multiple=8)
    graph = OnnxSupernet(network(), space, (1, 3, 32, 32))
    for widths in (space.smallest(), space.largest()):
        times = layers_ms(graph, widths, graph.variant(widths), profile, 12)
        assert times.shape == (len(graph.slots), 2)
        convolutions = [k for k, slot in enumerate(graph.slots) if slot.template.op == "Conv"]
        assert len(convolutions) == 3
    assert (times[convolutions[:2]] > 0).all()


def test_parts_of_the_runs_are_as_long_as_all_before_them() -> None:
    assert readings_at(60) == [3, 6, 12, 24, 63]
    assert readings_at(12) == [3, 6, 15]
    assert readings_at(2) == [3, 5]


def test_means_of_parts_are_recovered_from_counters_that_are_rounded_down() -> None:
    rng = np.random.default_rng(0)
    runs = rng.uniform([4, 90, 0.1], [6, 110, 0.4], (63, 3))
    runs[:3] *= 5  # the first runs, which do not count
    ends, sums = readings_at(60), np.cumsum(np.floor(runs), 0)
    readings = [(sums[end - 1] // end).astype(int).tolist() for end in ends]
    found = np.array(means_ms(ends, readings)) * 1000
    for part, (start, end) in enumerate(pairwise(ends)):
        assert np.abs(found[part, :2] - runs[start:end, :2].mean(0)).max() < 2.0
    assert np.abs(found[-1, :2] - runs[24:, :2].mean(0)).max() < 1.0
    assert found[:, 2].tolist() == [0, 0, 0, 0]


def test_counters_of_other_devices_are_those_of_single_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from bcnet.agent import openvino_profile

    clock = iter(range(100, 200))
    layer = Layer("conv", "Convolution", ["conv"], "", "f16", "")
    monkeypatch.setattr(openvino_profile, "executed", lambda compiled: [layer])
    entry = SimpleNamespace(
        node_name="conv", real_time=SimpleNamespace(total_seconds=lambda: next(clock) / 1e6)
    )
    request = SimpleNamespace(get_profiling_info=lambda: [entry])
    found = openvino_profile.profiled(None, request, lambda: None, False, 2)
    assert found == {"names": ["conv"], "ms": [[0.101], [0.102]]}


def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(DeviceError, match=r"^OpenVINO has no device 'NOSUCH' on this machine, only .*CPU"):
        OpenVino(LocalDevice(), "nosuch").fingerprint()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (one_node("Nonsense"), "it has no operator Nonsense-18"),
        (one_node("Foo", "my.domain"), "it has no operator my.domain.Foo"),
        (b"garbage", "Unable to read the model."),
    ],
)
def test_a_network_that_it_cannot_read_is_an_error_of_one_line(
    content: bytes, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NetworkError, match=r"^OpenVINO cannot read the network: ") as caught:
        RUNTIME.profile_nodes(content, 2)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_without_openvino_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_jobs, "_cores", [])
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(DeviceError, match=r'pip install "bcnet\[openvino\]"$'):
        RUNTIME.fingerprint()
    job: dict[str, Any] = {"do": "missing", "runtime": "openvino", "settings": SETTINGS}
    assert "OpenVINO is missing" in LocalDevice().call(job, 1.0)["missing"]


@pytest.mark.skipif(SSHD is None, reason="needs sshd (Debian: openssh-server)")
def test_it_runs_over_ssh_and_its_answers_are_replayed_from_a_recording(sshd: Sshd, tmp_path: Path) -> None:
    device = SshDevice("device", python=PYTHON, folder=str(tmp_path / "there"))
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)
    recording = tmp_path / "answers.jsonl"
    try:
        far = OpenVino(Recording(device, recording))
        assert far.fingerprint() == RUNTIME.fingerprint()
        assert np.array_equal(far.predictor(file())(images)[0], RUNTIME.predictor(file())(images)[0])
        rows = far.profile_nodes(file(), 12)
    finally:
        device.close()
    again = OpenVino(Recorded(recording)).profile_nodes(file(), 12)
    assert [name for name, _ in again] == [name for name, _ in rows]
    assert all(np.array_equal(own, other) for (_, own), (_, other) in zip(again, rows, strict=True))
