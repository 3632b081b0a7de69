"""What runtimes share that work by jobs on a device: this machine, another one over ssh, or a recording.

In: ONNX files or engines, and how a runtime makes its jobs (`bcnet.agent.jobs`). Out: times and outputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bcnet.agent.arrays import pack, unpack
from bcnet.runtimes.device import Device
from bcnet.runtimes.engine import Engine
from bcnet.runtimes.onnx_batch import with_free_batch

PROBE_S = 120.0  # time limit of the reference microbenchmark
INFERENCE_S = 10.0  # time limit of each inference, besides loading


@dataclass(frozen=True)
class DeviceRuntime(ABC):
    """A runtime on a device: what needs nothing but jobs. See `Runtime` for the methods' meaning."""

    device: Device

    loading_s: ClassVar[float]  # time limit of a job with a network, besides its inferences

    @abstractmethod
    def _call(self, what: str, limit_s: float, **job: Any) -> dict[str, Any]:
        """The answer to one of the runtime's jobs, of kind `what`, with a time limit in seconds."""

    @property
    def workers(self) -> int:
        """The number of networks that can be measured at once."""
        return self.device.workers

    def probe(self) -> dict[str, float]:
        """One reading of the processor's reference microbenchmark, milliseconds by part."""
        return dict(self.device.call({"do": "probe"}, PROBE_S)["probe"])

    def time_network(
        self, model: bytes, warmup_ms: float, seconds: float, iterations: int, *, application: bool = False
    ) -> np.ndarray:
        """Milliseconds of each inference, for at least `seconds` and `iterations`, after the warm-up."""
        limit_s = self.loading_s + 3 * (warmup_ms / 1000 + seconds) + iterations
        job: dict[str, Any] = {"warmup_ms": warmup_ms, "seconds": seconds, "iterations": iterations}
        if application:  # else left out: the jobs of earlier recordings have no such entry
            job["application"] = True
        return np.array(self._call("time", limit_s, model=model, **job)["ms"])

    def predictor(self, model: bytes) -> Callable[..., list[np.ndarray]]:
        """A function that runs the network on any number of images, in batches of the file's size.

        It takes one array (N, ...) for each input, and returns all outputs (N, ...), in the file's order.
        """

        def predict(*inputs: np.ndarray) -> list[np.ndarray]:
            limit_s = self.loading_s + INFERENCE_S * len(inputs[0])
            answer = self._call("infer", limit_s, model=model, inputs=[pack(array) for array in inputs])
            return [unpack(packed) for packed in answer["outputs"]]

        return predict


@dataclass(frozen=True)
class OnnxFileRuntime(DeviceRuntime):
    """A runtime that loads ONNX files as they are: its "engine" is the file.

    `provider` is what it runs on, "cpu" or another one by the runtime's own name; `threads` is for the CPU.
    """

    provider: str = "cpu"
    threads: int = 1

    def fingerprint(self) -> dict[str, str]:
        """Runtime version and processor."""
        return dict(self._call("fingerprint", self.loading_s)["fingerprint"])

    def build(self, model: bytes, batches: Sequence[int] = ()) -> Engine:
        """The file itself, with its own batch or a dynamic one, loaded once as a check."""
        content = with_free_batch(model) if batches else model
        info = self._call("build", self.loading_s, model=content, batches=list(batches))["info"]
        return Engine(content, info)
