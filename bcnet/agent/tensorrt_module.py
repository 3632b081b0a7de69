"""The Python modules `tensorrt` and `tensorrt_rtx`, the two variants of TensorRT, with their logs.

In: a runtime's name. Out: its module, or why it cannot be used; the variant to which an engine belongs.
"""

import importlib
from typing import Any, Dict, List, Optional, Tuple

from .errors import JobError, one_line

# For each variant: its module, its name in messages, the first bytes of its engines, how to install it.
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
NAMES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX"}
BEGINS = {b"ftrt": "tensorrt", b"ptrt": "tensorrt", b"vtrt": "tensorrt-rtx"}  # ptrt: old versions
INSTALL = {
    "tensorrt": "a Jetson: apt install python3-libnvinfer; others: pip install tensorrt pycuda (bcnet[trt])",
    "tensorrt-rtx": "pip install tensorrt-rtx-cu13 cuda-python (bcnet[rtx])",
}
LONGEST = 400  # maximum number of characters of a message of TensorRT in an error

_apis: Dict[str, "Api"] = {}


def variant_of(model: bytes) -> Optional[str]:
    """The variant of TensorRT that built an engine, by its first bytes; None if it is not an engine."""
    return BEGINS.get(bytes(model[:4]))


def wrong_variant(built: str, wanted: str) -> str:
    """The message for an engine of the other variant."""
    return "this engine was built by %s; %s cannot read it: build it with runtime '%s' from the ONNX file" % (
        NAMES[built],
        NAMES[wanted],
        wanted,
    )


class Api:
    """One of the two modules, with its log. A process has one logger for each."""

    def __init__(self, name: str) -> None:
        try:
            self.trt = trt = importlib.import_module(MODULES[name])
            self.version = str(trt.__version__)
        except Exception as cause:  # also if its libraries do not match
            parts = (NAMES[name], one_line(cause), INSTALL[name])
            raise JobError("device", "the Python module of %s cannot be used (%s); install it: %s" % parts)
        self.name, self.is_rtx = name, name == "tensorrt-rtx"
        self.errors: List[str] = []
        self.listed = ""
        api = self

        class Log(trt.ILogger):  # type: ignore[misc,name-defined]
            """Collects errors, and the layers that the builder lists."""

            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    api.errors.append(message)
                elif message.startswith("Layers:\n"):
                    api.listed = message

        class Profiler(trt.IProfiler):  # type: ignore[misc,name-defined]
            """Appends (layer, ms) to a list."""

            def __init__(self, rows: List[Tuple[str, float]]) -> None:
                trt.IProfiler.__init__(self)
                self.rows = rows

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                self.rows.append((layer_name, ms))

        self.log, self.profiler = Log(), Profiler

    def clear(self) -> None:
        """Discard the log."""
        del self.errors[:]
        self.listed = ""

    def message(self, what: str) -> str:
        """One line: what went wrong, with the first and the last error that TensorRT has logged."""
        lines = [" ".join(line.split()) for line in self.errors]
        chosen = lines[:1] + [line for line in lines[-1:] if line != lines[0]]
        reason = "; ".join(line[:LONGEST] for line in chosen) or "no reason given"
        return "%s: %s: %s" % (NAMES[self.name], what, reason)


def api_of(settings: Dict[str, Any]) -> Api:
    """The module of settings["runtime"], with an empty log. Raises JobError if it is not installed."""
    name = settings["runtime"]
    if name not in _apis:
        _apis[name] = Api(name)
    _apis[name].clear()
    return _apis[name]
