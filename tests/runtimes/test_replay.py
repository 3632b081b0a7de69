"""Recordings of a device's answers: what finds an answer, what is replayed, what a file survives."""

import gzip
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bcnet.errors import BcnetError, DeviceError, NetworkError
from bcnet.runtimes.device import LocalDevice
from bcnet.runtimes.onnxruntime import OnnxRuntime
from bcnet.runtimes.replay import Recorded, Recording, in_words, key_of, structure


def network(seed: int = 0, channels: int = 4, op: str = "Relu", sizes: tuple[int, ...] = (1, -1)) -> bytes:
    """input (1, 2, 3, 3) -> conv -> act -> reshaped to `sizes`."""
    weights = np.random.default_rng(seed).standard_normal((channels, 2, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["input", "weight"], ["conv"], name="conv"),
            helper.make_node(op, ["conv"], ["act"], name="act"),
            helper.make_node("Reshape", ["act", "sizes"], ["output"], name="output"),
        ],
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 2, 3, 3])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(weights, "weight"),
            numpy_helper.from_array(np.array(sizes, np.int64), "sizes"),
        ],
    )
    opsets = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def job(do: str = "time", model: bytes = b"engine", **more: Any) -> dict[str, Any]:
    return {"do": do, "runtime": "onnxruntime", "settings": {"threads": 1}, "model": model, **more}


class Counting:
    """A device that answers with how often it was asked, in all; b"broken" it cannot run."""

    workers = 1
    asked = 0

    def call(self, job: dict[str, Any], limit_s: float) -> dict[str, Any]:
        self.asked += 1
        if job["model"] == b"broken":
            raise NetworkError("this one is broken")
        if job["model"] == b"gone":
            raise DeviceError("the device is gone")
        return {"ms": [float(self.asked)], "file": b"\0\xff", "deep": [{"data": b"x"}], "none": None}


@pytest.mark.parametrize("name", ["a.jsonl", "folder/a.jsonl.gz"])
def test_answers_are_replayed_in_their_order_and_then_from_the_first(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    device = Recording(Counting(), path)
    given = [device.call(job(model=model), 1.0) for model in (b"one", b"two", b"one")]
    for _ in range(2):  # a second process does the same
        replay = Recorded(path)
        assert [replay.call(job(model=b"one"), 1.0) for _ in range(3)] == [given[0], given[2], given[0]]
        assert replay.call(job(model=b"two"), 1.0) == given[1]
    assert given[0]["file"] == b"\0\xff"
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    lines = [json.loads(line[17:]) for line in text.splitlines()]  # after the seals
    assert lines[0]["belongs_to"] == {"bcnet_recording": 2}
    assert [line["job"] for line in lines[1:]] == [
        "time with onnxruntime (threads 1) of an engine of 3 bytes"
    ] * 3


def test_a_network_that_fails_fails_again_and_a_device_that_does_is_not_recorded(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    device = Recording(Counting(), path)
    for model, kind in ((b"broken", NetworkError), (b"gone", DeviceError)):
        with pytest.raises(kind):
            device.call(job(model=model), 1.0)
    with pytest.raises(NetworkError, match=r"^this one is broken$"):
        Recorded(path).call(job(model=b"broken"), 1.0)
    with pytest.raises(DeviceError, match="has no answer to this job") as caught:
        Recorded(path).call(job(model=b"gone"), 1.0)
    assert not isinstance(caught.value, NetworkError)


def test_a_job_that_is_not_in_the_file_is_named_with_how_to_record_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    Recording(Counting(), path).call(job(), 1.0)
    with pytest.raises(DeviceError) as caught:
        Recorded(path).call(job("profile", network(), runs=12), 1.0)
    assert str(caught.value) == (
        f"{path} has no answer to this job: profile with onnxruntime (threads 1) of a network of 3 nodes "
        f'(1 Conv, 1 Relu, 1 Reshape) for runs 12; record it on the device: put `record_to = "{path}"` '
        "instead of `recording` in its hardware profile, and run this command there"
    )
    assert in_words({"do": "probe"}) == "probe"


def test_a_network_is_found_by_its_structure_whatever_its_weights() -> None:
    own = structure(network())
    assert structure(network(seed=1)) == own
    retrained = onnx.load_from_string(network(seed=2))
    retrained.metadata_props.add(key="widths", value="4")
    assert structure(retrained.SerializeToString()) == own
    others = [
        network(channels=5),
        network(op="Sigmoid"),
        network(sizes=(1, 4)),
        b"an engine",
        b"another engine",
    ]
    renamed = onnx.load_from_string(network())
    renamed.graph.node[0].name = "other"
    strided = onnx.load_from_string(network())
    strided.graph.node[0].attribute.append(helper.make_attribute("pads", [1, 1, 1, 1]))
    larger = onnx.load_from_string(network())
    larger.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    older = onnx.load_from_string(network())
    older.opset_import[0].version = 16
    others += [proto.SerializeToString() for proto in (renamed, strided, larger, older)]
    assert len({own, *map(structure, others)}) == len(others) + 1


def test_other_settings_and_limits_are_other_jobs_and_outputs_are_found_by_values() -> None:
    jobs = [
        job(model=network()),
        job("profile", network(), runs=5),
        job("profile", network(), runs=6),
        job(model=network()) | {"settings": {"threads": 2}},
        {"do": "probe"},
    ]
    assert len({key_of(one) for one in jobs}) == len(jobs)
    for do, same in (("time", True), ("profile", True), ("infer", False), ("build", False)):
        assert (key_of(job(do, network(0))) == key_of(job(do, network(1)))) == same
    images = [
        {"dtype": "<f4", "shape": [1], "data": bytes(4)},
        {"dtype": "<f4", "shape": [1], "data": b"1234"},
    ]
    assert len({key_of(job("infer", network(), inputs=[packed])) for packed in images}) == 2


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_file_whose_recording_was_killed_is_read_and_added_to(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    device = Recording(Counting(), path)
    for _ in range(3):
        device.call(job(), 1.0)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert [Recorded(path).call(job(), 1.0)["ms"] for _ in range(1)] == [[1.0]]
    counting = Counting()
    counting.asked = 6
    Recording(counting, path).call(job(), 1.0)
    replay = Recorded(path)
    assert [replay.call(job(), 1.0)["ms"] for _ in range(4)] == [[1.0], [2.0], [7.0], [1.0]]


OLD = b'{"bcnet_recording": 1}\n'


@pytest.mark.parametrize("content", [b"{}\n", b"no json", b"no json\n", OLD, OLD[:-1], b"\xff\xfe\n"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_other_files_and_those_of_earlier_versions_are_refused_and_kept(
    content: bytes, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = tmp_path / ("a.jsonl" if pack is bytes else "a.jsonl.gz")
    path.write_bytes(pack(content))
    for kind in (Recorded, lambda path: Recording(Counting(), path)):
        with pytest.raises(
            DeviceError, match=r"is not a recording of this version of bcnet, .*; record again"
        ):
            kind(path)
    assert path.read_bytes() == pack(content)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_an_empty_file_as_a_kill_leaves_it_is_a_new_recording(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.touch()
    with pytest.raises(DeviceError, match="has no answer to this job"):
        Recorded(path).call(job(), 1.0)
    Recording(Counting(), path).call(job(), 1.0)
    assert Recorded(path).call(job(), 1.0)["ms"] == [1.0]


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, reason in ((tmp_path / "pipe", "a named pipe, not a file"), (tmp_path, "a folder, not a file")):
        for kind in (Recorded, lambda path: Recording(Counting(), path)):
            with pytest.raises(DeviceError, match=f"cannot be read as a recording: {reason}"):
                kind(path)
    with pytest.raises(DeviceError, match="cannot be read: No such file or directory"):
        Recorded(tmp_path / "none")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_no_changed_byte_of_a_recording_is_replayed(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    device = Recording(Counting(), path)
    wanted = [device.call(job(model=b"one"), 1.0)["ms"] for _ in range(3)]
    content = path.read_bytes()
    for place in range(0, len(content), 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            replay = Recorded(path)
            found = [replay.call(job(model=b"one"), 1.0)["ms"] for _ in range(3)]
        except DeviceError:
            continue
        assert found == (wanted * 3)[:3] or found == [*wanted[:2], wanted[0]] or found == wanted[:1] * 3


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_two_recordings_into_one_file_at_a_time_keep_all_answers(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    devices = [Recording(Counting(), path) for _ in range(2)]

    def record(number: int) -> None:
        for _ in range(20):
            devices[number].call(job(model=b"%d" % number), 1.0)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(record, range(2)))
    replay = Recorded(path)
    for number in range(2):
        found = [replay.call(job(model=b"%d" % number), 1.0)["ms"][0] for _ in range(21)]
        assert found == [*range(1, 21), 1]
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError, match="cannot be written: ") as caught:
        Recording(Counting(), tmp_path / "file" / "a.jsonl").call(job(), 1.0)
    assert "\n" not in str(caught.value)
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(b"no gzip")
    with pytest.raises(BcnetError, match=r"is not a recording .* \(it is damaged from byte 0 on"):
        Recorded(packed)


def test_a_runtime_on_a_recording_gives_the_same_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    images = np.random.default_rng(0).standard_normal((3, 2, 3, 3), np.float32)
    now, then = [], []
    for given, device in ((now, Recording(LocalDevice(), path)), (then, None)):
        runtime = OnnxRuntime(device or Recorded(path))
        given += [runtime.fingerprint(), runtime.probe()]
        given.append(runtime.time_network(network(), 0.0, 0.001, 3).tolist())
        given += [(name, ms.tolist()) for name, ms in runtime.profile_nodes(network(), 4)]
        given.append(runtime.predictor(network())(images)[0].tolist())
    assert then == now
    with pytest.raises(DeviceError, match="infer with onnxruntime"):
        OnnxRuntime(Recorded(path)).predictor(network())(images + 1)


def test_a_recording_without_the_application_mode_still_has_the_times_of_the_device(tmp_path: Path) -> None:
    limits = {"warmup_ms": 0.0, "seconds": 0.001, "iterations": 3}
    before = {"do": "time", "runtime": "onnxruntime", "settings": {"provider": "cpu", "threads": 1}}
    recorded = Recording(LocalDevice(), tmp_path / "a.jsonl").call(
        {**before, "model": network(), **limits}, 1.0
    )
    runtime = OnnxRuntime(Recorded(tmp_path / "a.jsonl"))
    assert runtime.time_network(network(), **limits).tolist() == recorded["ms"]
    with pytest.raises(DeviceError, match=r"has no answer to this job: time .*, application 1; record it"):
        runtime.time_network(network(), **limits, application=True)
