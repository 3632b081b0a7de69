"""Record a device's answers in a file, and replay them without the device.

The file has lines sealed by `bcnet.sealed`, compressed if its name ends in .gz. The first line identifies a
recording, each other line is a job with its result:

    {"key": HASH, "job": IN WORDS, "date": "2026-11-25", "answer": {...}}
    {"key": HASH, "job": IN WORDS, "date": "2026-11-25", "network_error": "one line"}

`bytes` in an answer are {"base64": TEXT}. The hash covers the whole job (kind, runtime, settings, limits),
with ONNX files by their structure: nodes, shapes of weights and inputs, but not the weights' values, so that
a recording stays valid after retraining. Outputs and engines depend on values: for such jobs, the hash covers
the whole content of file and inputs. Lines of the same job are replayed in order, then again from the first
one.
"""

import base64
import datetime
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import onnx
from onnx import AttributeProto, ModelProto, TensorProto, numpy_helper

from bcnet.errors import DeviceError, NetworkError
from bcnet.locks import locked
from bcnet.plain import plain
from bcnet.runtimes.answers import checked
from bcnet.runtimes.device import Device, Job
from bcnet.sealed import SealedLines

KIND = {"bcnet_recording": 2}
OF_VALUES = frozenset(("infer", "build"))  # jobs whose answers depend on weights


class Recording:
    """A device that also writes its answers to a file, each one before it is returned."""

    def __init__(self, device: Device, path: Path) -> None:
        """Append to `path` if it exists. Raises DeviceError if it is another kind of file, or was changed."""
        self.device, self.path = device, path
        self._writing = threading.Lock()
        self._lines = _lines(path)

    @property
    def workers(self) -> int:
        """The number of jobs that can be executed at once."""
        return self.device.workers

    def call(self, job: Job, limit_s: float) -> dict[str, Any]:
        """Execute one job on the device, and record its answer, or why the network cannot be run."""
        try:
            answer = self.device.call(job, limit_s)
        except NetworkError as reason:
            self._keep(job, {"network_error": str(reason)})
            raise
        self._keep(job, {"answer": _to_json(answer)})
        return answer

    def _keep(self, job: Job, result: Mapping[str, Any]) -> None:
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        entry = {"key": key_of(job), "job": in_words(job), "date": date, **result}
        with self._writing:
            try:
                with locked(self.path, wait=True):
                    if not self.path.exists() or self.path.stat().st_size != self._lines.kept:
                        self._lines = _lines(self.path)  # another process has changed or removed it
                    self._lines.append(entry)
            except OSError as cause:
                raise DeviceError(f"{self.path} cannot be written: {cause.strerror}") from None


class Recorded:
    """A device that replays the answers of a file, without executing anything."""

    workers = 1

    def __init__(self, path: Path) -> None:
        """Raises DeviceError if the file does not exist, is not a recording, or was changed."""
        self.path = path
        self.entries: dict[str, list[dict[str, Any]]] = {}
        if not path.exists():
            raise DeviceError(f"{path} cannot be read: No such file or directory")
        for entry in _lines(path).values:
            self.entries.setdefault(entry["key"], []).append(entry)
        self._given: Counter[str] = Counter()
        self._reading = threading.Lock()

    def call(self, job: Job, limit_s: float) -> dict[str, Any]:
        """The next recorded answer to a job. Raises NetworkError if that was one, DeviceError without any."""
        key = key_of(job)
        with self._reading:
            own = self.entries.get(key)
            if not own:
                raise DeviceError(
                    f"{self.path} has no answer to this job: {in_words(job)}; record it on the device: put "
                    f'`record_to = "{self.path}"` instead of `recording` in its hardware profile, and '
                    "run this command there"
                )
            entry = own[self._given[key] % len(own)]
            self._given[key] += 1
        if "network_error" in entry:
            raise NetworkError(plain(str(entry["network_error"])))
        try:
            answer = _from_json(entry.get("answer"))
        except (ValueError, TypeError, RecursionError) as cause:
            raise DeviceError(
                f"{self.path}: a recorded answer is not base64 ({cause}); record again"
            ) from None
        return checked(str(self.path), job, answer)


def key_of(job: Job) -> str:
    """The hash by which a job is found; see the module's docstring."""
    by_structure = job["do"] not in OF_VALUES
    content = {
        name: structure(value) if name == "model" and by_structure else _digested(value)
        for name, value in job.items()
    }
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def in_words(job: Job) -> str:
    """A job as one line of text, for messages."""
    words = [str(job["do"])]
    if "runtime" in job:
        settings = ", ".join(f"{name} {value}" for name, value in job["settings"].items())
        words.append(f"with {job['runtime']} ({settings})" if settings else f"with {job['runtime']}")
    if isinstance(job.get("model"), bytes):
        proto = _onnx(job["model"])
        if proto is None:
            words.append(f"of an engine of {len(job['model'])} bytes")
        else:
            kinds = Counter(node.op_type for node in proto.graph.node).most_common(3)
            listed = ", ".join(f"{count} {kind}" for kind, count in kinds)
            words.append(f"of a network of {len(proto.graph.node)} nodes ({listed})")
    limits = [f"{name} {value:g}" for name, value in job.items() if isinstance(value, int | float)]
    return " ".join([*words, *(["for", ", ".join(limits)] if limits else [])])


def structure(model: bytes) -> str:
    """A hash of an ONNX file without the values of its weights; the hash of the content for other files.

    The values of integers are included, because sizes and axes are part of the structure.
    """
    proto = _onnx(model)
    if proto is None:
        return sha256(model).hexdigest()
    graph = proto.graph
    parts: list[Any] = [
        sorted((opset.domain, opset.version) for opset in proto.opset_import),
        [_value(entry) for entry in (*graph.input, *graph.output)],
        sorted(_tensor(entry) for entry in graph.initializer),
        [[node.op_type, node.domain, node.name, *node.input, "->", *node.output] for node in graph.node],
        [sorted(map(_attribute, node.attribute)) for node in graph.node],
    ]
    return sha256(json.dumps(parts).encode()).hexdigest()


def _attribute(entry: AttributeProto) -> list[Any]:
    if entry.type == AttributeProto.TENSOR:
        return [entry.name, *_tensor(entry.t)]
    return [entry.name, entry.SerializeToString(deterministic=True).hex()]


def _onnx(model: bytes) -> ModelProto | None:
    try:
        proto: ModelProto = onnx.load_from_string(model)
    except Exception:  # an engine
        return None
    return proto if proto.graph.node else None


def _tensor(tensor: TensorProto) -> list[Any]:
    values = numpy_helper.to_array(tensor).tolist() if tensor.data_type == TensorProto.INT64 else None
    return [tensor.name, tensor.data_type, list(tensor.dims), values]


def _value(entry: onnx.ValueInfoProto) -> list[Any]:
    kind = entry.type.tensor_type
    return [entry.name, kind.elem_type, [dim.dim_value or dim.dim_param for dim in kind.shape.dim]]


def _digested(value: Any) -> Any:
    """A job's value with hashes instead of bytes."""
    return _as_json(value, lambda content: sha256(content).hexdigest())


def _to_json(value: Any) -> Any:
    """An answer's value with {"base64": TEXT} instead of bytes."""
    return _as_json(value, lambda content: {"base64": base64.b64encode(content).decode()})


def _as_json(value: Any, of_bytes: Callable[[bytes], Any]) -> Any:
    """Mappings as objects, sequences as lists, and bytes as `of_bytes` writes them."""
    if isinstance(value, bytes):
        return of_bytes(value)
    if isinstance(value, Mapping):
        return {str(name): _as_json(part, of_bytes) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(part, of_bytes) for part in value]
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"base64"}:
            return base64.b64decode(value["base64"])
        return {name: _from_json(part) for name, part in value.items()}
    return [_from_json(part) for part in value] if isinstance(value, list) else value


def _lines(path: Path) -> SealedLines:
    """The file's entries; none if it is missing or empty. Raises DeviceError if it was changed."""
    try:
        lines = SealedLines(path, KIND)
    except OSError as cause:
        raise DeviceError(f"{path} cannot be read: {cause.strerror or cause}") from None
    except (ValueError, RecursionError) as cause:
        raise DeviceError(f"{path} cannot be read as a recording: {cause}") from None
    if lines.dropped and not lines.values:
        raise DeviceError(
            f"{path} is not a recording of this version of bcnet, or was edited ({lines.dropped}); record "
            "again, into a new file"
        )
    if lines.dropped:
        raise DeviceError(
            f"{path} is damaged or was edited: {lines.dropped}; restore it, or record again into a new file"
        )
    if not all(isinstance(entry, dict) and isinstance(entry.get("key"), str) for entry in lines.values):
        raise DeviceError(f"{path} is not a recording of this version of bcnet; record into a new file")
    return lines
