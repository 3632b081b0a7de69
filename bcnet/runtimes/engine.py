"""The engine that a runtime builds from an ONNX file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Engine:
    """The file that the runtime loads, and information about it as JSON values.

    `content` is a serialised engine; for ONNX Runtime, the ONNX file itself. `info` has "flavour" (the
    runtime's name), "versions", "batches", "layers" (None if they are not known) and "layers_source" (their
    source, or why they are not known); TensorRT's also "precision", "compute_capability" and "gpu" (None if
    it was built ahead of time).
    """

    content: bytes
    info: Mapping[str, Any]
