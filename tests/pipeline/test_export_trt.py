"""Engines: built for real by TensorRT for RTX, without a GPU; executed ones, through ONNX Runtime's."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from conftest import PROFILE, Refused, contents
from peaks import PEAKS

from bcnet.agent.tensorrt_module import variant_of
from bcnet.cli import main
from bcnet.config import Config, load_config
from bcnet.latency_tables.rows import LatencyStat
from bcnet.pipeline.engine import beside_engine, build_and_verify, facts_of, trtexec_line
from bcnet.pipeline.finished import sliced, sliced_model
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.verify import Artifact, Expected
from bcnet.runs import Run
from bcnet.runtimes import runtime_here
from bcnet.runtimes.onnx_batch import with_free_batch
from bcnet.width_search.budget import Budget

pytest.importorskip("tensorrt_rtx")

EXPORT = Path("runs/default/export")
ENGINE, FACTS, VERIFIED = EXPORT / "model.engine", EXPORT / "engine.json", EXPORT / "verify.json"
AHEAD = Path("runs/desk/export")  # of the run that `desk` has
DESK_ENGINE, DESK_FACTS = AHEAD / "model.engine", AHEAD / "engine.json"
DESK = f"""
description = "a desktop's GPU that is not here"
runtime = "tensorrt-rtx"
precision = "fp16"
compute_capability = "8.9"
{PEAKS}
"""
BOARD = DESK.replace("tensorrt-rtx", "tensorrt").replace("8.9", "8.7").replace("a desktop's", "a board's")
Done = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture(scope="module")
def searched(finished: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished project with two more devices, each with an estimate; searched for `desk`, not sliced."""
    path = tmp_path_factory.mktemp("engines") / "project"
    shutil.copytree(finished[0], path)
    (path / "hw_profiles/desk.toml").write_text(DESK, encoding="utf-8")
    (path / "hw_profiles/board.toml").write_text(BOARD, encoding="utf-8")
    with contextlib.chdir(path):
        for words in (["build-lut", "--estimate", "--device", "desk"], ["search", "--device", "desk"]):
            assert main(words) == 0
    return path


@pytest.fixture
def desk(searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = tmp_path / "project"
    shutil.copytree(searched, copy)
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture(scope="module")
def built_ahead(searched: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project that is searched for `desk`, with an engine of it."""
    path = tmp_path_factory.mktemp("built") / "project"
    shutil.copytree(searched, path)
    with contextlib.chdir(path):
        assert main(["export", "--trt"]) == 4
    return path


@pytest.fixture
def desk_engine(built_ahead: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = tmp_path / "project"
    shutil.copytree(built_ahead, copy)
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture
def done(capfd: pytest.CaptureFixture[str]) -> Done:
    """`done(code, *arguments)`: what a command answered with --json, and what it said on stderr."""

    def run(code: int, *arguments: str) -> tuple[dict[str, Any], str]:
        capfd.readouterr()
        found = main([*arguments, "--json"])
        out, err = capfd.readouterr()
        assert found == code, err
        answer = json.loads(out)
        assert isinstance(answer, dict)
        return answer, err

    return run


def verified_engine(monkeypatch: pytest.MonkeyPatch, done: Done, engine: Path) -> dict[str, Any]:
    """What `bcnet verify` answers on a device whose engine, here ONNX Runtime, is its ONNX file."""
    file, facts = beside_engine(engine)
    content = file.read_bytes()
    own = json.loads(facts.read_text(encoding="utf-8")) | {"flavour": "onnxruntime"}
    own["sha256"] = own["onnx_sha256"] = hashlib.sha256(content).hexdigest()
    stage = Run.named(engine.parts[1]).stage("export")
    manifest = stage.manifest()
    kept = {name: stage.path(name).read_bytes() for name in manifest["outputs"]}
    stage.finish(manifest["inputs"], {**kept, engine.name: content, facts.name: json.dumps(own).encode()})
    monkeypatch.setattr("bcnet.pipeline.verify.measure_network", lambda *_, **__: LatencyStat(1, 1, 0, 9))
    return done(0, "verify", "--engine", str(engine))[0]


def test_of_several_devices_each_with_tensorrt_gets_an_engine(
    desk: Path, done: Done, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = ("--device", "cpu", "--device", "desk")
    done(0, "search", *both, "--latency-ms", "cpu=1000", "--latency-ms", "desk=1000", "--run", "both")
    folder = Path("runs/both/export")
    exported, said = done(4, "export", "--trt", "--run", "both")
    (there,) = exported["further"]
    engine = folder / "model-desk.engine"
    assert (exported["file"], there["file"]) == (str(folder / "model.onnx"), str(engine))
    assert variant_of(engine.read_bytes()) == "tensorrt-rtx"
    facts = json.loads((folder / "engine-desk.json").read_text(encoding="utf-8"))
    file = (folder / "model-desk.onnx").read_bytes()
    assert (facts["device"], facts["precision"], facts["batches"]) == ("desk", "fp16", [1])
    assert facts["onnx_sha256"] == hashlib.sha256(file).hexdigest()
    assert not list(folder.glob("engine.json"))
    assert exported["measured"] is not None
    assert "predicted_for" not in exported
    assert (there["predicted_for"], there["onnx_file"]["precision"]) == ("tensorrt-rtx", "fp16")
    assert exported["not_verified"].startswith("on desk: the engine was built ahead of time")
    assert exported["verify_with"] == (
        f"on desk: run `bcnet verify --engine {engine} --run both` on the device, or here with "
        "--host user@device"
    )
    assert last_line(said).startswith(f"bcnet: {folder / 'model.onnx'} is not verified: on desk: ")
    assert f"{engine} is not verified: device 'desk' is not available" in refused(
        4, "verify", "--engine", str(engine)
    )
    # Where the device is available, its engine is verified, and with it the whole export; also where the
    # configuration has a budget for each device.
    settings = Path("bcnet.toml").read_text(encoding="utf-8")
    budgets = settings.replace('latency = "75%"', "latency_ms = { cpu = 1000.0, desk = 1000.0 }")
    Path("bcnet.toml").write_text(f'device = ["cpu", "desk"]\n{budgets}', encoding="utf-8")
    monkeypatch.setattr("bcnet.pipeline.verify_engine.full_engine", lambda builder, full, batches: full)
    found = verified_engine(monkeypatch, done, engine)
    assert (found["verified"], found["not_verified"], found["verify_with"]) == (True, None, None)
    assert found["measured"] == exported["measured"]
    (there,) = found["further"]
    assert (there["executed"], there["measured"]["median_ms"], there["file"]) == (True, 1, str(engine))
    assert there["onnx_file"]["precision"] == "fp16"
    # An export without engines leaves none.
    done(4, "export", "--run", "both")
    assert sorted(path.name for path in folder.glob("*engine*")) == []


def test_engines_need_a_device_with_tensorrt_and_several_batches_the_first_one(
    desk: Path, refused: Refused
) -> None:
    Path("hw_profiles/two.toml").write_text(f"{PROFILE}threads = 2\n", encoding="utf-8")
    message = "device 'cpu' runs onnxruntime, so there is no engine to build"
    assert message in refused(1, "export", "--trt", "--device", "cpu", "--device", "two")
    assert message in refused(1, "export", "--trt", "--device", "cpu", "--device", "desk", "--batch", "1,8")


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


@pytest.mark.usefixtures("desk")
def test_an_engine_is_built_ahead_of_time_and_not_called_verified(done: Done) -> None:
    exported, said = done(4, "export", "--trt")
    content, facts = DESK_ENGINE.read_bytes(), json.loads(DESK_FACTS.read_text(encoding="utf-8"))
    assert variant_of(content) == "tensorrt-rtx"
    assert facts["flavour"] == "tensorrt-rtx"
    assert list(facts["versions"]) == ["tensorrt-rtx"]
    assert (facts["compute_capability"], facts["precision"], facts["device"]) == ("8.9", "fp16", "desk")
    assert (facts["batches"], facts["dynamic"], facts["gpu"]) == ([1], False, None)
    assert (facts["size_bytes"], facts["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    file = (AHEAD / "model.onnx").read_bytes()
    assert facts["onnx_sha256"] == hashlib.sha256(file).hexdigest()
    origins = " ".join(layer["Metadata"] for layer in facts["layers"])
    assert all(
        node.name in origins for node in onnx.load_from_string(file).graph.node if node.op_type == "Conv"
    )
    assert "the builder's log" in facts["layers_source"]
    # What could be checked here was: the FP16 file, by ONNX Runtime. No latency is reported.
    assert exported["onnx_file"]["precision"] == "fp16"
    assert 0 < exported["onnx_file"]["output_error"] < 2e-3
    assert exported["onnx_file"]["accuracy"] == pytest.approx(exported["accuracy_torch"], abs=0.005)
    assert exported["onnx_file"]["size_bytes"] == len(file)
    assert exported["file"] == str(DESK_ENGINE)
    assert (exported["executed"], exported["verified"], exported["passed"]) == (False, False, True)
    assert (exported["measured"], exported["full"]) == (None, None)
    assert json.loads((AHEAD / "verify.json").read_text(encoding="utf-8")) == exported
    last = last_line(said)
    assert last.startswith(
        f"bcnet: {DESK_ENGINE} is not verified: the engine was built ahead of time and not executed"
    )
    assert "device 'desk' is not available" in last
    advised = (
        f"`bcnet verify --engine {DESK_ENGINE} --run desk` on the device, or here with --host user@device"
    )
    assert advised in last
    assert f"`bcnet verify --engine {DESK_ENGINE} --run desk`" in exported["verify_with"]
    # The device is that of the last table, and its run is its own.
    assert "slicing the winner first: not done yet" in said
    assert "device desk: as in the table that was built last in this run" in said
    # All of it is vouched for, and complete: a run has nothing more to do for it.
    assert set(Run.named("desk").stage("export").manifest()["outputs"]) == {
        "model.onnx",
        "model.engine",
        "engine.json",
        "verify.json",
        "answers.json",
    }


@pytest.mark.usefixtures("desk_engine")
def test_without_its_device_an_engine_is_not_verified_and_nothing_changes(refused: Refused) -> None:
    line = refused(4, "verify", "--engine", str(DESK_ENGINE))
    assert f"{DESK_ENGINE} is not verified: device 'desk' is not available" in line
    assert "run this on the device itself, or here with --host user@device" in line
    DESK_ENGINE.write_bytes(DESK_ENGINE.read_bytes() + b"x")
    assert "is not the file that" in refused(1, "verify", "--engine", str(DESK_ENGINE))
    assert "nowhere/model.engine does not exist; " in refused(2, "verify", "--engine", "nowhere/model.engine")
    Path("nowhere").mkdir()
    for name in ("model.engine", "model.onnx"):
        Path(f"nowhere/{name}").touch()
    assert "engine.json is missing" in refused(1, "verify", "--engine", "nowhere/model.engine")
    line = refused(2, "verify", "--engine", "nowhere/model.onnx")
    assert "nowhere/model.onnx is an ONNX file and no engine; `bcnet export` verifies the ONNX files" in line


@pytest.mark.usefixtures("desk_engine")
def test_a_build_that_fails_leaves_the_export_before_it_as_it_was(refused: Refused) -> None:
    Path("hw_profiles/desk.toml").write_text(DESK.replace("8.9", "9.0"), encoding="utf-8")
    line = refused(1, "export", "--trt", "--device", "desk")
    assert "TensorRT for RTX builds for SM75, SM80, SM86, SM89" in line
    assert "not for SM90: build on the device itself, with runtime 'tensorrt'" in line
    Path("hw_profiles/desk.toml").write_text(DESK.replace('compute_capability = "8.9"', ""), encoding="utf-8")
    assert "has no `compute_capability` in its profile" in refused(1, "export", "--trt", "--device", "desk")


@pytest.mark.usefixtures("desk")
def test_int8_and_a_batch_of_several_sizes(done: Done) -> None:
    done(0, "build-lut", "--estimate", "--device", "desk", "--precision", "int8", "--replace")
    done(0, "search")
    exported, said = done(4, "export", "--trt", "--batch", "1,3,8")
    assert "device desk, precision int8: as in the table that was built last in this run" in said
    facts = json.loads(DESK_FACTS.read_text(encoding="utf-8"))
    assert (facts["batches"], facts["dynamic"], facts["precision"]) == ([1, 3, 8], True, "int8")
    file = onnx.load(AHEAD / "model.onnx")
    assert file.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert {node.op_type for node in file.graph.node} > {"QuantizeLinear", "DequantizeLinear"}
    assert json.loads({e.key: e.value for e in file.metadata_props}["input"])["shape"] == ["batch", 1, 16, 16]
    assert 1e-4 < exported["onnx_file"]["output_error"] < 0.5


@pytest.mark.usefixtures("desk_engine")
def test_for_a_board_no_engine_is_built_here_and_the_way_is_told(done: Done) -> None:
    assert DESK_ENGINE.exists()
    _, said = done(0, "build-lut", "--estimate", "--device", "board", "--run", "desk", "--replace")
    assert "runs/desk belonged to desk (fp16, batch 1, 1 thread), and now belongs to board (fp16" in said
    done(0, "search", "--run", "desk")
    exported, said = done(4, "export", "--trt", "--batch", "1,4", "--run", "desk")
    assert not DESK_ENGINE.exists()
    assert not DESK_FACTS.exists()
    assert f"removed {DESK_ENGINE}, which was from an earlier export" in said
    assert exported["file"] == str(AHEAD / "model.onnx")
    assert (exported["executed"], exported["verified"], exported["measured"]) == (False, False, None)
    assert 0 < exported["output_error"] < 2e-3
    last = last_line(said)
    assert (
        "no engine was built, which TensorRT does only on the device itself: device 'board' is not available"
        in last
    )
    assert "`bcnet export --trt --device board --host user@device --batch 1,4 --run desk`" in last
    assert f"trtexec --onnx={AHEAD}/model.onnx --saveEngine={DESK_ENGINE} --stronglyTyped" in last
    assert "--minShapes=input:1x1x16x16 --optShapes=input:4x1x16x16 --maxShapes=input:4x1x16x16" in last
    # Not even when it is asked for: TensorRT for RTX does not know the board's GPU.
    before = contents(AHEAD)
    assert main(["export", "--trt", "--flavour", "rtx", "--run", "desk"]) == 1
    assert contents(AHEAD) == before


@pytest.mark.usefixtures("desk")
def test_the_advice_names_the_flavour_where_it_is_not_the_profiles_own(done: Done) -> None:
    advised = "build it on the device: `bcnet export --trt --device desk --host user@device"
    _, said = done(4, "export", "--trt", "--flavour", "tensorrt", "--batch", "1,4")
    assert not DESK_ENGINE.exists()
    assert f"{advised} --flavour tensorrt --batch 1,4 --run desk`" in last_line(said)
    # Of its own flavour it is advised without.
    Path("hw_profiles/desk.toml").write_text(DESK.replace("tensorrt-rtx", "tensorrt"), encoding="utf-8")
    for words in (["build-lut", "--estimate", "--device", "desk"], ["search"]):
        done(0, *words)
    for flavour in ((), ("--flavour", "tensorrt")):
        assert f"{advised} --run desk`" in last_line(done(4, "export", "--trt", *flavour)[1])


@pytest.mark.slow
@pytest.mark.usefixtures("desk")
def test_an_rtx_engine_for_a_device_of_tensorrt_is_built_only_when_it_is_asked_for(done: Done) -> None:
    Path("hw_profiles/board.toml").write_text(BOARD.replace("8.7", "7.5"), encoding="utf-8")
    for words in (["build-lut", "--estimate", "--device", "board"], ["search"]):
        done(0, *words)
    done(4, "export", "--trt")
    engine = Path("runs/board/export/model.engine")
    assert not engine.exists()
    exported, _ = done(4, "export", "--trt", "--flavour", "rtx")
    assert variant_of(engine.read_bytes()) == "tensorrt-rtx"
    facts = json.loads(engine.with_name("engine.json").read_text(encoding="utf-8"))
    assert facts["compute_capability"] == "7.5"
    assert (exported["executed"], exported["predicted_for"]) == (False, "tensorrt")


@pytest.mark.usefixtures("project")
def test_a_device_without_tensorrt_has_no_engine_and_nothing_is_sliced_for_it(refused: Refused) -> None:
    Path("runs/default/slice/manifest.json").unlink()
    line = refused(1, "export", "--trt")
    assert not Path("runs/default/slice/manifest.json").exists()
    assert "device 'cpu' runs onnxruntime, so there is no engine to build" in line
    assert "run `bcnet build-lut --device jetson --host user@name`, `bcnet search` and `bcnet export" in line


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("text", ["1,,8", "8,1", "0", "0,8", "1,1", "", "-1", "1.5", "two", "1,99999"])
def test_a_batch_that_cannot_be_meant_is_wrong_usage(refused: Refused, text: str) -> None:
    assert "--batch takes sizes from 1 to 65536 in ascending order, e.g. 1,8,32" in refused(
        2, "export", "--trt", f"--batch={text}"
    )


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "--batch", "1,8"], "--batch takes several sizes for an engine only: add --trt"),
        (["export", "--flavour", "rtx"], "--flavour chooses the TensorRT variant of an engine: add --trt"),
        (["export", "--trt", "--flavour", "lite"], "--flavour is tensorrt or rtx, not 'lite'"),
        (["verify"], "--engine"),
    ],
)
def test_flags_that_do_not_fit_are_wrong_usage(refused: Refused, arguments: list[str], message: str) -> None:
    assert message in refused(2, *arguments)


def test_trtexec_is_told_the_types_and_all_shapes(project: Path) -> None:
    profile = open_problem(load_config(None)).profile
    proto = onnx.load(EXPORT / "model.onnx")
    plain = "trtexec --onnx=a/model.onnx --saveEngine=a/model.engine"
    assert trtexec_line("a/model.onnx", proto, profile, ()) == plain
    old = profile.model_copy(update={"opset": 17, "precision": "int8"})
    assert trtexec_line("a/model.onnx", proto, old, ()) == f"{plain} --int8"
    dynamic = trtexec_line("a/model.onnx", proto, profile, (1, 8, 32))
    shapes = "--minShapes=input:1x1x16x16 --optShapes=input:8x1x16x16 --maxShapes=input:32x1x16x16"
    assert dynamic == f"{plain} {shapes}"


def configured() -> Config:
    return load_config(None)


@pytest.mark.parametrize("batches", [(), (1, 2, 8)])
def test_where_the_device_is_at_hand_the_engine_is_executed_and_timed(
    project: Path, batches: tuple[int, ...]
) -> None:
    """ONNX Runtime's engine, which is the file itself, takes the place of a GPU's."""
    config = configured()
    found = open_problem(config)
    run = Run.named("default")
    content = (EXPORT / "model.onnx").read_bytes()
    content = with_free_batch(content) if batches else content
    expected = Expected(
        sliced_model(run, found),
        found.space,
        sliced(run, found).widths,
        found.data,
        config.export,
        1.0,
        Budget(1000.0),
    )
    artifact = Artifact(onnx.load_from_string(content), found.graph.variant(found.space.original()))
    built = build_and_verify(artifact, expected, found.profile, batches)
    assert built.engine is not None
    assert built.of_file.executed is False
    assert built.report.executed is True
    assert built.report.verified, built.report.failures
    assert built.report.measured is not None
    assert built.report.full is not None
    assert 0 < built.report.measured.median_ms < built.report.full.median_ms
    made_from = run.stage("export").manifest()["inputs"]
    facts = facts_of(built.engine, content, found.profile, batches, made_from)
    assert (facts["batches"], facts["dynamic"]) == (list(batches) or [1], bool(batches))
    # A file that fails here is not built at all.
    strict = config.export.model_copy(update={"output_tolerance": 1e-12})
    failed = build_and_verify(artifact, replace(expected, limits=strict), found.profile, batches)
    assert failed.engine is None
    assert "outputs differ from PyTorch" in failed.report.failures[0]


def with_engine() -> None:
    """An engine of ONNX Runtime in the finished run's export, as `bcnet export --trt` leaves one of a GPU."""
    profile = open_problem(configured()).profile
    content = (EXPORT / "model.onnx").read_bytes()
    engine = runtime_here("onnxruntime").build(content)
    stage = Run.named("default").stage("export")
    inputs = stage.manifest()["inputs"]
    report = json.loads(VERIFIED.read_text(encoding="utf-8"))
    report |= {"executed": False, "verified": False, "measured": None, "not_verified": "a test's"}
    files = {
        "model.onnx": content,
        "model.engine": engine.content,
        "engine.json": json.dumps(facts_of(engine, content, profile, (), inputs)).encode(),
        "verify.json": json.dumps(report).encode(),
    }
    stage.finish(inputs, files)


def test_an_engine_that_was_built_elsewhere_is_verified_on_its_device(project: Path, done: Done) -> None:
    with_engine()
    found, said = done(0, "verify", "--engine", str(ENGINE))
    assert found == json.loads(VERIFIED.read_text(encoding="utf-8"))
    assert (found["executed"], found["verified"], found["not_verified"]) == (True, True, None)
    assert 0 < found["measured"]["median_ms"] < found["full"]["median_ms"]
    assert found["accuracy"] == found["accuracy_torch"]
    assert last_line(said) == f"verified: {ENGINE}"
    assert main(["run"]) == 0  # the stage is still whole
    # Elsewhere, too, beside its own files.
    shutil.copytree(EXPORT, "taken")
    assert done(0, "verify", "--engine", "taken/model.engine")[0]["file"] == "taken/model.engine"


BROKEN = {
    "batches": ([], 1, None),
    "batches.0": (["1"], [True], [0], [1.5], [99_999]),
    "dynamic": (1, "no"),
    "flavour": ("torch", "lite", None),
    "precision": ("fp64", 16),
    "device": (None, 3),
    "sha256": (0,),
    "onnx_sha256": (None,),
    "search": (None,),
    "slice": ({},),
}


def test_a_broken_engine_json_is_one_line_that_names_the_field(project: Path, refused: Refused) -> None:
    with_engine()
    facts = json.loads(FACTS.read_text(encoding="utf-8"))
    wrote = "is not what export wrote; run `bcnet export --trt` again"
    for where, values in BROKEN.items():
        key = where.split(".")[0]
        for value in values:
            FACTS.write_text(json.dumps({**facts, key: value}), encoding="utf-8")
            assert refused(1, "verify", "--engine", str(ENGINE)) == f"bcnet: {FACTS}: {where} {wrote}"
        FACTS.write_text(json.dumps({k: v for k, v in facts.items() if k != key}), encoding="utf-8")
        assert refused(1, "verify", "--engine", str(ENGINE)) == f"bcnet: {FACTS}: {key} {wrote}"
    for text in ("[]", "null", "1"):
        FACTS.write_text(text, encoding="utf-8")
        assert refused(1, "verify", "--engine", str(ENGINE)) == f"bcnet: {FACTS} {wrote}"
    FACTS.write_text("{", encoding="utf-8")
    assert "is cut short or edited" in refused(1, "verify", "--engine", str(ENGINE))
    assert "engine.json is missing" in refused(1, "verify", "--engine", ".")


def test_an_engine_json_that_was_edited_to_what_could_be_is_refused_all_the_same(
    project: Path, refused: Refused
) -> None:
    with_engine()
    facts = json.loads(FACTS.read_text(encoding="utf-8"))
    for edit in ({"batches": [2]}, {"dynamic": True}, {"precision": "fp16"}, {"slice": "another"}):
        FACTS.write_text(json.dumps({**facts, **edit}), encoding="utf-8")
        line = refused(1, "verify", "--engine", str(ENGINE))
        assert f"{FACTS} is not what export wrote (cut short or edited)" in line
    FACTS.write_text(json.dumps({**facts, "device": "nowhere"}), encoding="utf-8")
    assert "unknown device 'nowhere'" in refused(2, "verify", "--engine", str(ENGINE))
    # Where no manifest vouches for it, its report may have been edited, too.
    shutil.copytree(EXPORT, "taken")
    Path("taken/engine.json").write_text(json.dumps(facts), encoding="utf-8")
    Path("taken/verify.json").write_text("[]", encoding="utf-8")
    assert "taken/verify.json is not what export wrote" in refused(
        1, "verify", "--engine", "taken/model.engine"
    )


def test_what_a_search_found_by_a_noisier_table_than_is_accepted_now_is_refused_everywhere(
    project: Path, refused: Refused
) -> None:
    with_engine()
    noise = json.loads(Path("runs/default/search/result.json").read_text(encoding="utf-8"))["noise"]
    settings = Path("bcnet.toml").read_text(encoding="utf-8")
    Path("bcnet.toml").write_text(f"table_noise = 0.0\n{settings}", encoding="utf-8")
    noisy = (
        "bcnet: the latency table is noisy: two measurements of one network differed by "
        f"{noise:.1%}, table_noise accepts 0.0%; "
    )
    table = "`bcnet build-lut --device cpu --again`"
    for command in (["verify", "--engine", str(ENGINE)], ["slice"]):
        line = refused(1, *command)
        assert line.startswith(noisy)
        assert f"then run {table} and `bcnet search`; or accept it: table_noise = " in line
    line = refused(1, "export")
    assert line.startswith(noisy)
    assert f"then measure it again with {table}; or accept it: table_noise = " in line


def test_an_engine_of_an_earlier_search_or_slice_is_refused_wherever_it_lies(
    project: Path, done: Done, refused: Refused
) -> None:
    with_engine()
    shutil.copytree(EXPORT, "taken")
    again = "run `bcnet export --trt` again, or name its run with --run NAME"
    done(0, "slice", "--epochs", "0")
    assert refused(1, "verify", "--engine", str(ENGINE)) == (
        f"bcnet: {ENGINE} was made with another slice; {again}"
    )
    done(0, "search", "--latency", "90%")
    for engine in (str(ENGINE), "taken/model.engine"):
        line = refused(1, "verify", "--engine", engine)
        assert line == f"bcnet: {engine} was made with another search and slice; {again}"
    assert "has no finished search" in refused(1, "verify", "--engine", str(ENGINE), "--run", "other")


def test_an_engine_of_another_space_than_the_configured_one_is_refused(
    project: Path, refused: Refused
) -> None:
    with_engine()
    text = Path("bcnet.toml").read_text(encoding="utf-8")
    Path("bcnet.toml").write_text(text.replace("bins = 3", "bins = 4"), encoding="utf-8")
    line = refused(1, "verify", "--engine", str(ENGINE))
    assert "runs/default/train was made with another space; run `bcnet train` again" in line


def test_what_a_recording_answers_verifies_no_engine(project: Path, refused: Refused) -> None:
    with_engine()
    Path("recording.jsonl").touch()
    Path("hw_profiles/cpu.toml").write_text(PROFILE + 'recording = "recording.jsonl"\n', encoding="utf-8")
    line = refused(4, "verify", "--engine", str(ENGINE))
    assert f"{ENGINE} is not verified: latencies are replayed from the recording recording.jsonl" in line


def test_an_engine_that_fails_its_checks_is_exit_code_3_and_its_report_stays(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with_engine()
    before = contents(EXPORT)
    with Path("bcnet.toml").open("a", encoding="utf-8") as file:
        file.write("output_tolerance = 1e-12\n")
    assert main(["verify", "--engine", str(ENGINE)]) == 3
    assert "verification failed: outputs differ from PyTorch" in last_line(capfd.readouterr().err)
    after = contents(EXPORT)
    failed = json.loads(after.pop("failed.json") or b"")
    assert (failed["executed"], failed["passed"]) == (True, False)
    assert after == before


def test_a_search_takes_the_device_of_the_table_that_was_built_last_and_says_so(
    project: Path, done: Done
) -> None:
    Path("hw_profiles/other.toml").write_text(PROFILE + 'aliases = ["it"]\n', encoding="utf-8")
    before = contents(EXPORT)
    done(0, "build-lut", "--device", "it", "--batch", "2")
    notice = "as in the table that was built last in this run"
    quick = "search", "--latency-ms", "1000"  # the whole network wins, and nothing else is measured
    searched, said = done(0, *quick)
    assert f"device other, batch 2: {notice}" in said
    assert searched["device"] == "other"
    _, said = done(0, "slice")
    assert f"device other, batch 2: {notice}" in said
    exported, said = done(0, "export")
    assert exported["device"] == "other"
    file = onnx.load("runs/other/export/model.onnx")
    assert file.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    assert contents(EXPORT) == before
    # A device that is named wins, by a flag or in the file; of the same one, the setting is the table's.
    assert done(0, *quick, "--device", "cpu")[1].count(notice) == 0
    assert f"batch 2: {notice}" in done(0, *quick, "--device", "it")[1]
    text = Path("bcnet.toml").read_text(encoding="utf-8")
    Path("bcnet.toml").write_text(f'device = "cpu"\n{text}', encoding="utf-8")
    searched, said = done(0, *quick)
    assert (searched["device"], said.count(notice)) == ("cpu", 0)


def test_an_export_slices_the_winner_that_is_not_sliced_yet(project: Path, done: Done) -> None:
    shutil.rmtree("runs/default/slice")
    exported, said = done(0, "export")
    assert "slicing the winner first: not done yet" in said
    assert exported["verified"] is True
    assert "slicing" not in done(0, "export")[1]
    # What was sliced with other settings is kept: it is this search's winner.
    done(0, "slice", "--epochs", "0")
    assert "slicing" not in done(0, "export")[1]
