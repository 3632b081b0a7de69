"""OpenVINO: latencies of whole networks, of layers by its performance counters, and outputs.

It runs on the processor, or with a driver of Intel's on a GPU or an NPU, by the name of its device.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bcnet.runtimes.device import Device, predictor, timing_job
from bcnet.runtimes.engine import Engine
from bcnet.runtimes.onnx_batch import with_free_batch
from bcnet.runtimes.onnx_binary import one_bit_file

LOADING_S = 300.0  # time limit of a job besides measuring: a GPU compiles its kernels


@dataclass(frozen=True)
class OpenVino:
    """OpenVINO on a machine: `provider` is its own device ("cpu", "gpu", "gpu.1", "npu").

    One stream, the latency hint, and `threads` threads. `precision` is that of the ONNX files; a network in
    fp32 is computed in fp32, where OpenVINO by itself would use bfloat16 on newer processors. Binary
    convolutions are written in the form that its 1-bit kernels need before the file goes to the device.
    """

    device: Device
    provider: str = "cpu"
    threads: int = 1
    precision: str = "fp32"

    @property
    def workers(self) -> int:
        """The number of networks that can be measured at once."""
        return self.device.workers

    def fingerprint(self) -> dict[str, str]:
        """Runtime version and processor."""
        return dict(self._call("fingerprint")["fingerprint"])

    def probe(self) -> dict[str, float]:
        """One reading of the reference microbenchmark, milliseconds by part. It is the processor's."""
        return dict(self.device.call({"do": "probe"}, LOADING_S)["probe"])

    def build(self, model: bytes, batches: Sequence[int] = ()) -> Engine:
        """The file itself, with its own batch or a dynamic one, loaded once as a check."""
        content = with_free_batch(model) if batches else model
        info = self._call("build", model=content, batches=list(batches))["info"]
        return Engine(content, info)

    def time_network(
        self, model: bytes, warmup_ms: float, seconds: float, iterations: int, *, application: bool = False
    ) -> np.ndarray:
        """Milliseconds of each inference, for at least `seconds` and `iterations`, after the warm-up.

        Inputs and outputs stay where they are. An `application` has new input arrays for each inference, and
        copies of the outputs.
        """
        limit_s = LOADING_S + 3 * (warmup_ms / 1000 + seconds) + iterations
        job = timing_job(warmup_ms, seconds, iterations, application)
        return np.array(self._call("time", limit_s, model=model, **job)["ms"])

    def profile_nodes(self, model: bytes, runs: int) -> list[tuple[str, np.ndarray]]:
        """The executed layers in order, with their milliseconds in each of a few parts of the runs.

        A layer's name lists the file's nodes that are fused in it, as "conv + relu"; a change of memory
        layout, which has none, is "Reorder (conv)", after the layer that needs it.
        """
        found = self._call("profile", LOADING_S + runs, model=model, runs=runs)
        durations = np.array(found["ms"])
        return [(name, durations[:, index]) for index, name in enumerate(found["names"])]

    def predictor(self, model: bytes) -> Callable[..., list[np.ndarray]]:
        """A function that runs the network on any number of images, in batches of the file's size.

        It takes one array (N, ...) for each input, and returns all outputs (N, ...), in the file's order.
        """
        return predictor(self._call, model, LOADING_S)

    def _call(self, what: str, limit_s: float = LOADING_S, **job: Any) -> dict[str, Any]:
        if "model" in job:
            job["model"] = one_bit_file(job["model"])
        settings = {"provider": self.provider, "threads": self.threads, "precision": self.precision}
        return self.device.call({"do": what, "runtime": "openvino", "settings": settings, **job}, limit_s)
