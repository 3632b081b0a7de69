"""Which answers of a device are valid, and which are not; foreign text in messages."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bcnet.errors import DeviceError
from bcnet.latency_tables.probe import pool_readings
from bcnet.latency_tables.rows import Session
from bcnet.plain import plain, shown
from bcnet.runtimes import device as device_module
from bcnet.runtimes.answers import BadAnswer, checked
from bcnet.runtimes.device import LocalDevice
from bcnet.runtimes.replay import KIND, Recorded, Recording
from bcnet.sealed import SealedLines

ORT: dict[str, Any] = {"runtime": "onnxruntime", "settings": {}, "model": b"m"}
TIME = {"do": "time", **ORT}
PROFILE = {"do": "profile", "runs": 2, **ORT}
ENGINE = {"do": "profile", "runs": 2, **ORT, "runtime": "tensorrt"}
INFER = {"do": "infer", "inputs": [{"dtype": "<f4", "shape": [2, 1], "data": bytes(8)}], **ORT}
BUILD = {"do": "build", "batches": [], **ORT}
HAVE = {"do": "have", "size": 9}
INFO = {"flavour": "onnxruntime", "versions": {}, "batches": [], "layers": None, "layers_source": ""}
LOOK = {
    "python": "3",
    "machine": "m",
    "system": "s",
    "free_bytes": 1,
    "governors": [],
    "load": 0.5,
    "cores": 2,
}


def array(**changes: Any) -> dict[str, Any]:
    return {"outputs": [{"dtype": "<f4", "shape": [2, 3], "data": bytes(24), **changes}]}


@pytest.mark.parametrize(
    ("job", "answer"),
    [
        (TIME, {"ms": [0, 0.5, 9.9e6], "of another version": {}}),
        (PROFILE, {"names": ["a", "b"], "ms": [[1.0, 2.0], [-1.0, 3.0]], "walls_ms": [3.1, 2.0]}),
        (ENGINE, {"names": ["a", "b"], "ms": [[1.0, 2.0]], "walls_ms": None}),
        (INFER, array()),
        (INFER, array(dtype="|u1", data=bytes(6))),
        (INFER, array(shape=[1, 6])),  # a network need not have the batch as its first axis
        (BUILD, {"info": INFO}),
        (HAVE, {"have": -1}),
        ({"do": "probe"}, {"probe": {"matmul_ms": 0.2}}),
        ({"do": "fingerprint", **ORT}, {"fingerprint": {"processor": "x", "cache_mb": "33.5"}}),
        ({"do": "look"}, LOOK),
        ({"do": "missing", **ORT}, {"missing": None}),
    ],
)
def test_an_answer_is_passed_on_as_it_came(job: dict[str, Any], answer: dict[str, Any]) -> None:
    assert checked("device", job, answer) is answer


@pytest.mark.parametrize(
    ("job", "answer", "message"),
    [
        (TIME, None, "it is None, expected an object"),
        (TIME, [], "it is a list of 0, expected an object"),
        (TIME, {}, "ms is None, expected a list of times in ms"),
        (TIME, {"ms": []}, "ms is a list of 0, expected a list of times in ms"),
        (TIME, {"ms": [1.0, float("inf")]}, "ms[1] is inf, expected a time from 0 and below 1e+07 ms"),
        (TIME, {"ms": [float("nan")]}, "ms[0] is nan, expected a time from 0"),
        (TIME, {"ms": [1.0, -0.5]}, "ms[1] is -0.5, expected a time from 0"),
        (TIME, {"ms": [1e9]}, "ms[0] is 1e+09, expected a time from 0"),
        (TIME, {"ms": [1, 10**400]}, "ms[1] is inf, expected a time from 0"),
        (TIME, {"ms": ["1.0"]}, "ms[0] is '1.0', expected a time in ms"),
        (TIME, {"ms": [True]}, "ms[0] is True, expected a time in ms"),
        (TIME, {"ms": [None]}, "ms[0] is None, expected a time in ms"),
        (PROFILE, {"names": ["a"], "ms": [[1.0]], "walls_ms": None}, "walls_ms is None, expected a list"),
        (PROFILE, {"names": ["a"], "ms": [[1.0]], "walls_ms": [1.0] * 2}, "walls_ms has 2 times for 1 runs"),
        (
            PROFILE,
            {"names": ["a"], "ms": [[1.0]] * 3, "walls_ms": [1.0] * 3},
            "ms has 3 runs, but 2 were",
        ),
        (PROFILE, {"names": ["a"], "ms": [[-1.0]] * 2, "walls_ms": [1.0] * 2}, "each of its 2 runs has"),
        (PROFILE, {"names": ["a"], "ms": [[float("inf")]], "walls_ms": [1.0]}, "ms[0][0] is not finite"),
        (ENGINE, {"names": ["a"], "ms": [[-1.0]], "walls_ms": None}, "ms[0][0] is -1, expected a time"),
        (ENGINE, {"names": ["a"], "ms": [[1.0, 2.0]], "walls_ms": None}, "ms[0] has 2 times for 1 nodes"),
        (ENGINE, {"names": [3], "ms": [[1.0]], "walls_ms": None}, "names[0] is 3, expected the name of a"),
        (INFER, {"outputs": []}, "outputs is a list of 0, expected a list of arrays"),
        (INFER, array(data=bytes(23)), "outputs[0] has 23 bytes, which do not fit shape [2, 3] of float32"),
        (INFER, array(shape=[2.0, 3]), "outputs[0].shape is [2.0, 3], expected sizes"),
        (INFER, array(shape=[2, -3]), "outputs[0].shape is [2, -3], expected sizes"),
        (INFER, array(dtype="O"), "outputs[0] is of object, shape a list of 2, expected numbers"),
        (INFER, array(dtype="no such"), "outputs[0].dtype is 'no such', expected a numeric type"),
        (BUILD, {}, "info is None, expected an object"),
        (
            BUILD,
            {"info": {**INFO, "layers": [{"x": float("inf")}]}},
            "info.layers[0].x is inf, expected a finite",
        ),
        (
            BUILD,
            {"info": {**INFO, "flavour": 3}},
            "flavour is 3, expected a string of at most 4096 characters",
        ),
        ({**BUILD, "runtime": "tensorrt"}, {"info": INFO}, "engine is None, expected bytes"),
        (HAVE, {"have": 10}, "have is 10, expected a whole number from -1 to 9"),
        (HAVE, {"have": 1.0}, "have is 1.0, expected a whole number from -1 to 9"),
        ({"do": "get"}, {"data": 3}, "data is 3, expected a string"),
        ({"do": "probe"}, {"probe": {"matmul_ms": 0.0}}, "probe.matmul_ms[0] is 0, expected a time above 0"),
        ({"do": "probe"}, {"probe": {"\x1b[2J": 1.0}}, r"probe has a part '\x1b[2J'"),
        ({"do": "probe"}, {"probe": {}}, "probe has 0 parts"),
        (
            {"do": "fingerprint", **ORT},
            {"fingerprint": {"cache_mb": "1e400"}},
            "cache_mb is '1e400', expected",
        ),
        (
            {"do": "fingerprint", **ORT},
            {"fingerprint": {"processor": 3}},
            "processor is 3, expected a string",
        ),
        ({"do": "look"}, {**LOOK, "free_bytes": -1}, "free_bytes is -1, expected a whole number from 0"),
        ({"do": "missing", **ORT}, {}, "it has no 'missing'"),
    ],
)
def test_what_cannot_be_an_answer_is_named_with_its_source(
    job: dict[str, Any], answer: object, message: str
) -> None:
    with pytest.raises(BadAnswer) as caught:
        checked("me@orin", job, answer)
    assert str(caught.value).startswith(f"me@orin: its answer to '{job['do']}' is not valid: {message}")
    assert str(caught.value).isprintable()


def test_this_machine_and_a_recording_are_checked_like_a_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_module.jobs, "run", lambda job: {"ms": [1.0, np.inf]})
    with pytest.raises(BadAnswer, match=r"^this machine: its answer to 'time' is not valid: ms\[1\] is inf"):
        LocalDevice().call(TIME, 1.0)

    class Unchecked:
        workers = 1

        def call(self, job: dict[str, Any], limit_s: float) -> dict[str, Any]:
            return {"ms": [1.0, 2.0]}

    path = tmp_path / "a.jsonl"
    Recording(Unchecked(), path).call(TIME, 1.0)
    assert Recorded(path).call(TIME, 1.0) == {"ms": [1.0, 2.0]}
    entry = SealedLines(path, KIND).values[0]
    for number, (wrong, message) in enumerate(
        (
            (math.inf, r"jsonl: its answer to 'time' is not valid: ms\[1\] is inf"),
            ("x", r"ms\[1\] is 'x', expected a time in ms"),
            ({"base64": "/"}, r"jsonl: a recorded answer is not base64 \(.*\); record again"),
        )
    ):
        other = SealedLines(tmp_path / f"{number}.jsonl", KIND)
        other.append(entry | {"answer": {"ms": [1.0, wrong]}})
        with pytest.raises(DeviceError, match=message):
            Recorded(other.path).call(TIME, 1.0)


@pytest.mark.parametrize("entry", [[1], {}, {"key": []}, {"key": None}])
def test_a_recording_of_something_else_is_refused(entry: Any, tmp_path: Path) -> None:
    lines = SealedLines(tmp_path / "a.jsonl", KIND)
    lines.append(entry)
    with pytest.raises(DeviceError, match="is not a recording of this version of bcnet; record into"):
        Recorded(lines.path)


def test_a_cache_that_is_no_number_counts_as_not_known() -> None:
    sizes = [Session("", {"cache_mb": text}, {}).cache_mb for text in ("33.5", "1e400", "nan", "-1", "x")]
    assert sizes == [33.5, 0.0, 0.0, 0.0, 0.0]


def test_readings_are_pooled_over_the_parts_that_all_of_them_have() -> None:
    readings = [{"matmul_ms": 1.0, "stream_ms": 2.0}, {"matmul_ms": 3.0}]
    assert pool_readings(readings) == ({"matmul_ms": 2.0}, {"matmul_ms": 0.5})
    with pytest.raises(DeviceError, match="microbenchmark have no part in common; measure again"):
        pool_readings([{"matmul_ms": 1.0}, {"loop_ms": 1.0}])


def test_foreign_text_is_printable_and_bounded() -> None:
    assert plain("grün 图像 ok") == "grün 图像 ok"
    assert plain("a\x1b[2J\r\nb\u202e\u2028\x9b\ud800") == r"a\x1b[2J\r\nb\u202e\u2028\x9b\ud800"
    assert plain("x" * 600) == "x" * 500 + "... (600 characters)"
    assert shown([1, 2]) == "a list of 2"
    assert shown(10**5000) == "a whole number of more than 80 digits"
    assert shown("a" * 100) == "'" + "a" * 80 + "'... (100 long)"
