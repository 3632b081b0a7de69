"""TensorRT on a device, through its Python modules `tensorrt` (8.5, 8.6, 10, 11) and `tensorrt_rtx`.

Their interfaces are the same; flags are looked up by name, because their bits differ between versions.
Engines are cached on the device, so that a network is built once for all of its jobs. Errors have TensorRT's
messages.
"""

import json
import re
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from . import look
from .arrays import Packed, batches, pack, unpack
from .cuda import cuda
from .errors import JobError
from .layers import origins
from .tensorrt_engine import engine_of
from .tensorrt_module import Api, api_of
from .tensorrt_network import Network
from .timing import timed

WARMUP_RUNS = 3  # before a profile
CLOCKS = Path("/sys/class/devfreq")  # on a Jetson


def fingerprint(settings: Dict[str, Any]) -> Dict[str, str]:
    """Version of TensorRT, GPU, its cache in megabytes, the CUDA driver; on a Jetson also power mode and L4T.

    All values are strings. Clocks and cache are included if they are known.
    """
    api, gpu = api_of(settings), cuda()
    found = gpu.facts()
    answer = {
        "runtime_version": api.version,
        "processor": look.board() or found["name"],
        "compute_capability": found["compute_capability"],
        "cuda_driver": found["cuda_driver"],
        "through": gpu.through,
    }
    answer.update(look.jetson())
    if "cache_mb" in found:
        answer["cache_mb"] = found["cache_mb"]
    clocks = _clocks(found["address"])
    if clocks:
        answer["gpu_clocks"] = clocks
    return answer


def build(model: bytes, settings: Dict[str, Any], batches: Sequence[int] = ()) -> Dict[str, Any]:
    """ "engine", the serialised engine of an ONNX file, and "info" about it.

    `batches` are the sizes of a dynamic batch, of which the middle one is optimised for; without any, the
    file's shapes are used. TensorRT for RTX builds ahead of time for settings["compute_capability"], on any
    machine.
    """
    api = api_of(settings)
    content = engine_of(api, model, settings, batches)
    layers, source = _layers(api, content)
    info = {
        "flavour": settings["runtime"],
        "versions": {settings["runtime"]: api.version},
        "compute_capability": settings.get("compute_capability"),
        "precision": settings["precision"],
        "batches": list(batches),
        "layers": layers,
        "layers_source": source,
    }
    try:
        facts = cuda().facts()
        info["gpu"] = facts["name"]
        if settings["runtime"] == "tensorrt" or not info["compute_capability"]:
            info["compute_capability"] = facts["compute_capability"]
    except JobError:
        info["gpu"] = None  # built ahead of time
    return {"engine": content, "info": info}


def time_runs(
    model: bytes, settings: Dict[str, Any], warmup_ms: float, seconds: float, iterations: int
) -> List[float]:
    """Milliseconds of each inference on the GPU, without copies, for at least `seconds` and `iterations`.

    The network is one CUDA graph between two events; the next inference is launched before the previous one
    has finished, so that the GPU is never idle, as in trtexec.
    """
    network = load(model, settings)
    network.fill()
    network.enqueue()
    network.gpu.synchronize()
    launch = network.gpu.captured(network.try_enqueue)
    if launch is None:
        raise JobError("network", network.api.message("it cannot be captured in a CUDA graph"))
    gpu = network.gpu
    pairs = gpu.events
    started = waited = 0
    samples: List[float] = []
    warm = time.perf_counter() + warmup_ms / 1000
    end = None
    while end is None or len(samples) < iterations or time.perf_counter() < end:
        while started < waited + len(pairs):
            start, stop = pairs[started % len(pairs)]
            gpu.record(start)
            launch()
            gpu.record(stop)
            started += 1
        ms = gpu.elapsed_ms(*pairs[waited % len(pairs)])
        waited += 1
        if end is not None:
            samples.append(ms)
        elif time.perf_counter() >= warm:
            end = time.perf_counter() + seconds
    gpu.synchronize()
    return samples


def time_application(
    model: bytes, settings: Dict[str, Any], warmup_ms: float, seconds: float, iterations: int
) -> List[float]:
    """Milliseconds of each inference by the clock of an application, for at least `seconds`, `iterations`.

    Inputs are copied to the GPU, the network is enqueued, without a graph, and outputs are copied back before
    the next inference begins. Its arrays are numpy's own, so their memory is not pinned.
    """
    network = load(model, settings)
    inputs = network.fill()
    outputs = network.empty_outputs()

    def infer_once(arrays: List[Any]) -> None:
        network.put(arrays)
        network.enqueue()
        network.gpu.synchronize()
        network.get(outputs)

    def copied() -> List[Any]:
        return [array.copy() for array in inputs]

    return timed(infer_once, copied, warmup_ms, seconds, iterations)


def profile(model: bytes, settings: Dict[str, Any], runs: int) -> Dict[str, Any]:
    """ "names" of the engine's layers, their "ms" [runs][layers], "walls_ms", wall-clock times of the runs.

    If the engine records a layer's ONNX nodes, they follow its name: "fused_3 [ONNX Layer: conv1]".
    """
    network = load(model, settings)
    api, gpu = network.api, network.gpu
    network.fill()
    network.enqueue()
    gpu.synchronize()
    rows: List[Tuple[str, float]] = []
    network.context.profiler = profiler = api.profiler(rows)
    network.context.enqueue_emits_profile = False
    network.enqueue()  # once with the profiler's events, before the capture
    gpu.synchronize()
    launch = gpu.captured(network.try_enqueue) or network.enqueue
    found, walls = [], []
    for run in range(WARMUP_RUNS + runs):
        begun = time.perf_counter()
        launch()
        gpu.synchronize()
        wall = (time.perf_counter() - begun) * 1000
        del rows[:]
        if not network.context.report_to_profiler() or not rows:
            raise JobError("device", api.message("the profiler reports nothing"))
        if run >= WARMUP_RUNS:
            walls.append(wall)
            found.append(list(rows))
    del profiler
    names = [name for name, _ in found[0]]
    if any([name for name, _ in row] != names for row in found):
        raise JobError("device", "TensorRT's profile differs between runs; it cannot be used")
    made_of = origins(_inspected(api, network.engine))
    return {
        "names": [name + made_of.get(name, "") for name in names],
        "ms": [[ms for _, ms in row] for row in found],
        "walls_ms": walls,
    }


def load(model: bytes, settings: Dict[str, Any]) -> Network:
    """The engine that `infer` runs, with its buffers on the GPU. An ONNX file is built first."""
    api = api_of(settings)
    return Network(api, engine_of(api, model, settings, ()), settings)


def infer(network: Network, inputs: List[Packed]) -> List[Packed]:
    """All outputs (N, ...) for inputs (N, ...), in batches of the engine's size, or its largest size."""
    import numpy as np

    arrays = [unpack(packed) for packed in inputs]
    if len(arrays) != len(network.inputs):
        wanted = ", ".join(network.inputs)
        raise JobError("network", "the engine has inputs %s; %d were given" % (wanted, len(arrays)))
    outputs = []
    size = min(network.max_batch, max(network.min_batch, len(arrays[0])))
    for parts, count in batches(arrays, size):
        outputs.append([array[:count] for array in network.run(parts)])
    return [pack(np.concatenate(parts)) for parts in zip(*outputs)]


def missing(settings: Dict[str, Any]) -> Optional[str]:
    """What is missing on this device for this runtime, as a message; None if nothing is."""
    try:
        api_of(settings)
        cuda()
    except JobError as reason:
        return reason.message
    return None


def _layers(api: Api, content: bytes) -> Tuple[Optional[List[Any]], str]:
    """The engine's layers and their source: the inspector, or, without a GPU, the builder's log."""
    listed = api.listed
    try:
        cuda()
    except JobError as reason:
        layers = [_listed(line) for line in listed.splitlines() if line.startswith("Name: ")]
        if layers:
            return layers, "the builder's log: %s" % reason.message
        return None, reason.message
    engine = api.trt.Runtime(api.log).deserialize_cuda_engine(content)
    if engine is None:
        return None, api.message("cannot load the engine")
    return _inspected(api, engine), "the engine inspector"


def _inspected(api: Api, engine: Any) -> List[Any]:
    """The engine inspector's layers: objects, or only names if the engine has no details."""
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(api.trt.LayerInformationFormat.JSON)
    try:
        return list(json.loads(text, strict=False).get("Layers", []))
    except (AttributeError, ValueError):
        return []


def _listed(line: str) -> Dict[str, str]:
    """A layer of the builder's log, with the fields of the inspector's JSON."""
    name, _, rest = line[len("Name: ") :].partition(", LayerType: ")
    return {"Name": name, "LayerType": rest.partition(",")[0], "Metadata": rest.rpartition("Metadata: ")[2]}


def _clocks(address: str) -> str:
    """The range of the GPU's clock: on a Jetson the governor's, else the limits that nvidia-smi reports."""
    for path in sorted(CLOCKS.glob("*")):
        if re.search(r"\.(gpu|ga10b|gv11b|gp10b|gm20b)$|gpu-gpc", path.name):
            limits = [look.text(path / ("%s_freq" % which)).strip() for which in ("min", "max")]
            if all(limits):
                return "%s to %s MHz" % tuple(str(int(limit) // 1000000) for limit in limits)
    fields = "clocks.max.sm,clocks.max.memory,power.limit,driver_version"
    command = ["nvidia-smi", "--query-gpu=" + fields, "--format=csv,noheader", "--id=" + address]
    return look.output(command).strip()
