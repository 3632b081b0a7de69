"""ONNX Runtime on a device: latencies of whole networks, its profile of nodes, and outputs."""

import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from .arrays import FREE_BATCH, Packed, batches, pack, unpack
from .errors import JobError, one_line
from .look import last_level_cache, processor
from .timing import timed

CPU = "CPUExecutionProvider"
OLDEST = (1, 12)  # the first version that reads opset 17, which bcnet writes at least
WARMUP_RUNS = 3  # before a profile, because the first runs allocate memory
# ONNX Runtime writes one event per line.
NODE_EVENT = re.compile(r'"cat"\s*:\s*"Node".*?"dur"\s*:\s*(-?\d+).*?"name"\s*:\s*"([^"]*)_kernel_time"')
TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int16)": "int16",
    "tensor(int8)": "int8",
    "tensor(uint64)": "uint64",
    "tensor(uint32)": "uint32",
    "tensor(uint16)": "uint16",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


def fingerprint(settings: Dict[str, Any]) -> Dict[str, str]:
    """Runtime version, processor, and the size of its last-level cache in megabytes if it is known."""
    found = {"runtime_version": str(_runtime().__version__), "processor": processor()}
    if settings["provider"] == "cpu":
        found.update(last_level_cache())
    return found


def build(model: bytes, settings: Dict[str, Any], batches: Sequence[int] = ()) -> Dict[str, Any]:
    """ "info" about an ONNX file, after loading it once as a check. It needs no building."""
    _session(model, settings)
    info = {
        "flavour": "onnxruntime",
        "versions": {"onnxruntime": str(_runtime().__version__)},
        "batches": list(batches),
        "layers": None,
        "layers_source": "ONNX Runtime optimises the file each time it is loaded",
    }
    return {"info": info}


def time_runs(
    model: bytes, settings: Dict[str, Any], warmup_ms: float, seconds: float, iterations: int
) -> List[float]:
    """Milliseconds of each inference, for at least `seconds` and `iterations`, after the warm-up."""
    session = _session(model, settings)
    feed = _constant_input(session)
    return timed(lambda given: _run(session, given), lambda: feed, warmup_ms, seconds, iterations)


def time_application(
    model: bytes, settings: Dict[str, Any], warmup_ms: float, seconds: float, iterations: int
) -> List[float]:
    """The same on new arrays for each inference, as an application has them."""
    session = _session(model, settings)
    feed = _constant_input(session)

    def copied() -> Dict[str, Any]:
        return {name: array.copy() for name, array in feed.items()}

    return timed(lambda given: _run(session, given), copied, warmup_ms, seconds, iterations)


def profile(model: bytes, settings: Dict[str, Any], runs: int) -> Dict[str, Any]:
    """ "names" of nodes, their "ms" [runs][nodes], wall-clock times of the runs, "walls_ms" [runs]."""
    walls = []
    with tempfile.TemporaryDirectory() as folder:
        session = _session(model, settings, profile_prefix=str(Path(folder) / "profile"))
        feed = _constant_input(session)
        for _ in range(WARMUP_RUNS + runs):
            start = time.perf_counter()
            _run(session, feed)
            walls.append((time.perf_counter() - start) * 1000)
        try:
            events = _node_events(Path(session.end_profiling()).read_text(encoding="utf-8"))
        except (OSError, ValueError) as cause:
            raise JobError(
                "device",
                "the profile of ONNX Runtime in %s cannot be read (%s); is the disk full?"
                % (folder, one_line(cause)),
            )
    names = [name for _, name in events]
    per_run, rest = divmod(len(events), WARMUP_RUNS + runs)
    if rest or per_run == 0 or names[:per_run] != names[-per_run:]:
        raise JobError("device", "ONNX Runtime's profile differs between runs; it cannot be used")
    ms = [int(dur) / 1000 for dur, _ in events]
    first = WARMUP_RUNS * per_run
    return {
        "names": names[:per_run],
        "ms": [ms[start : start + per_run] for start in range(first, len(ms), per_run)],
        "walls_ms": walls[WARMUP_RUNS:],
    }


def infer(session: Any, inputs: List[Packed]) -> List[Packed]:
    """All outputs (N, ...) for inputs (N, ...), in batches of the file's size if that is fixed."""
    import numpy as np

    nodes = session.get_inputs()
    outputs = []
    arrays = [unpack(packed) for packed in inputs]
    fixed = nodes[0].shape[0]
    size = fixed if isinstance(fixed, int) else min(len(arrays[0]), FREE_BATCH)
    for parts, count in batches(arrays, size):
        feed = {node.name: part for node, part in zip(nodes, parts)}
        outputs.append([output[:count] for output in _run(session, feed)])
    return [pack(np.concatenate(parts)) for parts in zip(*outputs)]


def load(model: bytes, settings: Dict[str, Any]) -> Any:
    """The session that `infer` runs."""
    return _session(model, settings)


def missing(settings: Dict[str, Any]) -> Optional[str]:
    """What is missing on this device for this runtime, as a message; None if nothing is."""
    try:
        provider_named(settings.get("provider", "cpu"))
    except JobError as reason:
        return reason.message
    version = str(_runtime().__version__)
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST:
        return (
            "ONNX Runtime %s cannot read bcnet's files (ONNX opset 17); install 1.12 or newer, which needs "
            "Python 3.7" % version
        )
    return None


def provider_named(name: str) -> str:
    """ONNX Runtime's name of an execution provider: `cuda` is CUDAExecutionProvider.

    Raises JobError, with the available ones, if it is not available.
    """
    suffix = "executionprovider"
    available = {}
    for full in _runtime().get_available_providers():
        short = full.lower()
        available[short[: -len(suffix)] if short.endswith(suffix) else short] = full
    wanted = name.lower()
    wanted = wanted[: -len(suffix)] if wanted.endswith(suffix) else wanted
    if wanted not in available:
        raise JobError(
            "device",
            "ONNX Runtime on this device has no execution provider '%s', only %s; install the package that "
            "contains it, or change `provider` in the hardware profile" % (name, ", ".join(available)),
        )
    return str(available[wanted])


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as cause:
        raise JobError("device", "ONNX Runtime is missing (%s); install it: pip install onnxruntime" % cause)
    return onnxruntime


def _session(model: bytes, settings: Dict[str, Any], profile_prefix: Optional[str] = None) -> Any:
    onnxruntime = _runtime()
    wanted = provider_named(settings["provider"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings["threads"]
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are also raised
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix
    try:
        session = onnxruntime.InferenceSession(model, options, providers=[wanted])
    except Exception as cause:
        raise JobError("network", "ONNX Runtime cannot load the network: %s" % one_line(cause))
    if wanted != CPU and wanted not in _used(session):
        raise JobError(
            "device",
            "ONNX Runtime would run the whole network on the CPU: %s supports none of its nodes, or cannot "
            "start (device or driver missing); change `provider` in the hardware profile" % wanted,
        )
    return session


def _used(session: Any) -> Any:
    """The execution providers that run nodes of the network; before 1.24, all that could be started."""
    assignment = getattr(session, "get_provider_graph_assignment_info", None)
    if assignment is not None:
        return {part.ep_name for part in assignment() if part.get_nodes()}
    return set(session.get_providers())


def _run(session: Any, feed: Dict[str, Any]) -> List[Any]:
    try:
        return list(session.run(None, feed))
    except Exception as cause:
        raise JobError("network", "ONNX Runtime cannot run the network: %s" % one_line(cause))


def _constant_input(session: Any) -> Dict[str, Any]:
    import numpy as np

    rng = np.random.RandomState(0)
    feed = {}
    for node in session.get_inputs():
        kind = TYPES.get(node.type, "float32")
        shape = [side if isinstance(side, int) else 1 for side in node.shape]
        if kind.startswith("float"):
            feed[node.name] = rng.standard_normal(shape).astype(kind)
        else:  # an index or a flag: zero is always valid
            feed[node.name] = np.zeros(shape, kind)
    return feed


def _node_events(text: str) -> List[Tuple[str, str]]:
    """Microseconds and name of each executed node, from the profile's JSON.

    Parsing megabytes of JSON takes more time than running the networks, so the text is matched, unless
    another version of the runtime writes the keys in another order.
    """
    found = NODE_EVENT.findall(text)
    if found:
        return list(found)
    return [
        (str(event["dur"]), str(event["name"])[: -len("_kernel_time")])
        for event in json.loads(text)
        if event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time")
    ]
