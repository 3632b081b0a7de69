"""PyTorch on an NVIDIA GPU, named "torch-cuda" in results, for GPUs without TensorRT.

In: ONNX files. Out: latencies of whole networks in a CUDA graph, of each node in its own graph, and outputs.
"""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bcnet.agent.arrays import batches as batches_of
from bcnet.agent.timing import timed
from bcnet.errors import DeviceError, NetworkError, one_line
from bcnet.runtimes.engine import Engine
from bcnet.runtimes.onnx_torch import Step, TorchNetwork, channels_last, load_network

NAME = "torch-cuda"
WARMUP_RUNS = 3  # before a capture: loads libraries, selects kernels, allocates workspaces
REPLAY_MS = 0.1  # a node is repeated in its graph to take about this time, which amortises the graph launch
MOST_COPIES = 32
PROBE_SIDE = 2048  # a product has 17 * 10^9 operations
PROBE_BYTES = 128 * 2**20  # more than the level-2 cache of current GPUs
PROBE_REPEATS = 9
SMI_FIELDS = {
    "driver_version": "driver",
    "clocks.max.sm": "max_sm_clock",
    "clocks.max.memory": "max_memory_clock",
    "power.limit": "power_limit",
}

cuda: Any = torch.cuda  # parts of it are not typed
cudnn: Any = torch.backends.cudnn

Work = Callable[[], object]


@dataclass(frozen=True)
class _Captured:
    """A CUDA graph, and the work from which it was captured.

    The graph has only the addresses of weights and inputs; the work holds references, which keep them
    allocated.
    """

    graph: Any
    work: Work

    def __call__(self) -> None:
        self.graph.replay()


@dataclass(frozen=True)
class _Whole:
    """A whole network as one graph: each replay reads the same `inputs`, and writes the same `outputs`."""

    inputs: list[Tensor]
    outputs: list[Tensor]
    replay: Work

    def run(self, arrays: Sequence[np.ndarray]) -> list[Tensor]:
        """The outputs for these inputs, which are valid until the next replay."""
        for place, array in zip(self.inputs, arrays, strict=True):
            place.copy_(torch.from_numpy(array))
        self.replay()
        return self.outputs


@dataclass(frozen=True)
class TorchCuda:
    """PyTorch on the first visible GPU of this machine, in this process.

    Images and weights are channels-last, TF32 is off, and cuDNN selects kernels by its heuristics, so that a
    layer always uses the same kernel. The precision is that of the ONNX file. The GPU must have the compute
    capability if one is given. With `device` "cpu" the same code runs without graphs, timed by the
    processor's clock; this is for tests, and no hardware profile uses it.
    """

    compute_capability: str | None = None
    device: str = "cuda"

    workers = 1

    def fingerprint(self) -> dict[str, str]:
        """Versions of PyTorch, CUDA, cuDNN and driver, TF32, the GPU, and its maximum clocks if known.

        Raises DeviceError if there is no GPU, or its compute capability differs.
        """
        self._check()
        found = {"runtime": NAME, "runtime_version": torch.__version__}
        if self.device == "cpu":
            return {**found, "processor": "none: PyTorch on the CPU, for tests"}
        properties = cuda.get_device_properties(0)
        return {
            **found,
            "processor": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "cuda": str(torch.version.cuda),
            "cudnn": str(cudnn.version()),
            "tf32": "off",  # see `_configured`
            **_smi(f"GPU-{properties.uuid}"),
        }

    def probe(self) -> dict[str, float]:
        """One reading of the GPU's reference microbenchmark, the median ms of each part of nine repetitions.

        `matmul_ms`: a float32 product of two matrices of 2048 x 2048, which measures the clock. `stream_ms`:
        a copy of 128 MiB in the GPU's memory. They replace the parts with the same names of
        `bcnet.agent.probe`, which measures the processor, not the GPU.
        """
        with self._configured():
            side = torch.ones((PROBE_SIDE, PROBE_SIDE), device=self.device)
            product = torch.empty_like(side)
            block = torch.zeros(PROBE_BYTES, dtype=torch.uint8, device=self.device)
            copy = torch.empty_like(block)
            works: list[Work] = [lambda: torch.mm(side, side, out=product), lambda: copy.copy_(block)]
            self._once_ms(works)
            readings = [self._once_ms(works) for _ in range(PROBE_REPEATS)]
        matmul_ms, stream_ms = np.median(readings, 0)
        return {"matmul_ms": float(matmul_ms), "stream_ms": float(stream_ms)}

    def build(self, model: bytes, batches: Sequence[int] = ()) -> Engine:
        """The ONNX file itself, loaded once as a check. Raises DeviceError for a dynamic batch."""
        with self._configured():
            network = load_network(model, torch.device(self.device))
        fixed = next(iter(network.inputs.values()))[0][0]
        if set(batches) - {fixed}:
            raise DeviceError(f"torch-cuda supports only static shapes: omit --batch, or set it to {fixed}")
        info: dict[str, Any] = {
            "flavour": NAME,
            "versions": self.fingerprint(),
            "batches": list(batches),
            "layers": None,
            "layers_source": "PyTorch runs the nodes of the ONNX file one by one",
        }
        return Engine(model, info)

    def time_network(
        self, model: bytes, warmup_ms: float, seconds: float, iterations: int, *, application: bool = False
    ) -> np.ndarray:
        """Milliseconds of each inference between two events, for at least `seconds` and `iterations`.

        The whole network is one CUDA graph. Inputs and outputs stay on the GPU, and each inference ends
        before the next one begins, so the time includes the launch of the graph. An `application` launches
        the same graph, but copies inputs from numpy arrays and outputs to them; the time is the processor's.
        """
        with self._configured():
            network = self._whole(model)
            if application:
                arrays = [tensor.cpu().numpy() for tensor in network.inputs]

                def infer(fresh: list[np.ndarray]) -> None:
                    for output in network.run(fresh):
                        output.cpu()

                return np.array(
                    timed(infer, lambda: [a.copy() for a in arrays], warmup_ms, seconds, iterations)
                )
            end = time.perf_counter() + warmup_ms / 1000
            self._once_ms([network.replay])
            while time.perf_counter() < end:
                self._once_ms([network.replay])
            samples: list[float] = []
            end = time.perf_counter() + seconds
            while len(samples) < iterations or time.perf_counter() < end:
                samples += self._once_ms([network.replay])
            return np.array(samples)

    def profile_nodes(self, model: bytes, runs: int) -> list[tuple[str, np.ndarray]]:
        """Names of the file's nodes in order, with their milliseconds in each run, each timed in isolation.

        PyTorch does not fuse nodes, so a node uses the same kernels in isolation and in the network. Each
        node has its own graph, with the inputs that it has in the network, repeated up to 32 times; a run
        replays all graphs in turn. In isolation, its weights and inputs are in the GPU's cache, which a
        table's calibration corrects. Nodes that return a view of their input take 0 ms.
        """
        with self._configured():
            network = load_network(model, torch.device(self.device))
            works = self._isolated(network)
            replays = [self._captured(work) for work in works.values()]
            singles = np.min([self._once_ms(replays) for _ in range(WARMUP_RUNS)], 0, initial=np.inf)
            copies = np.clip(np.ceil(REPLAY_MS / np.maximum(singles, 1e-6)), 1, MOST_COPIES).astype(int)
            replays = [
                self._captured(_repeated(work, int(count)))
                for work, count in zip(works.values(), copies, strict=True)
            ]
            for _ in range(WARMUP_RUNS):
                self._once_ms(replays)
            durations = np.array([self._once_ms(replays) for _ in range(runs)]).reshape(runs, len(works))
        found = dict(zip(works, (durations / copies).T, strict=True))
        return [(step.name, found.get(step.name, np.zeros(runs))) for step in network.steps]

    def predictor(self, model: bytes) -> Callable[..., list[np.ndarray]]:
        """A function that runs the network on any number of images, in batches of the file's size.

        It takes one array (N, ...) for each input, and returns all outputs (N, ...), in the file's order.
        """
        with self._configured():
            network = self._whole(model)
        size = network.inputs[0].shape[0]

        def predict(*images: np.ndarray) -> list[np.ndarray]:
            parts = []
            with self._configured():
                for batch, count in batches_of(images, size):
                    outputs = network.run(batch)
                    parts.append([output[:count].cpu().numpy().copy() for output in outputs])
            return [np.concatenate(part) for part in zip(*parts, strict=True)]

        return predict

    def _whole(self, model: bytes) -> _Whole:
        network = load_network(model, torch.device(self.device))
        inputs, outputs = self._constant_inputs(network), list[Tensor]()

        def run() -> None:
            outputs[:] = network(*inputs)

        return _Whole(inputs, outputs, self._captured(run))

    def _check(self) -> None:
        """Raise DeviceError if PyTorch finds no GPU, or its compute capability is not the profile's."""
        if self.device == "cpu":
            return
        if not cuda.is_available():
            built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
            raise DeviceError(
                f"torch finds no CUDA GPU: PyTorch {torch.__version__} is built for {built}; check "
                "`nvidia-smi`, and install a PyTorch for the CUDA of its driver (pytorch.org/get-started)"
            )
        major, minor = cuda.get_device_capability(0)
        capability = f"{major}.{minor}"
        if self.compute_capability not in (None, capability):
            name = cuda.get_device_name(0)
            raise DeviceError(
                f"the GPU {name} has compute capability {capability}, the hardware profile "
                f"{self.compute_capability}: choose the profile of this device"
            )

    @contextmanager
    def _configured(self) -> Iterator[None]:
        """Disable gradients, TF32 and cuDNN's benchmark mode; errors of PyTorch become NetworkErrors."""
        self._check()
        matmul: Any = torch.backends.cuda.matmul
        before = matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.benchmark
        try:
            matmul.fp32_precision = cudnn.conv.fp32_precision = "ieee"
            cudnn.benchmark = False
            with torch.inference_mode():
                yield
        except RuntimeError as cause:  # including out of memory
            raise NetworkError(f"PyTorch cannot run the network: {one_line(cause)}") from None
        finally:
            matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.benchmark = before

    def _constant_inputs(self, network: TorchNetwork) -> list[Tensor]:
        """Noise for the images; zeros for integers, because an index of zero is always valid."""
        rng = np.random.default_rng(0)
        tensors = []
        for shape, kind in network.inputs.values():
            values = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
            tensor = (values if kind.is_floating_point else torch.zeros(shape)).to(self.device, kind)
            tensors.append(channels_last(tensor))
        return tensors

    def _isolated(self, network: TorchNetwork) -> dict[str, Work]:
        """The work of each node on the inputs that it has in the network, without nodes that return views."""
        values = dict(zip(network.inputs, self._constant_inputs(network), strict=True))
        works: dict[str, Work] = {}
        for step in network.steps:
            inputs = {name: values[name] for _, name in step.inputs}
            outputs = step(inputs)
            values.update(zip(step.outputs, outputs, strict=False))
            memory = {tensor.untyped_storage().data_ptr() for tensor in inputs.values()}
            if any(tensor.untyped_storage().data_ptr() not in memory for tensor in outputs):
                works[step.name] = _bound(step, inputs)
        return works

    def _captured(self, work: Work) -> Work:
        """A function that replays the work as one CUDA graph; on the CPU the work itself."""
        if self.device == "cpu":
            return work
        side: Any = cuda.Stream()
        side.wait_stream(cuda.current_stream())
        with cuda.stream(side):
            for _ in range(WARMUP_RUNS):
                work()
        cuda.current_stream().wait_stream(side)
        graph = cuda.CUDAGraph()
        with cuda.graph(graph, stream=side):
            work()
        return _Captured(graph, work)

    def _once_ms(self, works: Sequence[Work]) -> list[float]:
        """Execute all works in turn; the milliseconds of each, by events of the GPU."""
        if self.device == "cpu":
            marks = [time.perf_counter()]
            for work in works:
                work()
                marks.append(time.perf_counter())
            return [1000 * (end - start) for start, end in pairwise(marks)]
        events = [cuda.Event(enable_timing=True) for _ in range(len(works) + 1)]
        events[0].record()
        for work, event in zip(works, events[1:], strict=True):
            work()
            event.record()
        cuda.synchronize()
        return [start.elapsed_time(end) for start, end in pairwise(events)]


def _bound(step: Step, inputs: dict[str, Tensor]) -> Work:
    return lambda: step(inputs)


def _repeated(work: Work, count: int) -> Work:
    def repeat() -> None:
        for _ in range(count):
            work()

    return repeat


def _smi(gpu: str) -> dict[str, str]:
    """Driver, maximum clocks and power limit of a GPU, from nvidia-smi; {} if it does not report them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, "-i", gpu, f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in done.stdout.splitlines()[0].split(",")] if done.stdout else []
    return dict(zip(SMI_FIELDS.values(), values, strict=False))
