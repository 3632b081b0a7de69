"""PyTorch on an NVIDIA GPU, "torch-cuda" in every result: for GPUs where no TensorRT is to be had.

In: ONNX files. Out: times of whole networks in a CUDA graph, of each node in graphs of its own, and outputs.
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
from bcnet.errors import DeviceError, NetworkError, one_line
from bcnet.runtimes.engine import Engine
from bcnet.runtimes.onnx_torch import Step, TorchNetwork, channels_last, load_network

NAME = "torch-cuda"
WARMUP_RUNS = 3  # before a capture: libraries load, kernels are chosen, workspaces allocated
REPLAY_MS = 0.1  # a node is repeated in its graph to fill this, so that starting a graph counts for little
MOST_COPIES = 32
PROBE_SIDE = 2048  # 17 * 10^9 operations
PROBE_BYTES = 128 * 2**20  # more than the level-2 cache of any GPU so far
PROBE_REPEATS = 9
SMI_FIELDS = {
    "driver_version": "driver",
    "clocks.max.sm": "max_sm_clock",
    "clocks.max.memory": "max_memory_clock",
    "power.limit": "power_limit",
}

cuda: Any = torch.cuda  # parts of it have no types
cudnn: Any = torch.backends.cudnn

Work = Callable[[], object]


@dataclass(frozen=True)
class _Recorded:
    """A CUDA graph, and the work that it was recorded from.

    The graph knows only addresses: the weights and inputs there must live as long as it does, and the work is
    what holds them.
    """

    graph: Any
    work: Work

    def __call__(self) -> None:
        self.graph.replay()


@dataclass(frozen=True)
class TorchCuda:
    """PyTorch on the first visible GPU of this machine, in this process.

    Images and weights are channels-last, TF32 is off, and cuDNN chooses kernels by its heuristics, so that a
    layer gets the same one each time. The precision is that of the ONNX file. The GPU must have the
    compute capability, where one is given. With `device` "cpu" the same code runs without graphs, by the
    processor's clock: that is for tests, and no hardware profile leads there.
    """

    compute_capability: str | None = None
    device: str = "cuda"

    workers = 1

    def fingerprint(self) -> dict[str, str]:
        """Versions of PyTorch, CUDA, cuDNN and driver, TF32, the GPU, and its highest clocks if it tells.

        Raises DeviceError where there is no GPU, or one of another compute capability.
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
            "tf32": "off",  # see `_settled`
            **_smi(f"GPU-{properties.uuid}"),
        }

    def probe(self) -> dict[str, float]:
        """One reading of the GPU's own probe, the median ms of each part over nine repetitions.

        `matmul_ms`: a float32 product of two matrices of 2048 x 2048: the clock. `stream_ms`: a copy of
        128 MiB in the GPU's memory. They take the places of the parts of the same names of
        `bcnet.agent.probe`, which measures the processor and says nothing about the GPU.
        """
        with self._settled():
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
        """The ONNX file itself, once it was loaded. Raises DeviceError for a dynamic batch."""
        with self._settled():
            network = load_network(model, torch.device(self.device))
        fixed = next(iter(network.inputs.values()))[0][0]
        if set(batches) - {fixed}:
            raise DeviceError(f"torch-cuda runs static shapes only: leave --batch out, or make it {fixed}")
        info: dict[str, Any] = {
            "flavour": NAME,
            "versions": self.fingerprint(),
            "batches": list(batches),
            "layers": None,
            "layers_source": "PyTorch runs the nodes of the ONNX file one after the other",
        }
        return Engine(model, info)

    def time_network(self, model: bytes, warmup_ms: float, seconds: float, iterations: int) -> np.ndarray:
        """Milliseconds of each inference between two events: `seconds` long and `iterations` often.

        The whole network is one CUDA graph. Inputs and outputs stay on the GPU, and each inference ends
        before the next one begins, so what it takes to start a graph is part of it.
        """
        with self._settled():
            network = load_network(model, torch.device(self.device))
            inputs = self._constant_inputs(network)
            replay = self._recorded(lambda: network(*inputs))
            end = time.perf_counter() + warmup_ms / 1000
            self._once_ms([replay])
            while time.perf_counter() < end:
                self._once_ms([replay])
            samples: list[float] = []
            end = time.perf_counter() + seconds
            while len(samples) < iterations or time.perf_counter() < end:
                samples += self._once_ms([replay])
            return np.array(samples)

    def profile_nodes(self, model: bytes, runs: int) -> list[tuple[str, np.ndarray]]:
        """Names of the file's nodes in order, with their milliseconds in each run, each timed alone.

        PyTorch fuses nothing, so a node's kernels are the same alone and in the network. Each node is a graph
        of its own, on the inputs that it has in the network, repeated there up to 32 times; a run replays all
        graphs in turn. What is different alone: its weights and inputs wait in the GPU's cache. A table's
        calibration corrects that. Nodes that only look at their input in another shape take 0 ms.
        """
        with self._settled():
            network = load_network(model, torch.device(self.device))
            works = self._alone(network)
            replays = [self._recorded(work) for work in works.values()]
            singles = np.min([self._once_ms(replays) for _ in range(WARMUP_RUNS)], 0, initial=np.inf)
            copies = np.clip(np.ceil(REPLAY_MS / np.maximum(singles, 1e-6)), 1, MOST_COPIES).astype(int)
            replays = [
                self._recorded(_repeated(work, int(count)))
                for work, count in zip(works.values(), copies, strict=True)
            ]
            for _ in range(WARMUP_RUNS):
                self._once_ms(replays)
            durations = np.array([self._once_ms(replays) for _ in range(runs)]).reshape(runs, len(works))
        found = dict(zip(works, (durations / copies).T, strict=True))
        return [(step.name, found.get(step.name, np.zeros(runs))) for step in network.steps]

    def predictor(self, model: bytes) -> Callable[..., list[np.ndarray]]:
        """Run the network on any number of images, in batches of the size that the file fixes.

        Networks of several inputs take as many arrays, in the file's order. Returns every output, (N, ...).
        """
        with self._settled():
            network = load_network(model, torch.device(self.device))
            inputs = self._constant_inputs(network)
            outputs: list[Tensor] = []

            def run() -> None:
                outputs[:] = network(*inputs)

            replay = self._recorded(run)
        size = inputs[0].shape[0]

        def predict(*images: np.ndarray) -> list[np.ndarray]:
            parts = []
            with self._settled():
                for batch, count in batches_of(images, size):
                    for place, array in zip(inputs, batch, strict=True):
                        place.copy_(torch.from_numpy(array))
                    replay()
                    parts.append([output[:count].cpu().numpy().copy() for output in outputs])
            return [np.concatenate(part) for part in zip(*parts, strict=True)]

        return predict

    def _check(self) -> None:
        """Raise DeviceError where PyTorch sees no GPU, or one that is not the profile's."""
        if self.device == "cpu":
            return
        if not cuda.is_available():
            built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
            raise DeviceError(
                f"torch sees no CUDA GPU here: PyTorch {torch.__version__} is built for {built}; look at "
                "`nvidia-smi`, and install a PyTorch for the CUDA of its driver (pytorch.org/get-started)"
            )
        major, minor = cuda.get_device_capability(0)
        capability = f"{major}.{minor}"
        if self.compute_capability not in (None, capability):
            name = cuda.get_device_name(0)
            raise DeviceError(
                f"the GPU is {name} of compute capability {capability}, the hardware profile's is "
                f"{self.compute_capability}: choose the profile of this device"
            )

    @contextmanager
    def _settled(self) -> Iterator[None]:
        """Without gradients, TF32 and cuDNN's search; an error of PyTorch becomes one of one line."""
        self._check()
        matmul: Any = torch.backends.cuda.matmul
        before = matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.benchmark
        try:
            matmul.fp32_precision = cudnn.conv.fp32_precision = "ieee"
            cudnn.benchmark = False
            with torch.inference_mode():
                yield
        except RuntimeError as cause:  # out of memory, too
            raise NetworkError(f"PyTorch cannot run the network: {one_line(cause)}") from None
        finally:
            matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.benchmark = before

    def _constant_inputs(self, network: TorchNetwork) -> list[Tensor]:
        """Noise in the place of images; zeros for integers: an index of zero is always one that exists."""
        rng = np.random.default_rng(0)
        tensors = []
        for shape, kind in network.inputs.values():
            values = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
            tensor = (values if kind.is_floating_point else torch.zeros(shape)).to(self.device, kind)
            tensors.append(channels_last(tensor))
        return tensors

    def _alone(self, network: TorchNetwork) -> dict[str, Work]:
        """What each node does to the inputs that it has in the network; those that make no copy left out."""
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

    def _recorded(self, work: Work) -> Work:
        """The work as one CUDA graph, whose replay it returns; on the CPU the work itself."""
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
        return _Recorded(graph, work)

    def _once_ms(self, works: Sequence[Work]) -> list[float]:
        """Do all works in turn; the milliseconds of each, by events of the GPU."""
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
    """Driver, highest clocks and power limit of a GPU, as far as there is an nvidia-smi that tells them."""
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
