"""Jobs that go through trtexec, against a program of that name that the test writes (see fake_trtexec)."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import fake_trtexec
import numpy as np
import onnx
import pytest
import torch
from conftest import measure_briefly
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from bcnet.agent import jobs, look, trtexec_jobs
from bcnet.agent.arrays import pack, unpack
from bcnet.agent.errors import JobError
from bcnet.agent.onnx_inputs import onnx_inputs
from bcnet.agent.programs import reason_of
from bcnet.hw_profiles import HwProfile
from bcnet.latency_tables.table import LatencyTable
from bcnet.onnx_export.onnx_supernet import OnnxSupernet
from bcnet.pipeline.build_lut import build_lut
from bcnet.runtimes.device import LocalDevice
from bcnet.runtimes.tensorrt import TensorRt
from bcnet.space.discover import discover_space

VERSIONS = {
    "v8201": "8.2.1",
    "v8502": "8.5.2",
    "v8601": "8.6.1",
    "v100300": "10.3.0",
    "v101600": "10.16.0",
    "v110100": "11.1.0",
}


def network(batch: int | str = 2, op: str = "Relu") -> bytes:
    """Inputs of (batch, 1, 2, 2) and (batch, 3), and an output of each; the first is convolved."""
    sides = [batch, 1, 2, 2]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["input", "weight"], ["conv"], name="conv"),
            helper.make_node(op, ["conv"], ["out"], name="out"),
            helper.make_node("Identity", ["other"], ["second"], name="second"),
        ],
        "two",
        [
            helper.make_tensor_value_info("input", TensorProto.FLOAT, sides),
            helper.make_tensor_value_info("other", TensorProto.FLOAT, [batch, 3]),
            helper.make_tensor_value_info("weight", TensorProto.FLOAT, [1, 1, 1, 1]),
        ],
        [
            helper.make_tensor_value_info("out", TensorProto.FLOAT, sides),
            helper.make_tensor_value_info("second", TensorProto.FLOAT, [batch, 3]),
        ],
        [numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "weight")],
    )
    opsets = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines of this test only, in a folder with spaces and what trtexec's options are split at."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a, b: c's = d"))
    monkeypatch.setattr(trtexec_jobs, "_versions", {})
    monkeypatch.setattr(trtexec_jobs, "_devices", [{"processor": "a board"}])
    monkeypatch.setattr(jobs, "_loaded", [])


def job(program: Path, do: str, **more: Any) -> dict[str, Any]:
    """The answer of a job through this program."""
    settings = {"precision": more.pop("precision", "fp32"), "trtexec": str(program)}
    return jobs.run({"do": do, "runtime": "trtexec", "settings": settings, **more})


def calls(program: Path) -> list[dict[str, str]]:
    """What the program was given, start by start, without those that only asked its version."""
    lines = (program.parent / "calls.jsonl").read_text().splitlines()
    return [given for line in lines if "--help" not in (given := json.loads(line))]


@pytest.mark.parametrize(("number", "version"), VERSIONS.items())
def test_every_job_uses_only_flags_that_the_version_knows(number: str, version: str, tmp_path: Path) -> None:
    program = fake_trtexec.write(tmp_path / "bin of it", number)
    model = network()
    found = job(program, "fingerprint")["fingerprint"]
    assert (found["runtime_version"], found["processor"]) == (version, "a board")
    built = job(program, "build", model=model, batches=[], precision="fp16")
    assert built["info"]["versions"] == {"tensorrt": version}
    assert built["info"]["compute_capability"] == "8.7"
    assert [layer["Name"] for layer in built["info"]["layers"]] == ["conv + out", "second"]
    engine = built["engine"]
    times = job(program, "time", model=engine, warmup_ms=100, seconds=0.25, iterations=3)["ms"]
    assert times == pytest.approx([1.502, 1.503, 1.504])
    profile = job(program, "profile", model=engine, runs=7)
    assert profile["names"] == [
        "conv + out [ONNX Layer: conv] [ONNX Layer: out]",
        "second [ONNX Layer: second]",
    ]
    each = 0.02 if number == "v8201" else 0.01  # the means of 8.2, which exports no medians
    assert np.array(profile["ms"]) == pytest.approx(np.array([[each, 2 * each]]))
    assert profile["walls_ms"] is None
    images = np.arange(20, dtype=np.float32).reshape(5, 1, 2, 2)
    others = np.zeros((5, 3), np.float32)
    outputs = job(program, "infer", model=engine, inputs=[pack(images), pack(others)])["outputs"]
    out, second = map(unpack, outputs)
    # The program's last input decides: all zero, so each output counts up from zero.
    assert out.tolist() == [[[[0.0, 1.0], [2.0, 3.0]]]] * 5
    assert second.tolist() == [[0.0, 1.0, 2.0]] * 5
    precisions = {"--fp16", "--int8", "--stronglyTyped"} & calls(program)[0].keys()
    wanted = {"8": {"--fp16"}, "10": {"--stronglyTyped"}, "11": set()}
    assert precisions == wanted[version.split(".")[0]]
    assert calls(program)[0]["--profilingVerbosity"] == "detailed"


def test_a_measurement_runs_in_a_graph_without_copies_as_long_as_was_asked(tmp_path: Path) -> None:
    old, new = (fake_trtexec.write(tmp_path / number, number) for number in ("v8201", "v100300"))
    for program in (old, new):
        job(program, "time", model=network(), warmup_ms=100, seconds=0.25, iterations=3)
    assert [calls(program)[1]["--duration"] for program in (old, new)] == ["1", "0.25"]
    given = calls(new)[1]
    assert (given["--warmUp"], given["--iterations"]) == ("100", "3")
    assert {"--useCudaGraph", "--useSpinWait", "--noDataTransfers"} < given.keys()
    latest = fake_trtexec.write(tmp_path / "v110100", "v110100")
    job(latest, "profile", model=network(), runs=7)
    assert not {"--useCudaGraph", "--separateProfileRun"} & calls(latest)[1].keys()


@pytest.mark.parametrize("number", VERSIONS)
def test_an_application_copies_and_runs_one_inference_after_the_other_without_a_graph(
    number: str, tmp_path: Path
) -> None:
    program = fake_trtexec.write(tmp_path, number)
    limits = {"warmup_ms": 100, "seconds": 0.25, "iterations": 3}
    times = job(program, "time", model=network(), application=True, **limits)["ms"]
    assert times == pytest.approx([2.252, 2.253, 2.254])  # copies of 0.25 and 0.5 ms
    given = calls(program)[1].keys()
    assert "--exposeDMA" in given
    assert not {"--useCudaGraph", "--noDataTransfers"} & given
    latest = {"--includeDataTransfers", "--noCudaGraph"}
    assert latest & given == (latest if number == "v110100" else set())


def test_a_network_is_built_once_and_all_share_a_timing_cache(tmp_path: Path) -> None:
    program = fake_trtexec.write(tmp_path, "v100300")
    for model in (network(2), network(4), network(2)):
        job(program, "profile", model=model, runs=7)
        job(program, "time", model=model, warmup_ms=0, seconds=0.1, iterations=3)
    builds = [given for given in calls(program) if "--onnx" in given]
    assert len(builds) == 2
    (cache,) = Path(os.environ["XDG_CACHE_HOME"]).rglob("*.timing")
    assert cache.read_bytes() == b"timed" * 2  # each build has added to that of the one before
    job(program, "time", model=network(2), precision="int8", warmup_ms=0, seconds=0.1, iterations=3)
    assert len([given for given in calls(program) if "--onnx" in given]) == 3


@pytest.mark.parametrize("version", ["v8201", "v100300"])
def test_a_dynamic_batch_is_built_from_least_usual_and_largest(version: str, tmp_path: Path) -> None:
    program = fake_trtexec.write(tmp_path, version)
    engine = job(program, "build", model=network("N"), batches=[1, 8, 32])["engine"]
    given = calls(program)[0]
    assert given["--minShapes"] == "input:1x1x2x2,other:1x3"
    assert given["--optShapes"] == "input:8x1x2x2,other:8x3"
    assert given["--maxShapes"] == "input:32x1x2x2,other:32x3"
    inputs = [pack(np.ones((3, 1, 2, 2), np.float32)), pack(np.ones((3, 3), np.float32))]
    outputs = job(program, "infer", model=engine, inputs=inputs)["outputs"]
    assert unpack(outputs[1]).tolist() == [[3.0, 4.0, 5.0]] * 3
    assert calls(program)[-1]["--shapes"] == "input:1x1x2x2,other:1x3"
    settings = {"precision": "fp32", "trtexec": str(program), "batch": 8}
    trtexec_jobs.time_runs(engine, settings, 0, 0.1, 3)  # a dynamic batch is timed at the profile's
    assert calls(program)[-1]["--shapes"] == "input:8x1x2x2,other:8x3"
    trtexec_jobs.time_runs(network(8), settings, 0, 0.1, 3)
    assert "--shapes" not in calls(program)[-1]
    with pytest.raises(JobError, match="'input' has a fixed batch in the ONNX file"):
        job(program, "build", model=network(2), batches=[1, 8])


def test_outputs_keep_the_engines_order_and_the_last_batch_is_cut(tmp_path: Path) -> None:
    program = fake_trtexec.write(tmp_path, "v8502")
    others = np.array([[1, 0, 0], [0, 2, 0], [0, 0, 3]], np.float32)
    inputs = [pack(np.zeros((3, 1, 2, 2), np.float32)), pack(others)]
    out, second = map(unpack, job(program, "infer", model=network(2), inputs=inputs)["outputs"])
    assert out.shape == (3, 1, 2, 2)
    assert second.tolist() == [[1.0, 2.0, 3.0], [2.0, 3.0, 4.0], [3.0, 4.0, 5.0]]
    assert len([given for given in calls(program) if "--loadInputs" in given]) == 2
    with pytest.raises(JobError, match="has 2 inputs, 1 were given"):
        job(program, "infer", model=network(2), inputs=inputs[:1])


def test_failures_are_one_line_of_trtexecs_own_words(tmp_path: Path) -> None:
    program = fake_trtexec.write(tmp_path, "v8601")
    with pytest.raises(JobError) as caught:
        job(program, "build", model=network(op="GridSample"), batches=[])
    assert caught.value.kind == "network"
    assert caught.value.message == (
        "trtexec failed: ModelImporter.cpp:754: ERROR: builtin_op_importers.cpp:4951 In function import: "
        '[8] Assertion failed: creator && "Plugin not found"'
    )
    with pytest.raises(JobError, match="Magic tag does not match") as caught:
        job(program, "time", model=b"no engine", warmup_ms=0, seconds=0.1, iterations=2)
    assert "\n" not in caught.value.message
    with pytest.raises(JobError, match=r"^trtexec failed: Error\[4\].*no optimization profile"):
        job(program, "build", model=network("N"), batches=[])


@pytest.mark.parametrize(
    ("trick", "kind", "message"),
    [
        ("no gpu", "device", "^trtexec failed: Cuda failure: no CUDA-capable device is detected$"),
        ("killed", "network", r"^trtexec failed: killed by signal 9 \(is the memory full\?\)$"),
    ],
)
def test_a_device_that_fails_is_told_from_a_network(
    trick: str, kind: str, message: str, tmp_path: Path
) -> None:
    program = fake_trtexec.write(tmp_path, "v8601", trick)
    with pytest.raises(JobError, match=message) as caught:
        job(program, "build", model=network(), batches=[])
    assert caught.value.kind == kind


def test_a_program_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = fake_trtexec.write(tmp_path, "v8601", "hangs")
    monkeypatch.setattr(trtexec_jobs, "BUILDING_S", 0.5)
    with pytest.raises(JobError, match="trtexec did not finish within"):
        job(program, "build", model=network(), batches=[])


def test_what_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(look, "TRTEXEC", str(tmp_path / "bin" / "trtexec"))
    assert "trtexec is not on PATH" in str(trtexec_jobs.missing({}))
    fake_trtexec.write(tmp_path / "bin", "v8502")
    assert trtexec_jobs.missing({}) is None
    assert "is not a program" in str(trtexec_jobs.missing({"trtexec": str(tmp_path / "nothing")}))
    other = tmp_path / "trtexec"
    other.write_text("#!/bin/sh\necho hello\n")
    other.chmod(0o755)
    assert "does not print its version" in str(trtexec_jobs.missing({"trtexec": str(other)}))


def test_a_device_without_the_python_module_is_used_through_its_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = fake_trtexec.write(tmp_path, "v8502")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # as where it is not installed
    runtime = TensorRt(LocalDevice(), precision="fp16")
    assert runtime.fingerprint()["through"] == "trtexec"
    assert runtime.time_network(network(), 0, 0.1, 3) == pytest.approx([1.502, 1.503, 1.504])
    rows = runtime.profile_nodes(network(), 5)
    assert [(name, ms.shape) for name, ms in rows] == [
        ("conv + out [ONNX Layer: conv] [ONNX Layer: out]", (1,)),
        ("second [ONNX Layer: second]", (1,)),
    ]
    engine = runtime.build(network(), [1, 8, 32])
    assert engine.info["batches"] == [1, 8, 32]
    assert calls(program)[-1]["--optShapes"] == "input:8x1x2x2,other:8x3"
    images, others = np.zeros((3, 1, 2, 2), np.float32), np.ones((3, 3), np.float32)
    assert runtime.predictor(network())(images, others)[1].tolist() == [[3.0, 4.0, 5.0]] * 3


def test_a_table_is_built_through_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure_briefly(monkeypatch)
    fake_trtexec.write(tmp_path, "v100300")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(8 * 36, 10)
    )
    space = discover_space(model.eval(), torch.zeros(1, 3, 8, 8), bins=3, channel_multiple=1)
    graph = OnnxSupernet(model, space, (1, 3, 8, 8))
    # A batch of its own: this test's runtime is no other's.
    profile = HwProfile(
        name="board", description="", runtime="tensorrt", seconds=0.01, iterations=2, threads=7
    )
    table = LatencyTable("board")
    report = build_lut(graph, profile, table)
    assert report.failed == ()
    assert table.sessions[0].provenance["through"] == "trtexec"
    rows = {layer: row.stat.median_ms for (layer, _), row in table.rows.items()}
    first, second, head = (rows[slot.at(space.largest())] for slot in graph.slots)
    # Rows of 0.01 ms, 0.02 ms and so on: a convolution with its ReLU, the next one, a reshape, the head.
    assert [first, second, head] == pytest.approx([0.01, 0.02 + 0.03, 0.04])


def test_a_jetson_tells_its_board_release_and_power_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = fake_trtexec.write(tmp_path, "v100300")
    (tmp_path / "model").write_bytes(b"NVIDIA Jetson Orin Nano Developer Kit\0")
    (tmp_path / "release").write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n")
    nvpmodel = tmp_path / "nvpmodel"
    nvpmodel.write_text("#!/bin/sh\necho 'NV Power Mode: 15W'\necho 0\n")
    nvpmodel.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(trtexec_jobs, "_devices", [])
    monkeypatch.setattr(look, "DEVICE_TREE", tmp_path / "model")
    monkeypatch.setattr(look, "L4T_RELEASE", tmp_path / "release")
    assert job(program, "fingerprint")["fingerprint"] == {
        "runtime_version": "10.3.0",
        "through": "trtexec",
        "processor": "NVIDIA Jetson Orin Nano Developer Kit",
        "l4t": "36.4.3",
        "power_mode": "15W",
    }


def test_a_full_disk_is_one_line(tmp_path: Path, largest_file: Any) -> None:
    program = fake_trtexec.write(tmp_path, "v8601")
    trtexec_jobs.missing({"trtexec": str(program)})
    with largest_file(100), pytest.raises(JobError, match="engines cannot be written to") as caught:
        job(program, "time", model=b"x" * 1000, warmup_ms=0, seconds=0.1, iterations=2)
    assert caught.value.kind == "device"


def test_an_output_without_marked_errors_gives_its_last_line() -> None:
    assert reason_of("&&&& RUNNING\nloading\nlibnvinfer.so.8: not found\n&&&& FAILED") == (
        "libnvinfer.so.8: not found"
    )
    assert reason_of("[E] Engine set up failed\n") == "Engine set up failed"
    assert reason_of("") == ""


def test_an_onnx_files_inputs_are_read_without_onnx() -> None:
    assert onnx_inputs(network(2)) == [("input", [2, 1, 2, 2]), ("other", [2, 3])]
    assert onnx_inputs(network("N")) == [("input", [-1, 1, 2, 2]), ("other", [-1, 3])]
    whole = onnx.load_from_string(network(2))
    whole.metadata_props.add(key="k", value="v" * 300)
    assert onnx_inputs(whole.SerializeToString()) == onnx_inputs(network(2))
    for other in (b"", b"ftrt" + bytes(range(256)), b"\0" * 64, network(2)[:50], b"{}", b"\xff" * 20):
        assert onnx_inputs(other) is None
