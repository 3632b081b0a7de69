"""ONNX Runtime: whole-network times, per-node times from its own profile, and outputs.

It runs on the CPU, or through another of its execution providers, by name, where that is installed.
"""

import json
import platform
import re
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from bcnet.errors import DeviceError, NetworkError, one_line

TYPES = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
    "tensor(uint8)": np.uint8,
}
CPU = "CPUExecutionProvider"
ATTEMPTS = 4  # profiles of a network whose clock jumped
# An event a line, as ONNX Runtime writes it.
NODE_EVENT = re.compile(r'"cat"\s*:\s*"Node".*?"dur"\s*:\s*(-?\d+).*?"name"\s*:\s*"([^"]*)_kernel_time"')


def fingerprint() -> dict[str, str]:
    """Runtime version and processor."""
    return {"runtime_version": onnxruntime.__version__, "processor": _processor()}


def time_network(
    model: bytes, threads: int, warmup_ms: float, seconds: float, iterations: int, provider: str = "cpu"
) -> np.ndarray:
    """Milliseconds of each inference: `seconds` long and `iterations` often, after the warm-up.

    Raises DeviceError where the runtime fails.
    """
    session = _session(model, threads, provider)
    feed = _constant_input(session)
    end = time.perf_counter() + warmup_ms / 1000
    _run(session, feed)
    while time.perf_counter() < end:
        _run(session, feed)
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < iterations or time.perf_counter() < end:
        start = time.perf_counter()
        _run(session, feed)
        samples.append((time.perf_counter() - start) * 1000)
    return np.array(samples)


def profile_nodes(
    model: bytes, threads: int, runs: int, provider: str = "cpu"
) -> list[tuple[str, np.ndarray]]:
    """Node names of the optimised graph in order of execution, with their milliseconds in each run.

    The first runs, which still allocate, are left out of the result. Runs during which the profiler's clock
    jumped are dropped and made again. Raises DeviceError where the runtime fails, where the clock keeps on
    jumping, and where the provider runs the network as one block. What the profiler itself adds to every node
    is taken off, so a node that does next to nothing can come out slightly below zero.
    """
    names: list[str] = []
    kept = np.empty((0, 0))
    for _ in range(ATTEMPTS):
        names, durations, walls = _profile(model, threads, runs, provider)
        sound = durations[plausible(durations, walls)]
        kept = np.concatenate([kept, sound]) if len(kept) else sound
        if len(kept) >= runs:
            added = _profiler_ms(threads) if provider_named(provider) == CPU else 0.0
            return [(name, kept[:runs, index] - added) for index, name in enumerate(names)]
    raise DeviceError(
        f"ONNX Runtime's profile does not agree with this machine's monotonic clock in {ATTEMPTS * runs} "
        "runs: the system clock is being set; measure again when it is steady"
    )


def plausible(durations: np.ndarray, walls: np.ndarray) -> np.ndarray:
    """Which runs (N,) have node times (N, nodes) that can be: none below zero, no more in sum than the run.

    `walls` (N,) are the runs' milliseconds by a clock that cannot jump; the profiler's is the system's, and
    counts whole microseconds.
    """
    rounding = durations.shape[1] / 1000
    possible: np.ndarray = (durations >= 0).all(1) & (durations.sum(1) <= walls + rounding)
    return possible


@cache
def _profiler_ms(threads: int) -> float:
    """What profiling adds to each node: a chain of small layers, profiled, against the same without.

    It is some 1.7 microseconds where a layer at 64 pixels takes 4, and how many nodes the runtime makes of
    a layer depends on its width, so it is no constant of the network that a calibration could find.
    """
    count, sides = 100, [1, 16, 1, 1]
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for k in range(count):
        kernel = rng.standard_normal((16, 16, 1, 1), dtype=np.float32) / 4
        weights += [
            numpy_helper.from_array(kernel, f"w{k}"),
            numpy_helper.from_array(kernel[:, 0, 0, 0], f"b{k}"),
        ]
        nodes.append(helper.make_node("Conv", [f"x{k}", f"w{k}", f"b{k}"], [f"x{k + 1}"], name=f"x{k + 1}"))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sides) for name in ("x0", f"x{count}")]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:], weights)
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
    added = []
    for _ in range(3):  # the lowest of each: other work only adds time
        names, durations, walls = _profile(model, threads, 50, "cpu")
        profiled = durations[plausible(durations, walls)].sum(1)
        plain = time_network(model, threads, 5.0, 0.02, 50)
        if len(profiled):
            added.append((float(profiled.min()) - float(plain.min())) / len(names))
    return max(float(np.median(added or [0.0])), 0.0)


def _profile(
    model: bytes, threads: int, runs: int, provider: str
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of nodes, their ms in each run (runs, nodes), and the runs' own ms (runs,)."""
    warmup = 3
    walls = []
    with tempfile.TemporaryDirectory() as folder:
        session = _session(model, threads, provider, profile=Path(folder) / "profile")
        feed = _constant_input(session)
        for _ in range(warmup + runs):
            start = time.perf_counter()
            _run(session, feed)
            walls.append((time.perf_counter() - start) * 1000)
        try:
            events = _node_events(Path(session.end_profiling()).read_text(encoding="utf-8"))
        except (OSError, ValueError) as cause:
            raise DeviceError(
                f"ONNX Runtime wrote no readable profile into {folder} ({one_line(cause)}); is the disk full?"
            ) from None
    names = [name for _, name in events]
    per_run, rest = divmod(len(events), warmup + runs)
    if rest or per_run == 0 or names[:per_run] != names[-per_run:]:
        raise DeviceError("ONNX Runtime's profile does not repeat from run to run; it cannot be read")
    is_block = per_run == 1 and len(onnx.load_from_string(model).graph.node) > 1
    if is_block and provider_named(provider) != CPU:
        raise DeviceError(
            f"execution provider '{provider}' runs the network as one block: it gives no times of layers, so "
            "no latency table can be measured on it"
        )
    durations = np.array([dur for dur, _ in events], dtype=np.float64).reshape(-1, per_run) / 1000
    return names[:per_run], durations[warmup:], np.array(walls[warmup:])


def _node_events(text: str) -> list[tuple[str, str]]:
    """Microseconds and name of each node that was run, from the profile's JSON.

    Reading megabytes of JSON into objects takes more time than running the networks, so lines are matched,
    unless another version of the runtime writes them in another order.
    """
    return NODE_EVENT.findall(text) or [
        (str(event["dur"]), str(event["name"]).removesuffix("_kernel_time"))
        for event in json.loads(text)
        if event.get("cat") == "Node"
    ]


def predictor(model: bytes, threads: int, provider: str = "cpu") -> Callable[..., list[np.ndarray]]:
    """Run the network on any number of images, in batches of the size that the file fixes.

    Networks of several inputs take as many arrays, in the file's order. Returns every output, (N, ...).
    """
    session = _session(model, threads, provider)
    nodes = session.get_inputs()
    batch = nodes[0].shape[0]

    def predict(*inputs: np.ndarray) -> list[np.ndarray]:
        outputs = []
        for start in range(0, len(inputs[0]), batch):
            feed, count = {}, 0
            for node, array in zip(nodes, inputs, strict=True):
                part = array[start : start + batch]
                count = len(part)
                padding = np.zeros((batch - count, *part.shape[1:]), part.dtype)
                feed[node.name] = np.ascontiguousarray(
                    np.concatenate([part, padding]) if count < batch else part
                )
            outputs.append([output[:count] for output in _run(session, feed)])
        return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]

    return predict


def provider_named(name: str) -> str:
    """ONNX Runtime's own name of an execution provider: `cuda` is CUDAExecutionProvider.

    Raises DeviceError with those that are installed.
    """
    suffix = "executionprovider"
    available = {p.lower().removesuffix(suffix): p for p in onnxruntime.get_available_providers()}
    found: str | None = available.get(name.lower().removesuffix(suffix))
    if found is None:
        raise DeviceError(
            f"ONNX Runtime has no execution provider '{name}' here, only {', '.join(available)}; "
            "install the package that brings it, or change `provider` in the hardware profile"
        )
    return found


def _session(
    model: bytes, threads: int, provider: str, profile: Path | None = None
) -> "onnxruntime.InferenceSession":
    wanted = provider_named(provider)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # it raises what it logs as an error
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    try:
        session = onnxruntime.InferenceSession(model, options, providers=[wanted])
    except Exception as cause:
        raise NetworkError(f"ONNX Runtime cannot load the network: {one_line(cause)}") from None
    if wanted != CPU and wanted not in _used(session):
        raise DeviceError(
            f"ONNX Runtime would run the whole network on the CPU: {wanted} takes none of it, or cannot "
            "start (its device or driver is missing); change `provider` in the hardware profile"
        )
    return session


def _used(session: "onnxruntime.InferenceSession") -> set[str]:
    """The execution providers that run some of the network; before 1.24, those that could be started."""
    if wanted := getattr(session, "get_provider_graph_assignment_info", None):
        return {part.ep_name for part in wanted() if part.get_nodes()}
    return set(session.get_providers())


def _run(session: "onnxruntime.InferenceSession", feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    try:
        outputs: list[np.ndarray] = session.run(None, feed)
    except Exception as cause:
        raise NetworkError(f"ONNX Runtime cannot run the network: {one_line(cause)}") from None
    return outputs


def _constant_input(session: "onnxruntime.InferenceSession") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    feed = {}
    for node in session.get_inputs():
        if node.type == "tensor(float)":
            feed[node.name] = rng.standard_normal(node.shape, dtype=np.float32)
        else:  # an index or a switch: zero is always one that exists
            feed[node.name] = np.zeros(node.shape, TYPES.get(node.type, np.float32))
    return feed


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
