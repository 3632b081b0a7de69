"""What a GPU's jobs do with CUDA and TensorRT, in which order, played through without either.

No GPU was available where this was written. A stand-in for both doubles its input, on this machine's memory;
it refuses what TensorRT's documentation says is refused. What it cannot show is that the real ones agree.
"""

import ctypes
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from bcnet.agent import cuda as agent_cuda
from bcnet.agent import look, tensorrt_engine, tensorrt_jobs, tensorrt_module, tensorrt_network
from bcnet.errors import NetworkError
from bcnet.runtimes.device import LocalDevice
from bcnet.runtimes.tensorrt import TensorRt

ENGINE = b"ftrt, says the stand-in"
LAYERS = [("conv1", 0.5), ("Reformatting CopyNode for Input Tensor 0 to fc", 0.125), ("__myl_Fc_0", 0.25)]
MADE_OF = {"Layers": [{"Name": "__myl_Fc_0", "Metadata": "[ONNX Layer: fc]\x1e[ONNX Layer: relu]"}, "conv1"]}


class Gpu:
    """Memory of this machine; a stream that does at once what it is given, or keeps it while it captures."""

    through = "stand-in"
    stream = ctypes.c_void_p(7)

    def __init__(self) -> None:
        self.events = [([0.0], [0.0]), ([0.0], [0.0])]
        self.clock_ms = 0.0
        self.recorded: list[Callable[[], None]] | None = None
        self.refuses_capture = False
        self.launches = 0

    def facts(self) -> dict[str, str]:
        found = {"name": "Orin", "address": "0", "compute_capability": "8.7", "cuda_driver": "12.6"}
        return {**found, "cache_mb": "4.194"}

    def buffer(self, size_bytes: int) -> "Buffer":
        memory = ctypes.create_string_buffer(size_bytes)
        found = Buffer(ctypes.addressof(memory))
        found.memory = memory
        return found

    def write(self, buffer: "Buffer", array: np.ndarray) -> None:
        assert array.flags.c_contiguous
        assert array.nbytes <= len(buffer.memory)
        ctypes.memmove(buffer, array.tobytes(), array.nbytes)

    def read(self, array: np.ndarray, buffer: "Buffer") -> None:
        array[...] = np.frombuffer(buffer.memory, array.dtype, array.size).reshape(array.shape)

    def synchronize(self) -> None:
        assert self.recorded is None

    def record(self, event: list[float]) -> None:
        event[0] = self.clock_ms

    def elapsed_ms(self, start: list[float], end: list[float]) -> float:
        return end[0] - start[0]

    def do(self, work: Callable[[], None]) -> None:
        if self.recorded is None:
            work()
        else:
            self.recorded.append(work)

    def captured(self, enqueue: Callable[[], bool]) -> Callable[[], None] | None:
        self.recorded = []
        done = enqueue()
        work, self.recorded = self.recorded, None
        if not done or self.refuses_capture:
            return None

        def launch() -> None:
            self.launches += 1
            for step in work:
                step()

        return launch


class Buffer(int):
    """An address, with the memory that is there."""

    memory: Any


class Context:
    """Executes: output = 2 * input, of float32, for a batch of at most 4."""

    def __init__(self, gpu: Gpu, dynamic: bool) -> None:
        self.gpu, self.dynamic = gpu, dynamic
        self.batch = -1 if dynamic else 4
        self.addresses: dict[str, int] = {}
        self.profiler: Any = None
        self.enqueue_emits_profile = True
        self.unreported = 0
        self.runs = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert (self.dynamic, name, shape[1:]) == (True, "input", (3,))
        self.batch = shape[0]
        return 2 <= self.batch <= 4

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.batch, 3)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7
        if self.batch < 0 or len(self.addresses) < 2:
            return False
        self.gpu.do(self._work)
        return True

    def _work(self) -> None:
        size = self.batch * 3
        source, target = (
            np.ctypeslib.as_array((ctypes.c_float * size).from_address(self.addresses[name]))
            for name in ("input", "output")
        )
        target[:] = 2 * source
        self.gpu.clock_ms += 1.5
        self.runs += 1
        self.unreported = 1

    def report_to_profiler(self) -> bool:
        if self.profiler is None or self.enqueue_emits_profile or not self.unreported:
            return False
        self.unreported = 0
        for name, ms in LAYERS:
            self.profiler.report_layer_time(name, ms)
        return True


class Module(ModuleType):
    """`tensorrt`, as much of it as the jobs use."""

    __version__ = "10.3.0"

    def __init__(self, gpu: Gpu, dynamic: bool) -> None:
        super().__init__("tensorrt")
        module = self
        self.contexts: list[Context] = []
        self.ILogger = type("ILogger", (), {"ERROR": 1, "INTERNAL_ERROR": 0})
        self.IProfiler = type("IProfiler", (), {})
        self.TensorIOMode = SimpleNamespace(INPUT=1, OUTPUT=2)
        self.LayerInformationFormat = SimpleNamespace(JSON=1)
        sides = (-1, 3) if dynamic else (4, 3)

        class Engine:
            num_io_tensors = 2
            get_tensor_name = staticmethod(["input", "output"].__getitem__)
            get_tensor_shape = staticmethod(lambda name: sides)
            get_tensor_dtype = staticmethod(lambda name: "DataType.FLOAT")
            get_tensor_mode = staticmethod(lambda name: 1 if name == "input" else 2)
            get_tensor_profile_shape = staticmethod(lambda name, index: [(2, 3), (3, 3), (4, 3)])

            def create_execution_context(self) -> Context:
                module.contexts.append(Context(gpu, dynamic))
                return module.contexts[-1]

            def create_engine_inspector(self) -> Any:
                return SimpleNamespace(get_engine_information=lambda form: json.dumps(MADE_OF))

        class Runtime:
            def __init__(self, log: Any) -> None:
                self.log = log

            def deserialize_cuda_engine(self, content: bytes) -> Engine | None:
                if content == ENGINE:
                    return Engine()
                self.log.log(1, "Error Code 1: Serialization\n(Magic tag does not match)")
                return None

        self.Runtime = Runtime


@pytest.fixture
def gpu() -> Gpu:
    return Gpu()


@pytest.fixture(params=["static", "dynamic"])
def module(request: pytest.FixtureRequest, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> Module:
    """A GPU and TensorRT that are stood in for."""
    found = Module(gpu, request.param == "dynamic")
    monkeypatch.setitem(sys.modules, "tensorrt", found)
    monkeypatch.setattr(tensorrt_module, "_apis", {})
    for user in (tensorrt_jobs, tensorrt_network, tensorrt_engine):
        monkeypatch.setattr(user, "cuda", lambda: gpu)
    return found


def runtime(**settings: Any) -> TensorRt:
    return TensorRt(LocalDevice(), "tensorrt", **settings)


def test_batches_of_any_number_are_padded_and_outputs_are_of_the_items_alone(module: Module) -> None:
    predict = runtime().predictor(ENGINE)
    for count in (1, 3, 4, 11):
        values = np.random.default_rng(count).standard_normal((count, 3), dtype=np.float32)
        (found,) = predict(values)
        np.testing.assert_array_equal(found, 2 * values)
    with pytest.raises(NetworkError, match="the engine has inputs input; 2 were given"):
        predict(values, values)
    with pytest.raises(NetworkError, match=r"'input' needs shape \(\d, 3\), not \(\d, 5\)"):
        predict(np.zeros((2, 5), np.float32))


def test_times_are_those_between_events_around_one_graph(module: Module, gpu: Gpu) -> None:
    samples = runtime().time_network(ENGINE, 1.0, 0.01, 20)
    assert len(samples) >= 20
    assert set(samples) == {1.5}
    (context,) = module.contexts
    assert context.runs == gpu.launches + 1  # once before it was captured
    assert context.batch == (3 if context.dynamic else 4)  # the usual one


def test_an_application_copies_inputs_and_outputs_of_each_inference_and_launches_no_graph(
    module: Module, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    for name in ("write", "synchronize", "read"):
        real = getattr(gpu, name)
        monkeypatch.setattr(gpu, name, lambda *ends, n=name, real=real: (order.append(n), real(*ends))[1])
    samples = runtime().time_network(ENGINE, 0.0, 0.0, 5, application=True)
    (context,) = module.contexts
    assert len(samples) == 5
    assert (samples > 0).all()
    assert (gpu.launches, context.runs) == (0, 6)  # one is the warm-up
    assert order == ["write", *["write", "synchronize", "read"] * 6]  # before, the inputs are filled


def test_a_dynamic_engine_is_timed_at_the_batch_of_the_profile(module: Module) -> None:
    runtime(batch=2).time_network(ENGINE, 0.0, 0.0, 2)
    assert module.contexts[-1].batch == (2 if module.contexts[-1].dynamic else 4)


def test_work_that_cannot_be_captured_has_no_time(module: Module, gpu: Gpu) -> None:
    gpu.refuses_capture = True
    with pytest.raises(NetworkError, match="cannot be captured in a CUDA graph"):
        runtime().time_network(ENGINE, 0.0, 0.0, 2)


@pytest.mark.parametrize("capture", [True, False])
def test_a_profile_has_a_row_a_layer_and_the_nodes_that_it_was_made_of(
    module: Module, gpu: Gpu, capture: bool
) -> None:
    gpu.refuses_capture = not capture
    found = runtime().profile_nodes(ENGINE, 6)
    assert [name for name, _ in found] == [
        "conv1",
        "Reformatting CopyNode for Input Tensor 0 to fc",
        "__myl_Fc_0 [ONNX Layer: fc] [ONNX Layer: relu]",
    ]
    assert [durations.tolist() for _, durations in found] == [[0.5] * 6, [0.125] * 6, [0.25] * 6]
    assert bool(gpu.launches) == capture


def test_an_engine_that_cannot_be_loaded_is_told_in_tensorrts_words(module: Module) -> None:
    with pytest.raises(
        NetworkError, match=r"cannot load the engine: Error Code 1: Serialization \(Magic tag"
    ):
        runtime().time_network(b"ftrt of another version", 0.0, 0.0, 2)


def test_a_fingerprint_has_what_latency_depends_on(module: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "power_mode", lambda: "15W")
    monkeypatch.setattr(tensorrt_jobs, "_clocks", lambda address: "306 to 625 MHz")
    found = runtime(compute_capability="8.7", power_mode="15W").fingerprint()
    assert found == {
        "runtime_version": "10.3.0",
        "processor": "Orin",
        "compute_capability": "8.7",
        "cuda_driver": "12.6",
        "through": "stand-in",
        "power_mode": "15W",
        "cache_mb": "4.194",
        "gpu_clocks": "306 to 625 MHz",
    }


class Driver:
    """CUDA's driver, as much of it as tells what the GPU is; every function returns 0, which is success."""

    attributes: ClassVar = {75: 8, 76: 7, 38: 4 * 2**20}  # as cuda.h numbers them

    def cuDeviceGetAttribute(self, value: Any, number: int, device: Any) -> int:
        value._obj.value = self.attributes[number]
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = b"Orin"
        return 0

    def cuDeviceGetPCIBusId(self, name: Any, size: int, device: Any) -> int:
        name.value = b"0000:00:00.0"
        return 0

    def cuDriverGetVersion(self, value: Any) -> int:
        value._obj.value = 12060
        return 0

    def __getattr__(self, name: str) -> Callable[..., int]:
        return lambda *arguments: 0


@pytest.mark.parametrize(("size_bytes", "cache"), [(4 * 2**20, {"cache_mb": "4.194"}), (0, {})])
def test_the_driver_tells_what_the_gpu_is_and_its_cache(
    monkeypatch: pytest.MonkeyPatch, size_bytes: int, cache: dict[str, str]
) -> None:
    monkeypatch.setattr(agent_cuda.ctypes, "CDLL", lambda name: Driver())
    monkeypatch.setattr(agent_cuda, "_buffers", lambda: SimpleNamespace(name="stand-in"))
    monkeypatch.setitem(Driver.attributes, 38, size_bytes)
    assert agent_cuda.Cuda().facts() == {
        "name": "Orin",
        "address": "0000:00:00.0",
        "compute_capability": "8.7",
        "cuda_driver": "12.6",
        **cache,
    }


@pytest.mark.parametrize(
    ("named", "processor"),
    [
        ("NVIDIA Jetson Orin Nano Developer Kit", "NVIDIA Jetson Orin Nano Developer Kit"),
        ("Jetson-AGX", "Jetson-AGX"),  # JetPack 4 on an AGX Xavier
        ("Some other board with a GPU in a slot", "Orin"),
    ],
)
def test_a_jetson_is_called_by_its_board_and_other_machines_by_their_gpu(
    module: Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, processor: str
) -> None:
    (tmp_path / "model").write_text(named + "\0", encoding="utf-8")
    monkeypatch.setattr(look, "DEVICE_TREE", tmp_path / "model")
    assert runtime().fingerprint()["processor"] == processor
