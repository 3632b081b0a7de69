"""Validation of a device's answers. In: a job and the answer to it. Out: the answer, or BadAnswer.

There is one check for each kind of job (`bcnet.agent.jobs`), used for this machine, devices over ssh and
recordings: types, finite times that are not negative, matching sizes of arrays. Other keys are ignored, since
nothing reads them.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bcnet.errors import DeviceError
from bcnet.plain import plain, shown
from bcnet.traits import runtime_by

Answer = dict[str, Any]
MAX_MS = 1e7  # of one inference: almost three hours
MAX_TEXT = 4096  # characters of a text about the machine
MAX_NAME = 65536  # characters of a layer's name, which may list all of its nodes
MAX_DEPTH = 32  # levels of nested lists and objects
KINDS = "biuf"  # kinds of numpy arrays: booleans, signed and unsigned integers, floats
PART = re.compile(r"[a-z][a-z0-9_]{0,39}")  # the name of a part of the reference microbenchmark


class BadAnswer(DeviceError):
    """A device sent an invalid answer."""


class _Invalid(Exception):
    """The part of an answer that is not valid."""


def checked(source: str, job: Mapping[str, Any], answer: object) -> Answer:
    """The answer of `source` (a host, this machine, a recording) to a job. Raises BadAnswer that names it."""
    try:
        found = _object(answer, "it")
        check = _CHECKS.get(str(job["do"]))
        if check is not None:
            check(found, job)
        return found
    except _Invalid as cause:
        raise BadAnswer(f"{source}: its answer to '{job['do']}' is not valid: {cause}") from None


def _object(value: object, where: str) -> Answer:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _Invalid(f"{where} is {shown(value)}, expected an object")
    return value


def _text(found: Answer, key: str, most: int = MAX_TEXT, optional: bool = False) -> None:
    value = found.get(key)
    if optional and value is None:
        return
    if not isinstance(value, str) or len(value) > most:
        raise _Invalid(f"{key} is {shown(value)}, expected a string of at most {most} characters")


def _number(found: Answer, key: str, whole: bool = False, optional: bool = False) -> None:
    value = found.get(key)
    if optional and value is None:
        return
    kinds = int if whole else int | float
    if not isinstance(value, kinds) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise _Invalid(f"{key} is {shown(value)}, expected a {'whole ' if whole else ''}number from 0")


def _list(value: object, where: str, of: str, least: int = 1) -> list[Any]:
    if not isinstance(value, list) or len(value) < least:
        raise _Invalid(f"{where} is {shown(value)}, expected a list of {of}")
    return value


def _numbers(value: object, where: str) -> np.ndarray:
    """A list of numbers as float64. Infinities are kept, and numbers too large become infinite."""
    values = _list(value, where, "times in ms")
    if set(map(type, values)) - {int, float}:
        for index, entry in enumerate(values):
            if not isinstance(entry, int | float) or isinstance(entry, bool):
                raise _Invalid(f"{where}[{index}] is {shown(entry)}, expected a time in ms")
    try:
        return np.asarray(values, dtype=np.float64)
    except OverflowError:
        return np.array([float(entry) if abs(entry) < 2**1000 else np.inf for entry in values])


def _times(value: object, where: str, above: bool = False) -> np.ndarray:
    """Times in ms: finite, from 0 to `MAX_MS`; with `above`, not 0 either."""
    times = _numbers(value, where)
    sound = (times > 0 if above else times >= 0) & (times < MAX_MS)
    if not sound.all():
        index = int(np.argmin(sound))
        raise _Invalid(
            f"{where}[{index}] is {times[index]:g}, expected a time {'above' if above else 'from'} 0 and "
            f"below {MAX_MS:g} ms"
        )
    return times


def _hello(found: Answer, job: Mapping[str, Any]) -> None:
    for key in ("python", "machine", "folder"):
        _text(found, key)
    _text(found, "power_mode", optional=True)


def _have(found: Answer, job: Mapping[str, Any]) -> None:
    """The number of bytes of a file that have arrived; -1 if it is complete."""
    value, size = found.get("have"), job["size"]
    if not isinstance(value, int) or isinstance(value, bool) or not -1 <= value <= size:
        raise _Invalid(f"have is {shown(value)}, expected a whole number from -1 to {size}")


def _get(found: Answer, job: Mapping[str, Any]) -> None:
    if not isinstance(found.get("data"), str):
        raise _Invalid(f"data is {shown(found.get('data'))}, expected a string")


def _probe(found: Answer, job: Mapping[str, Any]) -> None:
    parts = _object(found.get("probe"), "probe")
    wrong = [name for name in parts if not PART.fullmatch(name)]
    if wrong or not 1 <= len(parts) <= 16:
        raise _Invalid(f"probe has {f'a part {shown(wrong[0])}' if wrong else f'{len(parts)} parts'}")
    for name, value in parts.items():
        _times([value], f"probe.{name}", above=True)


def _look(found: Answer, job: Mapping[str, Any]) -> None:
    for key in ("python", "machine", "system"):
        _text(found, key)
    packages = ("numpy", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "torch")
    for key in (*packages, "trtexec", "power_mode"):
        _text(found, key, optional=True)
    for governor in _list(found.get("governors"), "governors", "texts", least=0):
        _text({"governors": governor}, "governors")
    _number(found, "free_bytes", whole=True)
    _number(found, "cores", whole=True, optional=True)
    _number(found, "load", optional=True)


def _missing(found: Answer, job: Mapping[str, Any]) -> None:
    if "missing" not in found:
        raise _Invalid("it has no 'missing'")
    _text(found, "missing", optional=True)


def _fingerprint(found: Answer, job: Mapping[str, Any]) -> None:
    facts = _object(found.get("fingerprint"), "fingerprint")
    if len(facts) > 64:
        raise _Invalid(f"fingerprint is {shown(facts)}, expected at most 64 facts")
    for name in facts:
        _text({"the name of a fact": name}, "the name of a fact", 80)
        _text(facts, name)
    cache = facts.get("cache_mb", "0")
    try:
        sound = 0 <= float(cache) < 1e6
    except ValueError:
        sound = False
    if not sound:
        raise _Invalid(f"cache_mb is {shown(cache)}, expected megabytes from 0")


def _time(found: Answer, job: Mapping[str, Any]) -> None:
    _times(found.get("ms"), "ms")


def _profile(found: Answer, job: Mapping[str, Any]) -> None:
    """Names of nodes, their times in ms [runs][nodes], wall-clock times of the runs in ms [runs], or None.

    ONNX Runtime's profiler uses the system clock, which may be adjusted during a run. Such runs are dropped
    later (see `plausible`), so only one run has to be valid here.
    """
    names = _list(found.get("names"), "names", "names of nodes")
    for index, name in enumerate(names):
        if not isinstance(name, str) or len(name) > MAX_NAME:
            raise _Invalid(f"names[{index}] is {shown(name)}, expected the name of a node")
    runs = _list(found.get("ms"), "ms", "runs")
    if len(runs) > job["runs"]:
        raise _Invalid(f"ms has {len(runs)} runs, but {job['runs']} were requested")
    jumps = runtime_by(job["runtime"]).system_clock
    sound = False
    for index, run in enumerate(runs):
        times = (_numbers if jumps else _times)(run, f"ms[{index}]")
        if len(times) != len(names):
            raise _Invalid(f"ms[{index}] has {len(times)} times for {len(names)} nodes")
        if not np.isfinite(times).all():
            raise _Invalid(f"ms[{index}][{int(np.argmin(np.isfinite(times)))}] is not finite")
        sound = sound or bool((times >= 0).all())
    if not sound:
        raise _Invalid(f"each of its {len(runs)} runs has a time below 0")
    walls = found.get("walls_ms")
    if walls is not None or jumps:
        count = len(_times(walls, "walls_ms"))
        if count != len(runs):
            raise _Invalid(f"walls_ms has {count} times for {len(runs)} runs")


def _infer(found: Answer, job: Mapping[str, Any]) -> None:
    """Arrays, whose numbers of bytes match their shapes; an output's first axis need not be the batch."""
    images = job["inputs"][0]["shape"][0]
    for index, packed in enumerate(_list(found.get("outputs"), "outputs", "arrays", min(images, 1))):
        where = f"outputs[{index}]"
        array = _object(packed, where)
        try:
            kind = np.dtype(str(array.get("dtype"))[:16])
        except (TypeError, ValueError):
            raise _Invalid(f"{where}.dtype is {shown(array.get('dtype'))}, expected a numeric type") from None
        shape, data = _list(array.get("shape"), f"{where}.shape", "sizes"), array.get("data")
        if kind.kind not in KINDS or len(shape) > 32:
            raise _Invalid(f"{where} is of {kind}, shape {shown(shape)}, expected numbers")
        if not all(type(side) is int and side >= 0 for side in shape):
            raise _Invalid(f"{where}.shape is {plain(str(shape[:8]), 80)}, expected sizes")
        if not isinstance(data, bytes) or len(data) != math.prod(shape) * kind.itemsize:
            size = len(data) if isinstance(data, bytes) else 0
            raise _Invalid(
                f"{where} has {size} bytes, which do not fit shape {plain(str(shape[:8]), 80)} of {kind}"
            )


def _build(found: Answer, job: Mapping[str, Any]) -> None:
    info = _object(found.get("info"), "info")
    if runtime_by(job["runtime"]).engines and (
        not isinstance(found.get("engine"), bytes) or not found["engine"]
    ):
        raise _Invalid(f"engine is {shown(found.get('engine'))}, expected bytes")
    for key in ("flavour", "layers_source"):
        _text(info, key)
    versions = _object(info.get("versions"), "info.versions")
    for name in versions:
        _text(versions, name)
    _list(info.get("batches"), "info.batches", "sizes", least=0)
    if info.get("layers") is not None:
        _list(info["layers"], "info.layers", "layers", least=0)
    _json(info, "info")


def _json(value: object, where: str, depth: int = 0) -> None:
    """JSON values, which must not be nested too deeply, or infinite."""
    if depth > MAX_DEPTH:
        raise _Invalid(f"{where[:80]} is more than {MAX_DEPTH} levels deep")
    if isinstance(value, dict):
        for key, entry in value.items():
            _json(entry, f"{where}.{plain(str(key), 40)}", depth + 1)
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            _json(entry, f"{where}[{index}]", depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise _Invalid(f"{where[:80]} is {value}, expected a finite number")


_CHECKS: dict[str, Callable[[Answer, Mapping[str, Any]], None]] = {
    "hello": _hello,
    "have": _have,
    "put": _have,
    "get": _get,
    "probe": _probe,
    "look": _look,
    "missing": _missing,
    "fingerprint": _fingerprint,
    "time": _time,
    "profile": _profile,
    "infer": _infer,
    "build": _build,
}
