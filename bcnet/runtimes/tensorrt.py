"""TensorRT and TensorRT for RTX: engines, latencies of networks and, by its profiler, of layers, and outputs.

If the device has no Python module of TensorRT, its program trtexec is used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bcnet.agent.tensorrt_module import variant_of, wrong_variant
from bcnet.errors import DeviceError, NetworkError
from bcnet.runtimes.device_runtime import DeviceRuntime
from bcnet.runtimes.engine import Engine
from bcnet.runtimes.onnx_batch import with_free_batch
from bcnet.traits import RUNTIMES

LOADING_S = 120.0  # time limit of a job besides measuring
BUILDING_S = 3600.0  # a large network on a small Jetson takes many minutes
TRTEXEC = "trtexec"


def is_engine(content: bytes) -> bool:
    """Whether this is a serialised engine, by its first bytes, rather than an ONNX file."""
    return variant_of(content) is not None


@dataclass(frozen=True)
class TensorRt(DeviceRuntime):
    """TensorRT on a device. `variant` is "tensorrt" or "tensorrt-rtx", `precision` that of the ONNX files.

    `batch` is the batch size at which engines with a dynamic batch are timed; None: the one that they are
    optimised for. The GPU must have the compute capability, and a Jetson the power mode, unless that is
    "default". Times are the GPU's, without copies; when timed as an application, inputs and outputs are
    copied, and each inference is waited for before the next.
    """

    variant: str = "tensorrt"
    precision: str = "fp32"
    compute_capability: str | None = None
    power_mode: str = "default"
    batch: int | None = None

    loading_s = LOADING_S + BUILDING_S  # an ONNX file is built first

    def fingerprint(self) -> dict[str, str]:
        """Version of TensorRT, GPU, driver; on a Jetson also power mode and clocks.

        Raises DeviceError if the compute capability or power mode differs from the hardware profile's.
        """
        found = {
            key: str(value) for key, value in self._call("fingerprint", LOADING_S)["fingerprint"].items()
        }
        capability = found.get("compute_capability")
        if capability and self.compute_capability not in (None, capability):
            raise DeviceError(
                f"the GPU {found['processor']} has compute capability {capability}, the hardware profile "
                f"{self.compute_capability}: choose the profile of this device"
            )
        mode = found.get("power_mode")
        if mode and self.power_mode not in ("default", mode, f"MODE_{mode}"):
            raise DeviceError(
                f"the power mode is {mode}, the hardware profile says {self.power_mode}: set it on the "
                "device (`sudo nvpmodel -m NUMBER`), or `power_mode` in the profile"
            )
        return found

    def build(self, model: bytes, batches: Sequence[int] = ()) -> Engine:
        """The engine of an ONNX file, for the file's shapes, or for the sizes of a dynamic batch.

        TensorRT for RTX builds it on any machine, for the compute capability; TensorRT only on the device.
        Raises NetworkError with TensorRT's message if it rejects the network.
        """
        if is_engine(model):
            raise NetworkError("this is already an engine; give the ONNX file that it was built from")
        content = with_free_batch(model) if batches else model
        if not RUNTIMES[self.variant].ahead_of_time:
            answer = self._call("build", BUILDING_S, model=content, batches=list(batches))
        else:
            answer = self._job(self.variant, "build", BUILDING_S, model=content, batches=list(batches))
        return Engine(answer["engine"], answer["info"])

    def profile_nodes(self, model: bytes, runs: int) -> list[tuple[str, np.ndarray]]:
        """The engine's layers in order of execution, with their milliseconds in each run.

        Names are TensorRT's own, followed by a layer's ONNX nodes as " [ONNX Layer: name]" if they are known.
        trtexec returns one run, of medians.
        """
        found = self._call("profile", self.loading_s + runs, model=model, runs=runs)
        durations = np.array(found["ms"])
        return [(name, durations[:, index]) for index, name in enumerate(found["names"])]

    def predictor(self, model: bytes) -> Callable[..., list[np.ndarray]]:
        """As for all runtimes; an engine of the other variant is refused at once, not at the first batch."""
        self._check_variant(model)
        return super().predictor(model)

    def _check_variant(self, model: bytes) -> None:
        """Raise NetworkError for an engine of the other variant."""
        built = variant_of(model)
        if built not in (None, self.variant):
            raise NetworkError(wrong_variant(built, self.variant))

    @cached_property
    def _through(self) -> str:
        """The Python module, else trtexec. Raises DeviceError if neither can be used."""
        reason = self._missing(self.variant)
        if reason is None:
            return self.variant
        if TRTEXEC in RUNTIMES[self.variant].programs and self._missing(TRTEXEC) is None:
            return TRTEXEC
        raise DeviceError(reason)

    def _missing(self, runtime: str) -> str | None:
        found = self._job(runtime, "missing", LOADING_S)["missing"]
        return None if found is None else str(found)

    def _call(self, what: str, limit_s: float, **job: Any) -> dict[str, Any]:
        if "model" in job:
            self._check_variant(job["model"])
        return self._job(self._through, what, limit_s, **job)

    def _job(self, runtime: str, what: str, limit_s: float, **job: Any) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "runtime": runtime,
            "precision": self.precision,
            "compute_capability": self.compute_capability,
        }
        if self.batch is not None:
            settings["batch"] = self.batch
        return self.device.call({"do": what, "runtime": runtime, "settings": settings, **job}, limit_s)
