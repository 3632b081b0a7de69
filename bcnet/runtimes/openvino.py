"""OpenVINO: latencies of whole networks, of layers by its performance counters, and outputs.

It runs on the processor, or with a driver of Intel's on a GPU or an NPU, by the name of its device.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from bcnet.runtimes.device_runtime import OnnxFileRuntime
from bcnet.runtimes.onnx_binary import one_bit_file

LOADING_S = 300.0  # time limit of a job besides measuring: a GPU compiles its kernels


@dataclass(frozen=True)
class OpenVino(OnnxFileRuntime):
    """OpenVINO on a machine: `provider` is its own device ("cpu", "gpu", "gpu.1", "npu").

    One stream, the latency hint, and `threads` threads. `precision` is that of the ONNX files; a network in
    fp32 is computed in fp32, where OpenVINO by itself would use bfloat16 on newer processors. Binary
    convolutions are written in the form that its 1-bit kernels need before the file goes to the device.

    Inputs and outputs stay where they are; when timed as an application, it has new input arrays for each
    inference, and copies of the outputs.
    """

    precision: str = "fp32"

    loading_s = LOADING_S

    def profile_nodes(self, model: bytes, runs: int) -> list[tuple[str, np.ndarray]]:
        """The executed layers in order, with their milliseconds in each of a few parts of the runs.

        A layer's name lists the file's nodes that are fused in it, as "conv + relu"; a change of memory
        layout, which has none, is "Reorder (conv)", after the layer that needs it.
        """
        found = self._call("profile", LOADING_S + runs, model=model, runs=runs)
        durations = np.array(found["ms"])
        return [(name, durations[:, index]) for index, name in enumerate(found["names"])]

    def _call(self, what: str, limit_s: float, **job: Any) -> dict[str, Any]:
        if "model" in job:
            job["model"] = one_bit_file(job["model"])
        settings = {"provider": self.provider, "threads": self.threads, "precision": self.precision}
        return self.device.call({"do": what, "runtime": "openvino", "settings": settings, **job}, limit_s)
