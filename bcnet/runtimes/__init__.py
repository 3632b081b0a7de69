"""Runtimes that execute networks, one module each. The part that runs on the device is in `bcnet.agent`."""

import atexit
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Protocol, TypedDict, Unpack

import numpy as np

from bcnet.errors import DeviceError, NetworkError
from bcnet.runtimes.device import Device, LocalDevice
from bcnet.runtimes.engine import Engine
from bcnet.traits import RUNTIMES, RuntimeName, RuntimeTraits

__all__ = [
    "RUNTIMES",
    "Device",
    "DeviceError",
    "Engine",
    "LocalDevice",
    "NetworkError",
    "Runtime",
    "RuntimeName",
    "RuntimeTraits",
    "Settings",
    "runtime_here",
    "runtime_on",
    "runtime_on_hosts",
    "runtime_recorded",
]


class Runtime(Protocol):
    """A runtime on a device, at one setting. `model` is the bytes of an ONNX file, or of an engine.

    Methods raise DeviceError if the runtime is not available, NetworkError if it cannot run the network.
    """

    def __hash__(self) -> int:
        """A hash of its device and its setting."""

    @property
    def workers(self) -> int:
        """The number of networks that can be measured at once, from one thread each."""

    def fingerprint(self) -> dict[str, str]:
        """Versions and processor, for the provenance of measurements."""

    def probe(self) -> dict[str, float]:
        """One reading of the reference microbenchmark (`bcnet.agent.probe`), milliseconds by part."""

    def build(self, model: bytes, batches: Sequence[int] = ()) -> Engine:
        """The engine of an ONNX file, for the file's shapes, or for batches from smallest to largest.

        The middle one of three sizes is optimised for.
        """

    def time_network(
        self, model: bytes, warmup_ms: float, seconds: float, iterations: int, *, application: bool = False
    ) -> np.ndarray:
        """Milliseconds of each whole inference on a constant input, after warm-up, without profiling.

        The time is that of the device itself. An `application` also copies inputs and outputs, and begins an
        inference when the previous one has ended.
        """

    def profile_nodes(self, model: bytes, runs: int) -> list[tuple[str, np.ndarray]]:
        """The nodes in order of execution: name, and milliseconds in each of `runs` inferences."""

    def predictor(self, model: bytes) -> Callable[..., list[np.ndarray]]:
        """A function from a batch of images, float32 (N, C, H, W), or of each input, to all outputs."""


class Settings(TypedDict, total=False):
    """The settings of a runtime; see `runtime_on`."""

    provider: str
    threads: int
    precision: str
    compute_capability: str | None
    power_mode: str
    batch: int | None


def runtime_on(device: Device, name: str, **settings: Unpack[Settings]) -> Runtime:
    """The runtime of that name on a device. Raises DeviceError for an unknown name.

    Provider and threads are for ONNX Runtime and OpenVINO, the others for TensorRT (see their classes);
    OpenVINO and PyTorch use the precision, PyTorch the compute capability, too.
    """
    precision, capability = settings.get("precision", "fp32"), settings.get("compute_capability")
    if name == "onnxruntime":
        from bcnet.runtimes.onnxruntime import OnnxRuntime

        return OnnxRuntime(device, settings.get("provider", "cpu"), settings.get("threads", 1))
    if name == "openvino":
        from bcnet.runtimes.openvino import OpenVino

        return OpenVino(device, settings.get("provider", "cpu"), settings.get("threads", 1), precision)
    if name in ("tensorrt", "tensorrt-rtx"):
        from bcnet.runtimes.tensorrt import TensorRt

        power_mode, batch = settings.get("power_mode", "default"), settings.get("batch")
        return TensorRt(device, name, precision, capability, power_mode, batch)
    if name == "torch":
        from bcnet.runtimes.torch_cuda import TorchCuda

        if not isinstance(device, LocalDevice):
            raise DeviceError(
                "torch-cuda runs only in this process, neither over ssh nor from a recording: run bcnet on "
                "the machine with the GPU, without host, recording and record_to"
            )
        if precision not in RUNTIMES[name].precisions:
            raise DeviceError("torch-cuda runs networks in fp32 or fp16, not in int8: set precision")
        return TorchCuda(capability)
    raise DeviceError(f"this bcnet does not execute networks with '{name}'")


@cache
def runtime_here(name: str, *, record_to: str | None = None, **settings: Unpack[Settings]) -> Runtime:
    """A runtime on this machine. One per process, because it measures its profiler's overhead only once.

    `record_to` is a file to which its answers are appended.
    """
    return runtime_on(_recording(LocalDevice(), record_to), name, **settings)


@cache
def runtime_recorded(recording: str, name: str, **settings: Unpack[Settings]) -> Runtime:
    """A runtime that replays a file of recorded answers. Raises DeviceError if the file cannot be read."""
    from bcnet.runtimes.replay import Recorded

    return runtime_on(Recorded(Path(recording)), name, **settings)


def _recording(device: Device, record_to: str | None) -> Device:
    from bcnet.runtimes.replay import Recording

    return Recording(device, Path(record_to)) if record_to else device


@cache
def runtime_on_hosts(
    hosts: tuple[str, ...],
    name: str,
    *,
    python: str,
    folder: str,
    machine: str | None,
    record_to: str | None = None,
    **settings: Unpack[Settings],
) -> Runtime:
    """A runtime on a device over ssh, or on several identical ones. One per process: it stays connected.

    `python` and `folder` are the interpreter and the agent's folder on the device, `machine` is the required
    kind of processor, `record_to` a file to which answers are appended. Raises DeviceError if a host cannot
    be reached, has another kind of processor, or differs from the others.
    """
    from bcnet.runtimes.hosts import Hosts, check_alike
    from bcnet.runtimes.ssh import SshDevice

    devices = [SshDevice(host, python=python, folder=folder) for host in hosts]
    for device in devices:
        atexit.register(device.close)
        there = device.hello()["machine"]
        if machine not in (None, there):
            raise DeviceError(f"{device.host}: the device is {machine}, this machine {there}")
    if len(devices) == 1:
        return runtime_on(_recording(devices[0], record_to), name, **settings)
    check_alike({device.host: runtime_on(device, name, **settings) for device in devices})
    return runtime_on(_recording(Hosts(devices), record_to), name, **settings)
