"""TensorRT, and TensorRT for RTX: engines, whole-network times, per-layer times by its profiler, and outputs.

Where the device has no Python module of TensorRT, its program trtexec does the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bcnet.agent.arrays import pack, unpack
from bcnet.agent.tensorrt_module import flavour_of, other_flavour
from bcnet.errors import DeviceError, NetworkError
from bcnet.runtimes.device import Device
from bcnet.runtimes.engine import Engine
from bcnet.runtimes.onnx_batch import with_free_batch

LOADING_S = 120.0  # what a job may take beside its measuring
BUILDING_S = 3600.0  # a large network on a small Jetson takes many minutes
TRTEXEC = "trtexec"


def is_engine(content: bytes) -> bool:
    """Whether this is a serialised engine, by its first bytes, and not an ONNX file."""
    return flavour_of(content) is not None


@dataclass(frozen=True)
class TensorRt:
    """TensorRT on a device. `flavour` is "tensorrt" or "tensorrt-rtx", `precision` what the ONNX files hold.

    `batch` is what engines of a dynamic batch are timed at; their usual one if None. The GPU must have the
    compute capability, and a Jetson the power mode, unless that is "default".
    """

    device: Device
    flavour: str = "tensorrt"
    precision: str = "fp32"
    compute_capability: str | None = None
    power_mode: str = "default"
    batch: int | None = None

    @property
    def workers(self) -> int:
        """How many networks can be measured at once."""
        return self.device.workers

    def fingerprint(self) -> dict[str, str]:
        """Version of TensorRT, GPU, driver; on a Jetson also power mode and clocks.

        Raises DeviceError where this is not the device: another compute capability, or power mode.
        """
        found = {key: str(value) for key, value in self._run("fingerprint")["fingerprint"].items()}
        capability = found.get("compute_capability")
        if capability and self.compute_capability not in (None, capability):
            raise DeviceError(
                f"the GPU is {found['processor']} of compute capability {capability}, the hardware profile's "
                f"is {self.compute_capability}: choose the profile of this device"
            )
        mode = found.get("power_mode")
        if mode and self.power_mode not in ("default", mode, f"MODE_{mode}"):
            raise DeviceError(
                f"the power mode is {mode}, the hardware profile says {self.power_mode}: set it on the "
                "device (`sudo nvpmodel -m NUMBER`), or `power_mode` in the profile"
            )
        return found

    def probe(self) -> dict[str, float]:
        """One reading of the device's probe, milliseconds by part."""
        return dict(self.device.call({"do": "probe"}, LOADING_S)["probe"])

    def build(self, model: bytes, batches: Sequence[int] = ()) -> Engine:
        """The engine of an ONNX file: static, as the file is, or for sizes of a dynamic batch.

        TensorRT for RTX builds it on any machine, for the compute capability; TensorRT only on the device.
        Raises NetworkError with TensorRT's words where it refuses the network.
        """
        if is_engine(model):
            raise NetworkError("this is an engine already; give the ONNX file that it was built from")
        content = with_free_batch(model) if batches else model
        if self.flavour == "tensorrt":
            answer = self._run("build", BUILDING_S, model=content, batches=list(batches))
        else:
            answer = self._job(self.flavour, "build", BUILDING_S, model=content, batches=list(batches))
        return Engine(answer["engine"], answer["info"])

    def time_network(self, model: bytes, warmup_ms: float, seconds: float, iterations: int) -> np.ndarray:
        """Milliseconds of each inference on the GPU, without copies: `seconds` long, `iterations` often."""
        limit_s = LOADING_S + BUILDING_S + 3 * (warmup_ms / 1000 + seconds) + iterations
        limits = {"warmup_ms": warmup_ms, "seconds": seconds, "iterations": iterations}
        return np.array(self._run("time", limit_s, model=self._mine(model), **limits)["ms"])

    def profile_nodes(self, model: bytes, runs: int) -> list[tuple[str, np.ndarray]]:
        """The engine's layers in order of execution, with their milliseconds in each run.

        A name is TensorRT's own; the ONNX nodes of a layer follow it as " [ONNX Layer: name]" where it knows.
        trtexec gives one run, of medians.
        """
        found = self._run("profile", LOADING_S + BUILDING_S + runs, model=self._mine(model), runs=runs)
        durations = np.array(found["ms"])
        return [(name, durations[:, index]) for index, name in enumerate(found["names"])]

    def predictor(self, model: bytes) -> Callable[..., list[np.ndarray]]:
        """Run the network on any number of images, in batches of the engine's size.

        Networks of several inputs take as many arrays, in the file's order. Returns every output, (N, ...).
        """
        content = self._mine(model)

        def predict(*inputs: np.ndarray) -> list[np.ndarray]:
            limit_s = LOADING_S + BUILDING_S + 10.0 * len(inputs[0])
            answer = self._run("infer", limit_s, model=content, inputs=[pack(array) for array in inputs])
            return [unpack(packed) for packed in answer["outputs"]]

        return predict

    def _mine(self, model: bytes) -> bytes:
        """An ONNX file, or an engine of this flavour. Raises NetworkError for another's."""
        built = flavour_of(model)
        if built not in (None, self.flavour):
            raise NetworkError(other_flavour(built, self.flavour))
        return model

    @cached_property
    def _through(self) -> str:
        """The Python module, or trtexec where that cannot be used. Raises DeviceError where neither can."""
        reason = self._missing(self.flavour)
        if reason is None:
            return self.flavour
        if self.flavour == "tensorrt" and self._missing(TRTEXEC) is None:
            return TRTEXEC
        raise DeviceError(reason)

    def _missing(self, runtime: str) -> str | None:
        found = self._job(runtime, "missing", LOADING_S)["missing"]
        return None if found is None else str(found)

    def _run(self, what: str, limit_s: float = LOADING_S, **job: Any) -> dict[str, Any]:
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
