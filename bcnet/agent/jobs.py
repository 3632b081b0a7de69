"""Execute jobs. In: a job, as a dict. Out: its answer, a dict, or a JobError.

A job is {"do": ..., "runtime": ..., "settings": {...}, ...}; `bytes` in it are files and arrays. It calls the
function of that name in the runtime's module: the job holds its arguments, the answer its result.
"""

import hashlib
import importlib
import json
from typing import Any, Dict, List, Tuple

from . import look as looking
from . import probe as probing
from .errors import JobError

RUNTIMES = {
    "onnxruntime": "onnxruntime_jobs",
    "openvino": "openvino_jobs",
    "tensorrt": "tensorrt_jobs",
    "tensorrt-rtx": "tensorrt_jobs",
    "trtexec": "trtexec_jobs",
}

_loaded: List[Tuple[str, Any]] = []  # the network of the last "infer" job


def run(job: Dict[str, Any]) -> Dict[str, Any]:
    """Execute one job. Raises JobError if the device or the network cannot do it."""
    what = job["do"]
    if what == "probe":
        return {"probe": probing.probe()}
    if what == "look":
        return looking.look(job["folder"])
    if what == "missing":
        return {"missing": _missing(job["runtime"], job["settings"])}
    runtime, settings = _runtime(job["runtime"]), job["settings"]
    if what == "fingerprint":
        return {"fingerprint": runtime.fingerprint(settings)}
    model = job["model"]
    if what == "build":
        return dict(runtime.build(model, settings, job["batches"]))
    if what == "time":
        limits = job["warmup_ms"], job["seconds"], job["iterations"]
        time_runs = runtime.time_application if job.get("application") else runtime.time_runs
        return {"ms": time_runs(model, settings, *limits)}
    if what == "profile":
        return dict(runtime.profile(model, settings, job["runs"]))
    if what == "infer":
        return {"outputs": runtime.infer(_network(runtime, job["runtime"], model, settings), job["inputs"])}
    raise JobError("device", "this agent has no job '%s'" % what)


def _missing(name: str, settings: Dict[str, Any]) -> Any:
    """Which part of a runtime is missing on this device, as a message; None if it is complete."""
    try:
        return _runtime(name).missing(settings)
    except JobError as reason:
        return reason.message


def _runtime(name: str) -> Any:
    if name not in RUNTIMES:
        raise JobError("device", "this bcnet does not execute networks with '%s'" % name)
    return importlib.import_module("." + RUNTIMES[name], __package__)


def _network(runtime: Any, name: str, model: bytes, settings: Dict[str, Any]) -> Any:
    """The loaded network; it is kept until another one is needed."""
    key = name + hashlib.sha256(model).hexdigest() + json.dumps(settings, sort_keys=True)
    if not _loaded or _loaded[0][0] != key:
        del _loaded[:]  # first, because the memory may not hold both
        _loaded.append((key, runtime.load(model, settings)))
    return _loaded[0][1]
