"""`bcnet time`: real networks in ONNX Runtime, here and over ssh, what is printed, and what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import Refused
from onnx import TensorProto, helper, numpy_helper
from sshd import PYTHON, SSHD, Sshd

from bcnet.cli import main
from bcnet.measure.file_timing import Speedup, TimedFile, TimedRuns, TimingReport
from bcnet.runtimes import runtime_here, runtime_on_hosts, runtime_recorded
from bcnet.show import show_timing

QUICK = ("--rounds", "3", "--seconds", "0.03")
PROFILE = 'description = "briefly"\nruntime = "onnxruntime"\nwarmup_ms = 0.0\niterations = 6\n'


@pytest.fixture(autouse=True)
def device(folder: Path) -> None:
    Path("hw_profiles").mkdir()
    Path("hw_profiles/cpu.toml").write_text(PROFILE, encoding="utf-8")


def network(path: str, sides: int | str = 16, width: int = 8, op: str = "Relu") -> str:
    """conv -> op -> pool -> gather of an index, with an image of (batch, 3, sides, sides), and an integer."""
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((width, 3, 3, 3), np.float32), "stem.weight")
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "stem.weight"], ["conv"], name="conv"),
            helper.make_node(op, ["conv"], ["act"], name="act"),
            helper.make_node("GlobalAveragePool", ["act"], ["pooled"], name="pooled"),
            helper.make_node("Gather", ["pooled", "index"], ["chosen"], name="chosen", axis=1),
        ],
        "small",
        [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, sides, sides]),
            helper.make_tensor_value_info("index", TensorProto.INT64, [1]),
        ],
        [helper.make_tensor_value_info("chosen", TensorProto.FLOAT, None)],
        [weight],
    )
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def timed(capfd: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["time", *arguments, *QUICK, "--json"]) == 0
    return dict(json.loads(capfd.readouterr().out))


def test_a_file_is_timed_whole_in_an_application_and_by_layers(capfd: pytest.CaptureFixture[str]) -> None:
    found = timed(capfd, network("a.onnx", "side"), "--batch", "2", "--input", "image=2x3x16x16")
    assert (found["device"], found["threads"], found["batch"]) == ("cpu", 1, 2)
    assert found["runtime"].keys() >= {"runtime", "runtime_version", "processor"}
    (file,) = found["files"]
    assert file["inputs"] == [
        {"name": "image", "dtype": "float32", "shape": [2, 3, 16, 16]},
        {"name": "index", "dtype": "int64", "shape": [1]},
    ]
    for mode in ("device_time", "application"):
        runs = file[mode]
        assert 0 <= runs["low_ms"] <= runs["typical_ms"] <= runs["high_ms"]
        assert 0 < runs["p50_ms"] <= runs["p90_ms"] <= runs["p99_ms"]
        assert (len(runs["rounds_ms"]), runs["runs"] >= 6) == (3, True)
    layers = {layer["name"]: layer["kind"] for layer in file["layers"]}
    assert (layers["stem"], layers["chosen"]) == ("Conv+Relu", "Gather")
    assert sum(layer["share"] for layer in file["layers"]) == pytest.approx(1, abs=0.01)
    assert sum(layer["ms"] for layer in file["layers"]) == pytest.approx(file["layers_ms"], abs=1e-3)


def test_people_read_tables_of_eighty_columns(capfd: pytest.CaptureFixture[str]) -> None:
    small, large = network("small.onnx"), network("large.onnx", 64, 64)
    assert main(["time", large, "--against", small, "--layers", "1", *QUICK]) == 0
    out = capfd.readouterr().out
    lines = out.splitlines()
    assert max(len(line) for line in lines if not line.startswith(("warning", "large.onnx on"))) <= 80
    assert lines[0].startswith("large.onnx on cpu (onnxruntime, ")
    assert lines[1] == "inputs: image 1x3x64x64 float32, index 1 int64"
    assert lines[3].split() == ["ms", "interval", "p50", "p90", "p99", "runs", "noise"]
    assert [re.split(r"\s\s+\d", line)[0].strip() for line in lines[5:9]] == [
        "large.onnx",
        "application",
        "small.onnx",
        "application",
    ]
    assert re.search(r"^stem +Conv\+Relu +\d+\.\d+ +\d+\.\d%$", out, re.MULTILINE)
    assert re.search(r"^\d more layers; the sum of all \d is \d+% of the network's time$", out, re.MULTILINE)
    assert re.search(r"^\S+ (is|and) .*95 %: \d+\.\d\d to \d+\.\d\d\)$", out, re.MULTILINE)
    assert "note: the two files have different inputs" in lines


@pytest.mark.parametrize(
    ("first_ms", "second_ms", "sentence"),
    [
        ((4.0, 4.0, 4.0), (2.0, 2.0, 2.0), "b.onnx is 2.00 times as fast as a.onnx (95 %: 1.98 to 2.02)"),
        ((2.0, 2.0, 2.0), (4.0, 4.0, 4.0), "a.onnx is 2.00 times as fast as b.onnx (95 %: 1.98 to 2.02)"),
        ((2, 2.2, 1.8), (2, 2, 2), "a.onnx and b.onnx are not separable (ratio 1.00, 95 %: 0.78 to 1.28)"),
    ],
)
def test_two_files_are_compared_in_a_sentence(
    first_ms: tuple[float, ...],
    second_ms: tuple[float, ...],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = []
    for name, rounds in (("a.onnx", first_ms), ("b.onnx", second_ms)):
        runs = TimedRuns.of([np.full(9, ms) for ms in rounds])
        files.append(TimedFile(name, "fp32", (), 100, runs, runs))
    report = TimingReport("cpu", 1, 1, {}, tuple(files), Speedup.of(first_ms, second_ms), None, (), None)
    show_timing(report, 0)
    assert sentence in capsys.readouterr().out.splitlines()


def test_a_recording_is_replayed_with_its_numbers(capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("record_to", "recording"):
        text = f'{PROFILE}{name} = "there.jsonl"\n'
        Path(f"hw_profiles/{name}.toml").write_text(text, encoding="utf-8")
    path = network("a.onnx")
    now = timed(capfd, path, "--device", "record_to")
    then = timed(capfd, path, "--device", "recording")
    runtime_here.cache_clear()
    runtime_recorded.cache_clear()
    assert then["recorded"] == "latencies are replayed from the recording there.jsonl, not measured now"
    for found in (now, then):
        (file,) = found.pop("files")
        found["times"] = file["device_time"], file["application"]
        del found["device"], found["recorded"]
    assert then == now


@pytest.mark.skipif(SSHD is None, reason="needs sshd (Debian: openssh-server)")
def test_a_device_over_ssh_times_the_same_file(
    sshd: Sshd, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = f'{PROFILE}host_python = "{PYTHON}"\nhost_folder = "{tmp_path / "there"}"\n'
    Path("hw_profiles/far.toml").write_text(text, encoding="utf-8")
    try:
        found = timed(capfd, network("a.onnx"), "--device", "far", "--host", "device")
    finally:
        runtime_on_hosts.cache_clear()
    (file,) = found["files"]
    assert file["application"]["runs"] >= 6
    assert "stem" in [layer["name"] for layer in file["layers"]]


@pytest.mark.parametrize(
    ("code", "arguments", "error"),
    [
        (2, ["none.onnx"], "bcnet: none.onnx cannot be read: No such file or directory"),
        (2, ["hw_profiles"], "bcnet: hw_profiles cannot be read: it is a folder, not a file"),
        (1, ["hw_profiles/cpu.toml"], "bcnet: hw_profiles/cpu.toml is not an ONNX file"),
        (2, ["a.onnx", "--device", "nosuch"], "bcnet: unknown device 'nosuch'"),
        (2, ["a.onnx", "--input", "image"], "bcnet: --input takes NAME=SHAPE, e.g. image=1x3x224x224, not"),
        (2, ["a.onnx", "--input", "image=0x3"], "bcnet: --input takes NAME=SHAPE"),
        (
            2,
            ["a.onnx", "--input", "x=1"],
            "bcnet: --input: there is no input 'x'; the network's inputs: image, index",
        ),
        (2, ["a.onnx", "--against", "none.onnx"], "bcnet: none.onnx cannot be read: No such file"),
        (2, ["a.onnx", "--rounds", "2"], "bcnet: Invalid value for '--rounds'"),
        (2, [], "bcnet: Missing argument 'FILE'"),
        (1, ["odd.onnx", "--seconds", "0.01"], "bcnet: ONNX Runtime cannot load the network: "),
        (1, ["a.onnx", "--device", "jetson"], "bcnet: device 'jetson-orin-nano' is "),
    ],
)
def test_what_cannot_be_timed_is_refused_in_one_line(
    code: int, arguments: list[str], error: str, refused: Refused
) -> None:
    network("a.onnx")
    network("odd.onnx", op="NoSuchOperator")
    assert refused(code, "time", *arguments).startswith(error)
