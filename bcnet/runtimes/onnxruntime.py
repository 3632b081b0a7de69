"""ONNX Runtime on the CPU: whole-network times, per-node times from its own profile, and outputs."""

import platform
import re
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from bcnet.errors import DeviceError, one_line

TYPES = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
    "tensor(uint8)": np.uint8,
}
# An event a line. Reading megabytes of JSON into objects took more time than running the networks.
NODE_EVENT = re.compile(r'"cat"\s*:\s*"Node".*?"dur"\s*:\s*(\d+).*?"name"\s*:\s*"([^"]*)_kernel_time"')


def fingerprint() -> dict[str, str]:
    """Runtime version and processor."""
    return {"runtime_version": onnxruntime.__version__, "processor": _processor()}


def time_network(model: bytes, threads: int, warmup_ms: float, seconds: float, iterations: int) -> np.ndarray:
    """Milliseconds of each inference: `seconds` long and `iterations` often, after the warm-up."""
    session = _session(model, threads)
    feed = _constant_input(session)
    end = time.perf_counter() + warmup_ms / 1000
    session.run(None, feed)
    while time.perf_counter() < end:
        session.run(None, feed)
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < iterations or time.perf_counter() < end:
        start = time.perf_counter()
        session.run(None, feed)
        samples.append((time.perf_counter() - start) * 1000)
    return np.array(samples)


def profile_nodes(model: bytes, threads: int, runs: int) -> list[tuple[str, np.ndarray]]:
    """Node names of the optimised graph in order of execution, with their milliseconds in each run.

    The first runs, which still allocate, are left out of the result. What the profiler itself adds to every
    node is taken off, so a node that does next to nothing can come out slightly below zero.
    """
    return [(name, times - _profiler_ms(threads)) for name, times in _profile(model, threads, runs)]


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
        profile = _profile(model, threads, 50)
        plain = time_network(model, threads, 5.0, 0.02, 50)
        profiled = np.sum([times for _, times in profile], axis=0)
        added.append((float(profiled.min()) - float(plain.min())) / len(profile))
    return max(float(np.median(added)), 0.0)


def _profile(model: bytes, threads: int, runs: int) -> list[tuple[str, np.ndarray]]:
    """As the profiler writes it: each node's milliseconds, in whole microseconds."""
    warmup = 3
    with tempfile.TemporaryDirectory() as folder:
        session = _session(model, threads, profile=Path(folder) / "profile")
        feed = _constant_input(session)
        for _ in range(warmup + runs):
            session.run(None, feed)
        try:
            events = NODE_EVENT.findall(Path(session.end_profiling()).read_text(encoding="utf-8"))
        except (OSError, ValueError) as cause:
            raise DeviceError(
                f"ONNX Runtime wrote no readable profile into {folder} ({one_line(cause)}); is the disk full?"
            ) from None
    names = [name for _, name in events]
    per_run, rest = divmod(len(events), warmup + runs)
    if rest or per_run == 0 or names[:per_run] != names[-per_run:]:
        raise DeviceError("ONNX Runtime's profile does not repeat from run to run; it cannot be read")
    durations = np.array([dur for dur, _ in events], dtype=np.float64).reshape(-1, per_run) / 1000
    return [(name, durations[warmup:, index]) for index, name in enumerate(names[:per_run])]


def predictor(model: bytes, threads: int) -> Callable[..., list[np.ndarray]]:
    """Run the network on any number of images, in batches of the size that the file fixes.

    Networks of several inputs take as many arrays, in the file's order. Returns every output, (N, ...).
    """
    session = _session(model, threads)
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
            outputs.append([output[:count] for output in session.run(None, feed)])
        return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]

    return predict


def _session(model: bytes, threads: int, profile: Path | None = None) -> "onnxruntime.InferenceSession":
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as cause:
        raise DeviceError(f"ONNX Runtime cannot load the network: {one_line(cause)}") from None


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
