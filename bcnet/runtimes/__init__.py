"""Runtimes that execute ONNX files: one module each, loaded by name.

A runtime module offers `fingerprint`, `time_network`, `profile_nodes` and `predictor`, as `Runtime` says.
"""

import importlib
from collections.abc import Callable
from typing import Protocol, cast

import numpy as np

from bcnet.errors import DeviceError


class Runtime(Protocol):
    """What every runtime module offers. `model` is the bytes of an ONNX file.

    `provider` is the execution provider, where the runtime has several. All raise DeviceError where the
    runtime cannot load or run the network.
    """

    def fingerprint(self) -> dict[str, str]:
        """Versions and processor: what a measurement's provenance needs."""

    def time_network(
        self,
        model: bytes,
        threads: int,
        warmup_ms: float,
        seconds: float,
        iterations: int,
        provider: str = "cpu",
    ) -> np.ndarray:
        """Milliseconds of each whole inference on a constant input, warmed up, without profiling."""

    def profile_nodes(
        self, model: bytes, threads: int, runs: int, provider: str = "cpu"
    ) -> list[tuple[str, np.ndarray]]:
        """In order of execution: a node's name and its milliseconds in each of `runs` inferences."""

    def predictor(self, model: bytes, threads: int, provider: str = "cpu") -> Callable[..., list[np.ndarray]]:
        """A function from a batch of images, float32 (N, C, H, W), or of each input, to all outputs."""


def runtime_named(name: str) -> Runtime:
    """The runtime module of that name. Raises DeviceError when it or its package is not here."""
    module = f"bcnet.runtimes.{name.replace('-', '_')}"
    try:
        return cast(Runtime, importlib.import_module(module))
    except ModuleNotFoundError as cause:
        if cause.name == module:
            raise DeviceError(f"this bcnet does not execute networks with '{name}'") from None
        raise DeviceError(f"runtime '{name}' is not here ({cause}); install its package") from None
