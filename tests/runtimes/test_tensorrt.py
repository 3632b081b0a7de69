"""Engines really built by TensorRT for RTX, which needs no GPU for that, and what needs one."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torchvision
from onnx import ModelProto
from sshd import PYTHON, SSHD, Sshd
from torch import Tensor, nn

from bcnet.agent import cuda as agent_cuda
from bcnet.agent import tensorrt_engine
from bcnet.agent.cuda import cuda
from bcnet.agent.errors import JobError
from bcnet.agent.tensorrt_module import api_of
from bcnet.errors import DeviceError, NetworkError
from bcnet.onnx_export.fp16 import to_fp16
from bcnet.onnx_export.int8 import quantized
from bcnet.onnx_export.onnx_supernet import OnnxSupernet, to_onnx
from bcnet.onnx_export.opset import at_opset
from bcnet.onnx_export.preprocess import Preprocessing
from bcnet.runtimes import runtime_on
from bcnet.runtimes.device import LocalDevice
from bcnet.runtimes.onnx_batch import with_free_batch
from bcnet.runtimes.onnxruntime import OnnxRuntime
from bcnet.runtimes.ssh import SshDevice
from bcnet.runtimes.tensorrt import TensorRt, is_engine
from bcnet.space.discover import discover_space

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is for Linux on x86-64")

SHAPE = (1, 3, 64, 64)
FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "resnet": torchvision.models.resnet18,
    "mobilenet": torchvision.models.mobilenet_v2,
    "efficientnet": torchvision.models.efficientnet_b0,
    "shufflenet": torchvision.models.shufflenet_v2_x0_5,
    "segmentation": lambda: torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None
    ),
}


class Tiny(nn.Module):
    """Two convolutions, a mean, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3, 2), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))
        return y


@cache
def network(family: str) -> ModelProto:
    torch.manual_seed(0)
    return to_onnx((Tiny if family == "tiny" else FAMILIES[family])().eval(), SHAPE)


def content(proto: ModelProto) -> bytes:
    return bytes(proto.SerializeToString())


def noise(count: int = 1) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, *SHAPE[1:]), dtype=np.float32)


def builder(precision: str = "fp32", compute_capability: str | None = "8.9") -> TensorRt:
    return TensorRt(LocalDevice(), "tensorrt-rtx", precision, compute_capability)


def no_gpu() -> str | None:
    """Why nothing runs on a GPU here; None where something does."""
    try:
        cuda()
    except JobError as reason:
        return reason.message
    return None


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Engines are kept in a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "bcnet" / "tensorrt-rtx"


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(own, marks=() if own in ("mobilenet", "segmentation") else pytest.mark.slow)
        for own in FAMILIES
    ],
)
def test_engines_of_five_families_are_built_at_fp32_and_fp16_for_one_batch_and_several(family: str) -> None:
    floats = network(family)
    sizes = {}
    for precision, proto in (("fp32", floats), ("fp16", to_fp16(floats))):
        for batches in ((), (1, 2, 4)):
            engine = builder(precision).build(content(proto), batches)
            assert is_engine(engine.content)
            sizes[precision, batches] = len(engine.content)
            assert engine.info["flavour"] == "tensorrt-rtx"
            assert engine.info["versions"] == {"tensorrt-rtx": trt.__version__}
            assert engine.info["compute_capability"] == "8.9"
            assert (engine.info["precision"], engine.info["batches"]) == (precision, list(batches))
            if no_gpu():  # the builder's own list: each convolution stands in it under its node's name
                told = " ".join(layer["Metadata"] for layer in engine.info["layers"])
                names = set(re.findall(r"\[ONNX Layer: ([^\]]*)\]", told))
                assert {node.name for node in proto.graph.node if node.op_type == "Conv"} <= names
    assert sizes["fp16", ()] < 0.7 * sizes["fp32", ()]


def test_an_int8_engine_is_built_from_signed_integers() -> None:
    proto = quantized(network("resnet"), [{"input": noise()}], unsigned=False)
    engine = builder("int8").build(content(proto))
    assert len(engine.content) < 0.5 * len(builder().build(content(network("resnet"))).content)


@pytest.mark.parametrize("family", ["segmentation", pytest.param("shufflenet", marks=pytest.mark.slow)])
def test_files_of_opset_17_are_built_too(family: str) -> None:
    assert is_engine(builder("fp16").build(content(to_fp16(at_opset(network(family), 17))), (1, 4)).content)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_images_are_scaled_in_an_engine_by_matrices_because_tensorrt_has_no_antialiasing(
    precision: str,
) -> None:
    proto = network("tiny") if precision == "fp32" else to_fp16(network("tiny"))
    own = Preprocessing((120, 160), 64, (0.5,) * 3, (0.25,) * 3, by_operator=False)
    taking_any = onnx.load_from_string(with_free_batch(content(proto)))
    for taking, batches in ((proto, ()), (taking_any, (1, 2, 4))):
        assert is_engine(builder(precision).build(content(own.before(taking)), batches).content)
    with pytest.raises(NetworkError, match="Antialiasing is not supported"):
        builder(precision).build(content(replace(own, by_operator=True).before(proto)))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_narrow_networks_sliced_from_a_supernets_file_are_built(precision: str) -> None:
    model = Tiny().eval()
    space = discover_space(model, torch.zeros(SHAPE), bins=3, min_width=0.4)
    graph = OnnxSupernet(model, space, SHAPE, precision, unsigned=False, opset=17)
    sizes = [
        len(builder(precision).build(graph.variant(widths)).content)
        for widths in (graph.space.smallest(), graph.space.largest())
    ]
    assert sizes[0] < sizes[1]


def test_an_engine_is_built_once_for_all_jobs_of_a_network(cache_folder: Path) -> None:
    file = content(network("tiny"))
    first = builder().build(file)
    (kept,) = cache_folder.glob("*.engine")
    assert kept.read_bytes() == first.content
    kept.write_bytes(first.content + b"kept")
    again = builder().build(file)
    assert again.content == first.content + b"kept"
    assert again.info == first.info
    for other in (builder(compute_capability="8.6").build(file), builder().build(file, (1, 2))):
        assert not other.content.endswith(b"kept")


@pytest.mark.skipif(SSHD is None, reason="needs sshd (Debian: openssh-server)")
def test_an_engine_is_built_over_ssh_and_kept_there(sshd: Sshd, tmp_path: Path) -> None:
    there = tmp_path / "there"
    device = SshDevice("device", python=PYTHON, folder=str(there), patience_s=20)
    try:
        engine = TensorRt(device, "tensorrt-rtx", "fp32", "8.9").build(content(network("tiny")), (1, 4))
        with pytest.raises(NetworkError, match="Failed to parse the ONNX model"):
            TensorRt(device, "tensorrt-rtx", "fp32", "8.9").build(b"no ONNX file")
    finally:
        device.close()
    assert is_engine(engine.content)
    (kept,) = (there / "cache" / "bcnet" / "tensorrt-rtx").glob("*.engine")
    assert kept.read_bytes() == engine.content


def test_an_engine_that_cannot_be_kept_is_built_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert is_engine(builder().build(content(network("tiny"))).content)


def test_a_file_that_is_no_onnx_is_refused_in_tensorrts_words() -> None:
    with pytest.raises(NetworkError, match=r"cannot read the network: .*Failed to parse the ONNX model"):
        builder().build(content(network("tiny"))[:1000])


def test_a_network_with_a_missing_weight_is_refused_in_tensorrts_words() -> None:
    proto = ModelProto()
    proto.CopyFrom(network("tiny"))
    proto.graph.node[0].input[1] = "nowhere"
    with pytest.raises(NetworkError, match=r"parsing node number 0 \[Conv.*Node input was not registered"):
        builder().build(content(proto))


def test_an_unknown_operator_is_refused_in_tensorrts_words() -> None:
    proto = ModelProto()
    proto.CopyFrom(network("tiny"))
    proto.graph.node[1].op_type = "Frobnicate"
    with pytest.raises(NetworkError, match=r"node number 1 \[Frobnicate .*Plugin not found") as caught:
        builder().build(content(proto))
    assert "\n" not in str(caught.value)


def test_a_dynamic_network_without_sizes_is_refused_in_tensorrts_words() -> None:
    with pytest.raises(NetworkError, match=r"dynamic or shape inputs, but no optimization profile"):
        builder().build(with_free_batch(content(network("tiny"))))


def test_a_gpu_that_rtx_does_not_build_for_is_refused_with_those_that_it_does() -> None:
    with pytest.raises(DeviceError, match=r"builds for SM75, .*SM89, .*not for SM87: build on the device"):
        builder(compute_capability="8.7").build(content(network("tiny")))


def test_an_engine_of_the_other_flavour_is_never_loaded() -> None:
    engine = builder().build(content(network("tiny"))).content
    other = TensorRt(LocalDevice(), "tensorrt")
    for use in (
        lambda: other.time_network(engine, 0, 0.01, 2),
        lambda: other.profile_nodes(engine, 2),
        lambda: other.predictor(engine),
    ):
        with pytest.raises(NetworkError, match="built by TensorRT for RTX; TensorRT cannot read it"):
            use()
    with pytest.raises(NetworkError, match="built by TensorRT; TensorRT for RTX cannot read it"):
        builder().predictor(b"ftrt" + engine[4:])
    with pytest.raises(NetworkError, match="already an engine"):
        builder().build(engine)


def test_running_an_engine_needs_a_gpu() -> None:
    file = content(network("tiny"))
    runtime = builder(compute_capability=None)
    engine = runtime.build(file)
    reason = no_gpu()
    if reason is None:
        (found,) = runtime.predictor(engine.content)(noise(3))
        (wanted,) = OnnxRuntime(LocalDevice()).predictor(file)(noise(3))
        assert found == pytest.approx(wanted, abs=1e-2 * float(np.abs(wanted).max()))
        assert (runtime.time_network(engine.content, 1, 0.01, 5) > 0).all()
        assert len(runtime.profile_nodes(engine.content, 5)) > 2
        return
    for use in (
        lambda: runtime.fingerprint(),
        lambda: runtime.time_network(engine.content, 1, 0.01, 5),
        lambda: runtime.profile_nodes(engine.content, 5),
        lambda: runtime.predictor(engine.content)(noise()),
    ):
        with pytest.raises(DeviceError, match=re.escape(reason)):
            use()
    if not Path("/dev/nvidia0").exists():
        assert re.match("there is no NVIDIA driver on this machine|cuInit of the CUDA driver failed", reason)
    assert engine.info["gpu"] is None
    assert reason in engine.info["layers_source"]


def test_the_profiler_is_tensorrts_own_kind() -> None:
    rows: list[tuple[str, float]] = []
    profiler = api_of({"runtime": "tensorrt-rtx"}).profiler(rows)
    assert isinstance(profiler, trt.IProfiler)
    profiler.report_layer_time("conv", 0.5)
    assert rows == [("conv", 0.5)]


@pytest.mark.parametrize("kind", [agent_cuda._PyCuda, agent_cuda._CudaPython])
def test_without_a_driver_neither_way_to_the_gpus_memory_opens(kind: Callable[[], Any]) -> None:
    if no_gpu() is None:
        assert int(agent_cuda._buffers().allocate(16)) > 0
        return
    # It is not installed, or its library is not there, or says itself what is missing.
    with pytest.raises((ImportError, JobError), match=r"(?i)pycuda|libcuda|cuda\.|cudaError"):
        kind()


def test_a_missing_module_is_named_with_what_brings_it() -> None:
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        with pytest.raises(
            DeviceError, match=r"the Python module of TensorRT .*apt install python3-libnvinfer"
        ):
            runtime_on(LocalDevice(), "tensorrt").fingerprint()


def test_a_network_of_any_batch_gives_what_the_fixed_one_gives() -> None:
    file = content(network("segmentation"))
    freed = OnnxRuntime(LocalDevice()).build(file, (1, 2, 8)).content
    shapes = [entry.type.tensor_type.shape for entry in onnx.load_from_string(freed).graph.input]
    assert [shape.dim[0].dim_param for shape in shapes] == ["batch"]
    runtime = OnnxRuntime(LocalDevice())
    (found,), (wanted,) = (runtime.predictor(each)(noise(3)) for each in (freed, file))
    assert found == pytest.approx(wanted, abs=1e-4 * float(np.abs(wanted).max()))
    assert len(runtime.time_network(freed, 0, 0.0, 2)) >= 2
    assert with_free_batch(freed) == freed


class Mixes(nn.Module):
    """Adds up the items of a batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.sum(0, keepdim=True)


def test_a_network_whose_items_mix_is_not_made_one_of_any_batch() -> None:
    with pytest.raises(
        NetworkError, match="cannot be made dynamic: output 0 of an image depends on the other"
    ):
        with_free_batch(content(to_onnx(Mixes().eval(), (1, 3, 4, 4))))


def test_onnx_runtime_builds_nothing_and_loads_the_file_as_a_check() -> None:
    runtime, file = OnnxRuntime(LocalDevice()), content(network("tiny"))
    engine = runtime.build(file)
    assert engine.content == file
    assert engine.info["flavour"] == "onnxruntime"
    with pytest.raises(NetworkError, match="cannot load the network"):
        runtime.build(file[:1000])


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ({"EXPLICIT_BATCH": 0}, 1),  # 8.5, 8.6
        ({"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, 3),  # 10
        ({"STRONGLY_TYPED": 0}, 1),  # a version that has moved the bit
    ],
)
def test_flags_are_looked_up_by_name(flags: dict[str, int], wanted: int) -> None:
    kind = type("Flags", (), flags)
    assert tensorrt_engine._bits(kind, "STRONGLY_TYPED", "EXPLICIT_BATCH") == wanted


class Answers:
    """A device that tells one fingerprint."""

    workers = 1

    def __init__(self, **found: Any) -> None:
        self.found = {"processor": "Orin", "compute_capability": "8.7", "power_mode": "15W", **found}

    def call(self, job: Any, limit_s: float) -> dict[str, Any]:
        return {"missing": None} if job["do"] == "missing" else {"fingerprint": self.found}


def test_another_gpu_or_power_mode_than_the_profiles_is_refused() -> None:
    def at(**settings: Any) -> dict[str, str]:
        return runtime_on(Answers(), "tensorrt", **settings).fingerprint()

    assert at(compute_capability="8.7", power_mode="15W")["power_mode"] == "15W"
    assert at(power_mode="MODE_15W") == at()
    with pytest.raises(
        DeviceError, match=r"the GPU Orin has compute capability 8.7, the hardware profile 7.2"
    ):
        at(compute_capability="7.2")
    with pytest.raises(DeviceError, match=r"power mode is 15W, the hardware profile says MAXN"):
        at(power_mode="MAXN")
