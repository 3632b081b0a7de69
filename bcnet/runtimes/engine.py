"""What a runtime makes of an ONNX file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Engine:
    """What the runtime loads, and facts about it as JSON values.

    `content` is a serialised engine; for ONNX Runtime, the ONNX file itself. `info` has "flavour" (the
    runtime's name), "versions", "batches", "layers" (None where they cannot be known here) and
    "layers_source", which says why; TensorRT's also "precision", "compute_capability" and "gpu" (None where
    it was built ahead of time).
    """

    content: bytes
    info: Mapping[str, Any]
