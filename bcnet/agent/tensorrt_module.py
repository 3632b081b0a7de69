"""The Python modules `tensorrt` and `tensorrt_rtx`, either of them, with what they log.

In: a runtime's name. Out: its module; why it cannot be used; which of the two an engine belongs to.
"""

import importlib
from typing import Any, Dict, List, Optional, Tuple

from .errors import JobError, one_line

# How each is imported, what it is called, what its engines begin with, and how it is installed.
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
NAMES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX"}
BEGINS = {b"ftrt": "tensorrt", b"ptrt": "tensorrt", b"vtrt": "tensorrt-rtx"}  # ptrt: old versions
INSTALL = {
    "tensorrt": "a Jetson: apt install python3-libnvinfer; others: pip install tensorrt pycuda (bcnet[trt])",
    "tensorrt-rtx": "pip install tensorrt-rtx-cu13 cuda-python (bcnet[rtx])",
}
WORDS = 400  # of TensorRT's, at most, in an error

_apis: Dict[str, "Api"] = {}


def flavour_of(model: bytes) -> Optional[str]:
    """Which runtime's engine this is, by its first bytes; None for what is none, such as an ONNX file."""
    return BEGINS.get(bytes(model[:4]))


def other_flavour(built: str, wanted: str) -> str:
    """Why an engine cannot be given to the other runtime."""
    return "this engine was built by %s; %s cannot read it: build it with runtime '%s' from the ONNX file" % (
        NAMES[built],
        NAMES[wanted],
        wanted,
    )


class Api:
    """One of the two modules, with what it logs. A process has one logger for each."""

    def __init__(self, name: str) -> None:
        try:
            self.trt = trt = importlib.import_module(MODULES[name])
            self.version = str(trt.__version__)
        except Exception as cause:  # also one whose libraries do not fit
            words = (NAMES[name], one_line(cause), INSTALL[name])
            raise JobError("device", "%s's Python module cannot be used here (%s); install it: %s" % words)
        self.name, self.is_rtx = name, name == "tensorrt-rtx"
        self.errors: List[str] = []
        self.listed = ""
        api = self

        class Log(trt.ILogger):  # type: ignore[misc,name-defined]
            """Keeps errors, and the layers that the builder lists."""

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

    def forget(self) -> None:
        """Forget what was logged so far."""
        del self.errors[:]
        self.listed = ""

    def said(self, what: str) -> str:
        """One line: what went wrong, and TensorRT's own words, the first of them and the last."""
        lines = [" ".join(line.split()) for line in self.errors]
        telling = lines[:1] + [line for line in lines[-1:] if line != lines[0]]
        words = "; ".join(line[:WORDS] for line in telling) or "it gave no reason"
        return "%s: %s: %s" % (NAMES[self.name], what, words)


def api_of(settings: Dict[str, Any]) -> Api:
    """The module that settings["runtime"] names, with an empty log. Raises JobError where it is not here."""
    name = settings["runtime"]
    if name not in _apis:
        _apis[name] = Api(name)
    _apis[name].forget()
    return _apis[name]
