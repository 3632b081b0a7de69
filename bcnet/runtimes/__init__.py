"""Runtimes that execute networks: one module each. What they do on the device itself is in `bcnet.agent`."""

import atexit
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Protocol, TypedDict, Unpack

import numpy as np

from bcnet.errors import DeviceError
from bcnet.runtimes.device import Device, LocalDevice
from bcnet.runtimes.engine import Engine

__all__ = [
    "Device",
    "Engine",
    "LocalDevice",
    "Runtime",
    "Settings",
    "runtime_here",
    "runtime_on",
    "runtime_on_hosts",
    "runtime_recorded",
]


class Runtime(Protocol):
    """A runtime on a device, at one setting. `model` is the bytes of an ONNX file, or of an engine.

    Methods raise DeviceError where the runtime is not there, NetworkError where it cannot run the network.
    """

    def __hash__(self) -> int:
        """By its device and its setting."""

    @property
    def workers(self) -> int:
        """How many networks can be measured at once; methods may be called from as many threads."""

    def fingerprint(self) -> dict[str, str]:
        """Versions and processor: what a measurement's provenance needs."""

    def probe(self) -> dict[str, float]:
        """One reading of the device's probe (`bcnet.agent.probe`), milliseconds by part."""

    def build(self, model: bytes, batches: Sequence[int] = ()) -> Engine:
        """What the runtime makes of an ONNX file: of its shapes, or for batches from least to largest.

        With three sizes, the one in the middle is the one that is used most.
        """

    def time_network(self, model: bytes, warmup_ms: float, seconds: float, iterations: int) -> np.ndarray:
        """Milliseconds of each whole inference on a constant input, warmed up, without profiling."""

    def profile_nodes(self, model: bytes, runs: int) -> list[tuple[str, np.ndarray]]:
        """In order of execution: a node's name and its milliseconds in each of `runs` inferences."""

    def predictor(self, model: bytes) -> Callable[..., list[np.ndarray]]:
        """A function from a batch of images, float32 (N, C, H, W), or of each input, to all outputs."""


class Settings(TypedDict, total=False):
    """What a runtime is asked for beside its name; see `runtime_on`."""

    provider: str
    threads: int
    precision: str
    compute_capability: str | None
    power_mode: str
    batch: int | None


def runtime_on(
    device: Device,
    name: str,
    *,
    provider: str = "cpu",
    threads: int = 1,
    precision: str = "fp32",
    compute_capability: str | None = None,
    power_mode: str = "default",
    batch: int | None = None,
) -> Runtime:
    """The runtime of that name on a device. Raises DeviceError for a name that there is not.

    Provider and threads are ONNX Runtime's, the others TensorRT's (see their classes); PyTorch takes the
    compute capability, too.
    """
    if name == "onnxruntime":
        from bcnet.runtimes.onnxruntime import OnnxRuntime

        return OnnxRuntime(device, provider, threads)
    if name in ("tensorrt", "tensorrt-rtx"):
        from bcnet.runtimes.tensorrt import TensorRt

        return TensorRt(device, name, precision, compute_capability, power_mode, batch)
    if name == "torch":
        from bcnet.runtimes.torch import TorchCuda

        if not isinstance(device, LocalDevice):
            raise DeviceError(
                "torch-cuda runs in this process only, neither over ssh nor from a recording: run bcnet on "
                "the machine with the GPU, without host, recording and record_to"
            )
        if precision == "int8":
            raise DeviceError("torch-cuda runs networks in fp32 or fp16, not in int8: set precision")
        return TorchCuda(compute_capability)
    raise DeviceError(f"this bcnet does not execute networks with '{name}'")


@cache
def runtime_here(name: str, *, record_to: str | None = None, **settings: Unpack[Settings]) -> Runtime:
    """The same on this machine. One a process: a runtime measures once what its profiler adds.

    `record_to` is a file that its answers are added to.
    """
    return runtime_on(_noted(LocalDevice(), record_to), name, **settings)


@cache
def runtime_recorded(recording: str, name: str, **settings: Unpack[Settings]) -> Runtime:
    """The same as a file of its answers: nothing is run. Raises DeviceError where that cannot be read."""
    from bcnet.runtimes.recorded import Recorded

    return runtime_on(Recorded(Path(recording)), name, **settings)


def _noted(device: Device, record_to: str | None) -> Device:
    from bcnet.runtimes.recorded import Recording

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
    """The same on a device over ssh, or on several of one kind. One a process: it stays connected.

    `python` and `folder` are the interpreter and the agent's folder there, `machine` is the kind of processor
    that there must be, `record_to` a file that answers are added to. Raises DeviceError where a host is not
    reached, another machine, or unlike the others.
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
        return runtime_on(_noted(devices[0], record_to), name, **settings)
    check_alike({device.host: runtime_on(device, name, **settings) for device in devices})
    return runtime_on(_noted(Hosts(devices), record_to), name, **settings)
