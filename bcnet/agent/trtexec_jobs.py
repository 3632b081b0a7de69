"""TensorRT through its program `trtexec`, without its Python module: engines, latencies, profiles, outputs.

Each job runs the program, and reads the files that it writes. Standard library only. The flags of each
version are from its source, samples/common/sampleOptions.cpp, and documented in docs/reference/tensorrt.md.
"""

import array
import hashlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from . import kept, look
from .arrays import Packed, min_opt_max
from .errors import JobError, one_line
from .layers import origins
from .onnx_inputs import onnx_inputs
from .programs import ASKING_S, run_program

LOADING_S = 180.0  # time limit besides measuring, to start CUDA and load the engine
BUILDING_S = 3600.0  # int8 on a small Jetson takes many minutes
WARMUP_MS = 200
DYNAMIC = re.compile(r"Dynamic dimensions required for input|Shape missing for input with dynamic shape")
BINDING = re.compile(r"\b(input|output) binding for (.*) with dimensions ([0-9x]+)", re.IGNORECASE)

_versions: Dict[str, Tuple[int, int, int]] = {}  # by program
_devices: List[Dict[str, str]] = []  # this device, once it is known
_bound: Dict[Path, Dict[str, Any]] = {}  # inputs and outputs by engine


def fingerprint(settings: Dict[str, Any]) -> Dict[str, str]:
    """Version of TensorRT, processor (the board or the GPU); driver, L4T and power mode if they are known."""
    version = _dotted(_version(_program(settings)))
    return {"runtime_version": version, "through": "trtexec", **_device(), **look.jetson()}


def build(model: bytes, settings: Dict[str, Any], batches: Sequence[int] = ()) -> Dict[str, Any]:
    """ "engine", the serialised engine of an ONNX file, and "info" about it.

    `batches` are the sizes of a dynamic batch, of which the middle one is optimised for; without any, the
    file's batch is used.
    """
    program = _program(settings)
    path = _engine_file(model, settings, batches)
    facts = json.loads(look.text(path.with_suffix(".json")) or "{}")
    info = {
        "flavour": "tensorrt",
        "through": "trtexec",
        "versions": {"tensorrt": _dotted(_version(program))},
        "compute_capability": facts.get("compute_capability"),
        "precision": settings.get("precision", "fp32"),
        "batches": list(batches),
        "layers": facts.get("layers"),
        "layers_source": "trtexec",
        "gpu": _device()["processor"],
    }
    return {"engine": path.read_bytes(), "info": info}


def time_runs(
    model: bytes, settings: Dict[str, Any], warmup_ms: float, seconds: float, iterations: int
) -> List[float]:
    """Milliseconds of each inference on the GPU, without copies, from the file of `--exportTimes`."""
    command = _measuring(model, settings, warmup_ms, seconds, iterations)
    try:
        return [float(row["computeMs"]) for row in _exported(command, warmup_ms, seconds, iterations)]
    except (KeyError, TypeError, ValueError) as cause:
        raise _unknown_times(cause)


def time_application(
    model: bytes, settings: Dict[str, Any], warmup_ms: float, seconds: float, iterations: int
) -> List[float]:
    """Milliseconds from the start of an inference's first copy to the end of its last, by the GPU's events.

    The network is enqueued, without a graph, and each inference ends before the next one begins
    (`--exposeDMA`). The copies are from and to pinned memory.
    """
    command = _measuring(model, settings, warmup_ms, seconds, iterations, application=True)
    try:
        return [
            float(row["endD2hMs"]) - float(row["startH2dMs"])
            for row in _exported(command, warmup_ms, seconds, iterations)
        ]
    except (KeyError, TypeError, ValueError) as cause:
        raise _unknown_times(cause)


def profile(model: bytes, settings: Dict[str, Any], runs: int) -> Dict[str, Any]:
    """ "names" of the engine's layers and their "ms", ONE row: the medians (before 8.4, means) of `runs`.

    trtexec does not export single runs, so there are no "walls_ms" either. If the engine records a layer's
    ONNX nodes, they follow its name: "__myl_Fc_myl0_3 [ONNX Layer: linear]".
    """
    with tempfile.TemporaryDirectory() as folder:
        command = _measuring(model, settings, WARMUP_MS, 0.0, runs)
        command += ["--exportProfile=profile.json", "--exportLayerInfo=layers.json"]
        if _version(command[0]) < (11,):
            command.append("--separateProfileRun")  # later ones always do
        run_program(command, 2 * LOADING_S + 2 * runs, folder)
        rows = _json(Path(folder, "profile.json"))
        made_of = origins(_layers(Path(folder, "layers.json")) or [])
    try:
        layers = [row for row in rows if "name" in row]
        names = [row["name"] + made_of.get(row["name"], "") for row in layers]
        ms = [float(row.get("medianMs", row["averageMs"])) for row in layers]
    except (KeyError, TypeError, ValueError) as cause:
        raise JobError("device", "the profile that trtexec wrote has an unknown format: %s" % one_line(cause))
    return {"names": names, "ms": [ms], "walls_ms": None}


def load(model: bytes, settings: Dict[str, Any]) -> Dict[str, Any]:
    """The arguments of `infer`: the engine's file, and names and shapes of its inputs and outputs."""
    engine = _engine_file(model, settings)
    return {"engine": engine, "settings": settings, **_bindings(_program(settings), engine)}


def infer(loaded: Dict[str, Any], inputs: List[Packed]) -> List[Packed]:
    """All outputs (N, ...) as float32 for inputs (N, ...), in batches of the engine's size.

    trtexec is started for each batch, and writes six digits of each value.
    """
    program = _program(loaded["settings"])
    names = list(loaded["input"])
    if len(names) != len(inputs):
        raise JobError("network", "the engine has %d inputs, %d were given" % (len(names), len(inputs)))
    if any("," in name for name in names):
        raise JobError("network", "trtexec does not support commas in the names of inputs: %s" % names)
    size = int(loaded["settings"].get("batch") or 1) if loaded["dynamic"] else loaded["input"][names[0]][0]
    count = inputs[0]["shape"][0]
    values: Dict[str, "array.array[float]"] = {name: array.array("f") for name in loaded["output"]}
    shapes: Dict[str, List[int]] = {}
    for start in range(0, count, size):
        with tempfile.TemporaryDirectory() as folder:
            command = _once(program, loaded["engine"]) + ["--exportOutput=outputs.json"]
            if _version(program) >= (11,):
                command.append("--includeDataTransfers")
            for number, packed in enumerate(inputs):
                Path(folder, "input%d" % number).write_bytes(_part(packed, start, size))
            files = ["%s:input%d" % (name, number) for number, name in enumerate(names)]
            command.append("--loadInputs=" + ",".join(files))
            if loaded["dynamic"]:
                sides = [[size] + list(packed["shape"][1:]) for packed in inputs]
                command.append("--shapes=" + _shapes(names, sides))
            run_program(command, LOADING_S, folder)
            for row in _json(Path(folder, "outputs.json")):
                values[row["name"]].extend(float(value) for value in row["values"])
                shapes[row["name"]] = [int(side) for side in row["dimensions"].split("x")]
    packed_outputs = []
    for name in loaded["output"]:
        shape = [count] + shapes[name][1:]
        wanted = count
        for side in shape[1:]:
            wanted *= side
        data = values[name][:wanted].tobytes()
        packed_outputs.append({"dtype": "<f4", "shape": shape, "data": data})
    return packed_outputs


def missing(settings: Dict[str, Any]) -> Optional[str]:
    """What is missing on this device for this runtime, as a message; None if nothing is."""
    try:
        _version(_program(settings))
    except JobError as reason:
        return reason.message
    return None


def _program(settings: Dict[str, Any]) -> str:
    """The path of trtexec: that of the settings, else on PATH, else where JetPack installs it."""
    named = settings.get("trtexec")
    found = shutil.which(named) if named else look.trtexec()
    if not found:
        absent = "trtexec is not on PATH, nor in %s" % os.path.dirname(look.TRTEXEC)
        wanted = "'%s' is not a program" % named if named else absent
        raise JobError("device", "%s; it is part of TensorRT (on a Jetson: apt install tensorrt)" % wanted)
    return os.path.abspath(found)


def _version(program: str) -> Tuple[int, int, int]:
    """The version of TensorRT in the program's first line of output: v8502 is 8.5.2, v100300 is 10.3.0."""
    if program not in _versions:
        output = run_program([program, "--help"], ASKING_S, tempfile.gettempdir())
        number = re.search(r"\[TensorRT v(\d+)\]", output)
        if not number:
            raise JobError("device", "%s does not print its version; is it TensorRT's?" % program)
        value = int(number.group(1))
        step = 1000 if value < 10000 else 10000
        _versions[program] = (value // step, value % step // 100, value % 100)
    return _versions[program]


def _dotted(version: Tuple[int, int, int]) -> str:
    return "%d.%d.%d" % version


def _device() -> Dict[str, str]:
    """The name of a Jetson's board; on other machines the GPU and its driver."""
    if not _devices:
        board = look.board()
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        rows = look.output(query).splitlines()
        if board:
            _devices.append({"processor": board})
        elif rows and "," in rows[0]:
            name, driver = rows[0].split(",")[:2]
            _devices.append({"processor": name.strip(), "driver": driver.strip()})
        else:
            _devices.append({"processor": "unknown"})
    return _devices[0]


def _engine_file(model: bytes, settings: Dict[str, Any], batches: Sequence[int] = ()) -> Path:
    """The path of the engine of an ONNX file, cached or built now; of `model` itself if it is an engine.

    The build of a table measures a network several times, and building takes longer than timing.
    """
    made_by = hashlib.sha256(model).hexdigest(), settings.get("precision", "fp32"), list(batches)
    path = _kept_at(settings, "engine", made_by)
    if path.exists():
        os.utime(str(path))  # marks it as used: others are deleted first
    else:
        inputs = onnx_inputs(model)
        content, facts = (model, {}) if inputs is None else _built(model, inputs, settings, batches)
        kept.write(path.with_suffix(".json"), json.dumps(facts).encode())
        kept.write(path, content)
        if not path.exists():
            raise JobError("device", "engines cannot be written to %s; is the disk full?" % path.parent)
    return path


def _kept_at(settings: Dict[str, Any], kind: str, made_by: Any = None) -> Path:
    """The path of a cached file of that kind, which depends on the version, the device and `made_by`."""
    key = repr((_version(_program(settings)), sorted(_device().items()), made_by))
    return kept.folder("trtexec") / ("%s.%s" % (hashlib.sha256(key.encode()).hexdigest(), kind))


def _built(
    model: bytes, inputs: List[Tuple[str, List[int]]], settings: Dict[str, Any], batches: Sequence[int]
) -> Tuple[bytes, Dict[str, Any]]:
    """Build an engine; returns it with the compute capability and layers that trtexec reports."""
    program, cache = _program(settings), _kept_at(settings, "timing")
    version = _version(program)
    with tempfile.TemporaryDirectory() as folder:
        own_cache = Path(folder, "timing.cache")
        own_cache.write_bytes(kept.read(cache) or b"")
        Path(folder, "model.onnx").write_bytes(model)
        command = [
            program,
            "--onnx=model.onnx",
            "--saveEngine=model.engine",
            "--timingCacheFile=timing.cache",
        ]
        command += ["--profilingVerbosity=detailed", "--exportLayerInfo=layers.json"]
        command.append("--skipInference" if version >= (8, 6) else "--buildOnly")
        precision = settings.get("precision", "fp32")
        if (10,) <= version < (11,):
            command.append("--stronglyTyped")  # use the file's types; later versions always do
        elif version < (10,) and precision != "fp32":
            command.append("--" + precision)
        if batches:
            names = [name for name, _ in inputs]
            for word, size in zip(("min", "opt", "max"), min_opt_max(batches)):
                sides = [_at(name, shape, size) for name, shape in inputs]
                command.append("--%sShapes=%s" % (word, _shapes(names, sides)))
        output = run_program(command, BUILDING_S, folder)
        if not Path(folder, "model.engine").exists():
            raise JobError("network", "trtexec succeeded but wrote no engine")
        kept.write(cache, own_cache.read_bytes())
        capability = re.search(r"Compute Capability: ([\d.]+)", output)
        facts = {
            "compute_capability": capability.group(1) if capability else None,
            "layers": _layers(Path(folder, "layers.json")),
        }
        return Path(folder, "model.engine").read_bytes(), facts


def _at(name: str, shape: List[int], batch: int) -> List[int]:
    """An input's shape at a batch size. Raises JobError if the file has a fixed batch."""
    if not shape or shape[0] > 0:
        raise JobError("network", "input '%s' has a fixed batch in the ONNX file: %s" % (name, shape))
    return [batch] + shape[1:]


def _shapes(names: Sequence[str], shapes: Sequence[Sequence[int]]) -> str:
    return ",".join("%s:%s" % (name, "x".join(map(str, shape))) for name, shape in zip(names, shapes))


def _bindings(program: str, engine: Path) -> Dict[str, Any]:
    """An engine's "input" and "output" {name: shape}, as trtexec reports them; whether it is "dynamic"."""
    if engine not in _bound:
        with tempfile.TemporaryDirectory() as folder:
            output = run_program(_once(program, engine), LOADING_S, folder)
        found: Dict[str, Any] = {"input": {}, "output": {}}
        for kind, name, sides in BINDING.findall(output):
            found[kind.lower()][name] = [int(side) for side in sides.split("x")]
        if not found["input"] or not found["output"]:
            raise JobError("device", "trtexec does not print the engine's inputs and outputs: a new version?")
        found["dynamic"] = DYNAMIC.search(output) is not None
        _bound[engine] = found
    return _bound[engine]


def _exported(command: List[str], warmup_ms: float, seconds: float, iterations: int) -> List[Any]:
    """The rows of `--exportTimes`, one per inference. Raises JobError, or another error of the format."""
    limit_s = LOADING_S + 3 * (warmup_ms / 1000 + seconds) + iterations
    with tempfile.TemporaryDirectory() as folder:
        run_program(command + ["--exportTimes=times.json"], limit_s, folder)
        rows = _json(Path(folder, "times.json"))
    # Before 8.5, the inferences of the warm-up are exported, too.
    return [row for row in rows if row["startComputeMs"] >= int(warmup_ms)] or list(rows)


def _unknown_times(cause: Exception) -> JobError:
    return JobError("device", "the times that trtexec wrote have an unknown format: %s" % one_line(cause))


def _measuring(
    model: bytes,
    settings: Dict[str, Any],
    warmup_ms: float,
    seconds: float,
    iterations: int,
    application: bool = False,
) -> List[str]:
    """The command that times a network. Every option is given, because defaults differ between versions.

    As an `application` does it: with copies, without a graph, one inference after the other.
    """
    program, engine = _program(settings), _engine_file(model, settings)
    version = _version(program)
    command = [program, "--loadEngine=%s" % engine, "--warmUp=%d" % warmup_ms, "--iterations=%d" % iterations]
    # Before 8.4 it accepts only whole seconds.
    command.append("--duration=%g" % seconds if version >= (8, 4) else "--duration=%d" % -(-seconds // 1))
    old = version < (11,)  # later versions use graphs, spin and do not copy if nothing is given
    if application:
        command += ["--exposeDMA"] + (
            ["--useSpinWait"] if old else ["--includeDataTransfers", "--noCudaGraph"]
        )
    elif old:
        command += ["--useCudaGraph", "--useSpinWait", "--noDataTransfers"]
    batch = settings.get("batch") or 1
    if batch > 1:  # the default of a dynamic batch is 1
        bound = _bindings(program, engine)
        if bound["dynamic"]:
            sides = [[batch] + shape[1:] for shape in bound["input"].values()]
            command.append("--shapes=" + _shapes(list(bound["input"]), sides))
    return command


def _once(program: str, engine: Path) -> List[str]:
    return [program, "--loadEngine=%s" % engine, "--warmUp=0", "--duration=0", "--iterations=1"]


def _json(path: Path) -> Any:
    """The content of a JSON file of trtexec, in which names are not escaped, and missing values are nan."""
    try:
        text = re.sub(r"(: |\[ |, )-?nan\b", r"\1NaN", path.read_text(encoding="utf-8", errors="replace"))
        return json.loads(text, strict=False)
    except (OSError, ValueError) as cause:
        raise JobError("device", "%s, written by trtexec, cannot be read: %s" % (path.name, one_line(cause)))


def _layers(path: Path) -> Any:
    """The engine's layers from the file of `--exportLayerInfo`; None if trtexec wrote none."""
    content = _json(path) if path.exists() else None
    return content.get("Layers") if isinstance(content, dict) else None


def _part(packed: Packed, start: int, size: int) -> bytes:
    """The bytes of `size` items of an array from `start` on, padded with zeros."""
    data = packed["data"]
    each = len(data) // packed["shape"][0]
    return bytes(data[start * each : (start + size) * each]).ljust(size * each, b"\0")
