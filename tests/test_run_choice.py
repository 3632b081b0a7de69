"""Which run a command works in: a run belongs to one device and setting."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from conftest import PROFILE, Refused
from result_examples import BEST, EXPORT, LATENCY, SEARCH, SLICE

from bcnet.cli import main
from bcnet.config import load_config
from bcnet.errors import ArtifactError, TableError, UsageError
from bcnet.hw_profiles.target import Target
from bcnet.locks import lock_file, locked
from bcnet.pipeline.results import StageResult
from bcnet.run_choice import Does, choose, require_table, run_holding
from bcnet.run_list import removal, remove, runs
from bcnet.run_target import bound_to
from bcnet.runs import Run

pytestmark = pytest.mark.usefixtures("folder")
CPU = {"device": "cpu", "batch": 1, "threads": 1, "precision": "fp32"}
BOARD = {"device": "board", "batch": 1, "threads": 1, "precision": "fp32", "host": ["user@board"]}


@pytest.fixture(autouse=True)
def _devices(folder: Path) -> None:
    (folder / "bcnet.toml").write_text("", encoding="utf-8")
    (folder / "hw_profiles").mkdir()
    for name in ("cpu", "board"):
        (folder / f"hw_profiles/{name}.toml").write_text(PROFILE, encoding="utf-8")
    elsewhere = PROFILE + 'machine = "riscv64"\n'
    (folder / "hw_profiles/far.toml").write_text(elsewhere, encoding="utf-8")


def bind(name: str, target: dict[str, Any], built: int, stage: str = "build-lut") -> None:
    """A run with the report of a table built at this time, or with the result of a search."""
    file = {"build-lut": "report.json", "search": "result.json"}[stage]
    path = Path("runs", name, stage, file)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"target": target}), encoding="utf-8")
    os.utime(path, (built, built))


def chosen(does: Does, name: str | None = None, replace: bool = False, **flags: Any) -> tuple[str, str]:
    """The run's name and its target in words; flags of the top level."""
    choice = choose(load_config(None, {"": flags}), name, None, does, replace=replace)
    config = choice.config
    return choice.run.folder.name, " ".join([*config.device, *config.host])


def test_the_first_run_is_the_default_one_whatever_its_device_is() -> None:
    assert chosen("begin") == ("default", "cpu")
    assert chosen("begin", device="board") == ("default", "board")
    assert chosen("continue") == ("default", "cpu")


def test_another_device_than_the_default_runs_has_a_run_of_its_name() -> None:
    bind("default", CPU, 1)
    assert chosen("begin") == ("default", "cpu")
    assert chosen("begin", device="board", host=["user@board"]) == ("board", "board user@board")
    bind("board", BOARD, 2)
    assert chosen("continue", device="cpu") == ("default", "cpu")
    assert chosen("continue", device="board") == ("board", "board user@board")
    assert chosen("begin") == ("default", "cpu")  # to begin, no device is the processor


def test_a_command_that_names_nothing_continues_the_run_whose_table_was_built_last() -> None:
    bind("default", CPU, 1)
    bind("board", BOARD, 2)
    bind("night", CPU, 3)  # named by the user, and so never taken unasked
    choice = choose(load_config(None), None, None, "continue")
    assert choice.run.folder.name == "board"
    assert choice.notes == (
        "continuing in runs/board, whose table was built last of all runs",
        "device board, host user@board: as in the table that was built last in this run",
    )
    os.utime("runs/default/build-lut/report.json", (4, 4))
    assert chosen("continue") == ("default", "cpu")
    # What the configuration names wins.
    Path("bcnet.toml").write_text('device = "board"', encoding="utf-8")
    assert chosen("continue") == ("board", "board user@board")


def test_a_named_run_has_its_own_device_where_none_is_named() -> None:
    bind("night", BOARD, 1)
    for does in ("begin", "continue", "read"):
        assert chosen(does, "night") == ("night", "board user@board")  # type: ignore[arg-type]


def test_a_setting_is_that_of_the_run_where_none_is_named() -> None:
    bind("default", {**CPU, "batch": 8}, 1)
    for does in ("begin", "continue"):
        choice = choose(load_config(None), None, None, does)  # type: ignore[arg-type]
        assert choice.config.batch == 8
        assert choice.notes == ("batch 8: as in the table that was built last in this run",)


def test_another_device_or_setting_in_a_run_is_refused_with_both_ways_out() -> None:
    bind("default", CPU, 1)
    bind("night", BOARD, 2)
    with pytest.raises(UsageError) as refusal:
        chosen("begin", "night", device="cpu")
    assert str(refusal.value) == (
        "runs/night belongs to board (fp32, batch 1, 1 thread), not to cpu (fp32, batch 1, 1 thread): choose "
        "another run with --run cpu, or reassign runs/night to cpu with --replace"
    )
    with pytest.raises(UsageError, match="run with --run cpu-batch8-int8, or reassign runs/default to"):
        chosen("begin", batch=8, precision="int8")
    with pytest.raises(UsageError) as refusal:
        chosen("continue", batch=8)
    assert str(refusal.value) == (
        "runs/default belongs to cpu (fp32, batch 1, 1 thread), not to cpu (fp32, batch 8, 1 thread): "
        "measure the latter in a run of its own, `bcnet build-lut --device cpu --batch 8 --run cpu-batch8`, "
        "or in this one, `bcnet build-lut --device cpu --batch 8 --run default --replace`"
    )
    with pytest.raises(UsageError) as refusal:
        chosen("begin", "night", device=["cpu", "far"])
    assert str(refusal.value) == (
        "runs/night belongs to board (fp32, batch 1, 1 thread), not to cpu (fp32, batch 1, 1 thread) and "
        "far: choose another run with --run cpu, or reassign runs/night to cpu and far with --replace"
    )
    with pytest.raises(UsageError, match="`bcnet build-lut --device cpu --device far --run cpu`"):
        chosen("continue", "night", device=["cpu", "far"])
    assert chosen("begin", "night", replace=True, device="cpu") == ("night", "cpu")
    assert chosen("read", "night", device="cpu") == ("night", "cpu")


def test_a_device_without_a_table_is_an_error_that_names_the_command_and_never_another_device(
    refused: Refused,
) -> None:
    bind("default", CPU, 1)
    for command in ("search", "slice", "export"):
        line = refused(1, command, "--device", "board")
        assert (
            "there is no run for board yet: measure its latency table first, with `bcnet build-lut --device "
            "board`" in line
        )
        line = refused(1, command, "--device", "far", "--run", "night")
        assert (
            "there is no run named night for far yet: measure its latency table first, with `bcnet "
            "build-lut --device far --host user@name --run night`" in line
        )
        line = refused(1, command, "--device", "far", "--host", "me@far", "--config", "bcnet.toml")
        assert "`bcnet build-lut --device far --host me@far --config bcnet.toml`" in line
    # A table that was committed serves a search, but nothing can be sliced before there is one.
    Path("latency_tables").mkdir()
    Path("latency_tables/board.json").write_text("{}", encoding="utf-8")
    choice = choose(load_config(None, {"": {"device": "board"}}), None, None, "continue")
    require_table(choice, searched=False)
    with pytest.raises(TableError, match="there is no run for board yet"):
        require_table(choice, searched=True)


def test_a_run_without_a_table_of_its_own_belongs_to_what_it_was_searched_for() -> None:
    bind("default", BOARD, 1, "search")
    bound = bound_to(Run.named("default"))
    assert bound is not None
    assert bound.target == Target("board", 1, 1, "fp32")
    assert chosen("begin") == ("cpu", "cpu")


def test_later_stages_use_all_devices_of_the_search_unless_others_are_named() -> None:
    bind("default", CPU, 1)
    bind_search = Path("runs/default/search/result.json")
    bind_search.parent.mkdir()
    bind_search.write_text(json.dumps({"target": {**CPU, "device": ["cpu", "board"]}}), encoding="utf-8")
    assert chosen("continue") == ("default", "cpu board")
    assert chosen("begin") == ("default", "cpu board")
    assert chosen("continue", device="cpu") == ("default", "cpu")
    assert chosen("begin", device=["cpu", "jetson"]) == ("default", "cpu jetson")
    bind_search.write_text(json.dumps({"target": {**BOARD, "device": ["board", "cpu"]}}), encoding="utf-8")
    assert chosen("continue") == ("default", "cpu")  # its table was built for another one since


def test_a_run_that_is_reassigned_names_all_devices_before_and_after() -> None:
    bind("default", {**CPU, "device": ["cpu", "far"]}, 1)
    devices = {"": {"device": ["board", "far"]}}
    choice = choose(load_config(None, devices), "default", None, "begin", replace=True)
    assert choice.notes == (
        "runs/default belonged to cpu (fp32, batch 1, 1 thread) and far, and now belongs to board (fp32, "
        "batch 1, 1 thread) and far",
    )


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"target": {"device": 3}}', '{"target": {"batch": "x"}}']
)
def test_a_report_that_cannot_be_read_is_one_line_that_names_the_command(content: str) -> None:
    bind("default", CPU, 1)
    Path("runs/default/build-lut/report.json").write_text(content, encoding="utf-8")
    if content == "[]":
        assert bound_to(Run.named("default")) is None
    else:
        with pytest.raises(ArtifactError, match=r"report\.json .*run `bcnet build-lut`"):
            chosen("continue")


def test_an_engine_belongs_to_the_run_that_it_lies_in() -> None:
    assert run_holding(Path("runs/board/export/model.engine")) == "board"
    assert run_holding(Path("runs/board/export.previous/model.engine")) == "board"
    assert run_holding(Path("taken/model.engine")) is None


def test_an_old_report_that_names_its_device_alone_has_the_profiles_setting() -> None:
    bind("default", {"device": "board"}, 1)
    bound = bound_to(Run.named("default"))
    assert bound is not None
    assert bound.target == Target("board", 1, 1, "fp32")


def test_without_a_configuration_only_a_run_that_is_there_goes_on(
    refused: Refused, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("bcnet.toml").unlink()
    for command in ("train", "build-lut", "search", "slice", "export"):
        assert refused(1, command) == (
            "bcnet: there is no bcnet.toml here: write one with `bcnet init`, name one with --config, or try "
            "the built-in example with `bcnet run`"
        )
    example = "no bcnet.toml here: this is the built-in example, handwritten digits (`bcnet init` writes one)"
    assert main(["inspect"]) == 0
    assert capfd.readouterr().err.strip() == example
    Path("bcnet.toml").symlink_to("nowhere.toml")
    assert "bcnet.toml is a link to nowhere.toml, which is not there" in refused(1, "run")


def test_runs_are_listed_and_one_is_removed(refused: Refused, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["runs"]) == 0
    assert capfd.readouterr().out == "there are no runs in this folder yet; `bcnet run` makes one\n"
    bind("default", CPU, 1)
    bind("night", BOARD, 2)
    Path("runs/night/train").mkdir()
    Path("runs/night/train/manifest.json").write_text("{}", encoding="utf-8")
    assert main(["runs", "--json"]) == 0
    found = {run["name"]: run for run in json.loads(capfd.readouterr().out)["runs"]}
    assert list(found) == ["default", "night"]
    assert found["night"]["target"] == {"device": "board", "batch": 1, "threads": 1, "precision": "fp32"}
    assert found["night"]["stages"] == ["train"]
    assert main(["runs"]) == 0
    shown = capfd.readouterr().out
    assert "board, fp32" in shown
    assert "none yet, train done" in shown

    assert "this removes runs/night: 2 files, 0.0 MB, without a verified export; add --yes" in refused(
        2, "runs", "remove", "night"
    )
    assert "there is no run 'nigth'; available: default, night" in refused(
        2, "runs", "remove", "nigth", "--yes"
    )
    with Run.named("night").in_use():
        assert "a process is using runs/night" in refused(1, "runs", "remove", "night", "--yes")
    assert main(["runs", "remove", "night", "--yes"]) == 0
    assert capfd.readouterr().out.startswith("removed runs/night: 2 files")
    assert [path.name for path in Path("runs").iterdir()] == ["default"]


def test_a_removal_never_follows_a_link_out_of_the_runs(refused: Refused) -> None:
    Path("kept").mkdir()
    Path("kept/file").write_text("kept", encoding="utf-8")
    bind("night", CPU, 1)
    Path("runs/night/link").symlink_to(Path("kept").absolute())
    Path("runs/link").symlink_to(Path("kept").absolute())
    assert "runs/link is a link" in refused(2, "runs", "remove", "link", "--yes")
    assert "the name of a run consists of letters" in refused(2, "runs", "remove", "../kept", "--yes")
    remove(removal("night"))
    assert not Path("runs/night").exists()
    assert Path("kept/file").read_text(encoding="utf-8") == "kept"


def test_results_that_cannot_be_read_do_not_hide_the_other_runs() -> None:
    bind("default", CPU, 1)
    bind("night", CPU, 2)
    Path("runs/night/build-lut/report.json").write_text("{", encoding="utf-8")
    fine, broken = runs()
    assert fine.problem is None
    assert broken.problem is not None
    assert "report.json is cut short or edited" in broken.problem


EXAMPLES: dict[str, StageResult] = {"search": SEARCH, "slice": SLICE, "export": EXPORT}


def finish(stage: str, inputs: dict[str, str], **changed: Any) -> None:
    """A finished stage with an example of its result, with these values changed."""
    example = EXAMPLES[stage]
    content = json.dumps({**example.to_json(), **changed}).encode()
    Run.named("default").stage(stage).finish(inputs, {example.FILE: content})


def finish_run(budget_ms: float, *stages: str) -> None:
    """These stages of a run, each made from those before it."""
    own = {name: Run.named("default").stage(name) for name in ("search", "slice")}
    if "search" in stages:
        best = {**BEST.to_json(), "widths": [8], "predicted_ms": budget_ms, "accuracy": 0.5, "measured": None}
        finish("search", {}, target=CPU, budget={"ms": budget_ms}, best=best)
    if "slice" in stages:
        finish(
            "slice",
            {"search": own["search"].digest()},
            widths=[8],
            budget={"ms": budget_ms},
            predicted_ms=budget_ms,
            test_accuracy_after=0.875,
        )
    if "export" in stages:
        made = {name: stage.digest() for name, stage in own.items()}
        measured = {**asdict(LATENCY), "median_ms": budget_ms / 2}
        finish("export", made, measured=measured, accuracy=0.9)


def test_an_export_of_an_earlier_search_is_listed_as_outdated(capfd: pytest.CaptureFixture[str]) -> None:
    finish_run(4.0, "search", "slice", "export")
    (state,) = runs()
    assert (state.row()[2:5], state.outdated) == (["4.000 ms", "2.000 ms, 90.00% (test)", "verified"], ())
    finish_run(3.0, "search")
    (state,) = runs()
    assert state.row()[2:5] == ["3.000 ms", "3.000 ms, 50.00% (validation)", "verified, outdated"]
    assert state.outdated == ("slice", "export")
    finish_run(3.0, "slice")
    assert runs()[0].row()[3] == "3.000 ms, 87.50% (test)"
    assert main(["runs", "--json"]) == 0
    (listed,) = json.loads(capfd.readouterr().out)["runs"]
    assert listed["outdated"] == ["export"]
    assert (listed["budget"]["ms"], listed["latency_ms"], listed["verified"]) == (3.0, 3.0, True)
    finish_run(3.0, "export")
    assert runs()[0].row()[2:5] == ["3.000 ms", "1.500 ms, 90.00% (test)", "verified"]


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("search/result.json", '"widths": [8]', '"widths": [1e400]'),
        ("slice/result.json", "0.875", "0.975"),
        ("export/verify.json", "0.9", "0.99"),
        ("export/verify.json", "true", '"x"'),
    ],
)
def test_an_edited_result_is_never_listed_as_what_was_found(
    file: str, old: str, new: str, capfd: pytest.CaptureFixture[str]
) -> None:
    finish_run(4.0, "search", "slice", "export")
    path = Path("runs/default", file)
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    assert main(["runs"]) == 0
    shown = " ".join(capfd.readouterr().out.split())
    assert "cannot be read: " in shown
    assert " verified" not in shown
    (state,) = runs()
    assert state.problem is not None
    assert (
        f"runs/default/{file} is not what {file.split('/')[0]} wrote (cut short or edited)" in state.problem
    )


@pytest.mark.parametrize(
    ("stage", "changed", "where"),
    [
        ("search", {"target": CPU, "best": {**BEST.to_json(), "widths": [float("inf")]}}, "best.widths.0"),
        ("search", {"target": CPU, "budget": {"ms": float("nan")}}, "budget.ms"),
        ("export", {"verified": "x"}, "verified"),
        ("export", {"measured": {**asdict(LATENCY), "median_ms": "fast"}}, "measured.median_ms"),
    ],
)
def test_values_that_no_stage_writes_are_a_row_that_names_the_command(
    stage: str, changed: dict[str, Any], where: str, capfd: pytest.CaptureFixture[str]
) -> None:
    finish(stage, {}, **changed)
    assert main(["runs"]) == 0
    file = f"runs/default/{stage}/{EXAMPLES[stage].FILE}"
    shown = " ".join(capfd.readouterr().out.split())
    assert f"cannot be read: {file}: {where} is not what {stage} wrote; run `bcnet {stage}` again" in shown
    assert main(["runs", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["runs"][0]["verified"] is None


def test_what_a_killed_process_left_beside_a_run_is_removed(refused: Refused) -> None:
    left = [lock_file(Path("runs", name)) for name in ("night", "day")]
    Path("runs").mkdir()
    for path in left:
        path.touch()
    with locked(Path("runs/night")):
        assert "a process is using runs/night" in refused(1, "runs", "remove", "night", "--yes")
        with Run.named("default").in_use():
            assert left[0].exists()
            assert not left[1].exists()
    left[0].touch()
    assert main(["runs", "remove", "night", "--yes"]) == 0
    assert not left[0].exists()
    assert "there is no run 'night'" in refused(2, "runs", "remove", "night", "--yes")
