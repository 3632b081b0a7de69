"""Files are whole or absent, and a manifest tells whether they are still what was written."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import LargestFile

from bcnet.errors import ArtifactError
from bcnet.runs import (
    MANIFEST,
    Run,
    Stage,
    digest,
    file_digest,
    json_bytes,
    read_json,
    write_file,
    write_files,
)

INPUTS = {"model": "m1", "data": "d1"}


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """A finished stage of two files."""
    stage = Stage(tmp_path / "train", "train", "bcnet train")
    stage.finish(INPUTS, {"a.json": json_bytes({"a": 1}), "b.bin": b"0123456789"})
    return stage


def test_a_file_is_written_with_the_folders_that_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.json"
    write_file(path, json_bytes({"b": [1, 2.5, None]}))
    assert json.loads(path.read_text(encoding="utf-8")) == {"b": [1, 2.5, None]}
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_files_and_no_litter(tmp_path: Path, largest_file: LargestFile) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    write_files({small: b"old", large: b"old"})
    with largest_file(1000), pytest.raises(OSError, match=r"File too large: '.*/large'"):
        write_files({small: b"new", large: b"x" * 5000})
    assert small.read_bytes() == large.read_bytes() == b"old"
    assert set(tmp_path.iterdir()) == {small, large}


def test_a_write_that_is_interrupted_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_way_leaves_no_litter(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_file(tmp_path / "file", b"")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"a file")
    with pytest.raises(OSError, match=r"'.*/taken'"):
        write_file(tmp_path / "taken" / "file", b"")


def test_a_digest_depends_on_the_value_and_not_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert re.fullmatch(r"[0-9a-f]{16}", digest(None))


def test_a_files_digest_depends_on_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"same")
    (tmp_path / "b").write_bytes(b"same")
    (tmp_path / "c").write_bytes(b"other")
    assert file_digest(tmp_path / "a") == file_digest(tmp_path / "b") != file_digest(tmp_path / "c")


def test_reading_a_missing_file_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"result\.json is missing; run `bcnet search`"):
        read_json(tmp_path / "result.json", "bcnet search")


@pytest.mark.parametrize("content", [b"", b'{"a": [1, 2', b"\xff\xfe"])
def test_reading_a_damaged_file_names_the_command_that_makes_it_again(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(
        ArtifactError, match=r"is cut short or edited \(.+\); run `bcnet search` to make it again"
    ):
        read_json(tmp_path / "result.json", "bcnet search")


def test_a_finished_stage_matches_what_it_was_made_from_and_nothing_else(stage: Stage) -> None:
    assert stage.outdated(INPUTS) is None
    assert stage.outdated({"model": "m1", "data": "d2"}) is not None
    assert stage.outdated({"model": "m1"}) is not None
    assert stage.outdated({**INPUTS, "space": "s1"}) is not None


def test_a_stage_says_why_it_must_run_again(stage: Stage) -> None:
    assert stage.outdated(INPUTS) is None
    assert stage.outdated({"model": "m2", "data": "d1"}) == "model changed"
    assert stage.outdated({"model": "m2", "space": "s"}) == "model, space, data changed"
    stage.path("a.json").write_bytes(b"{}")
    assert stage.outdated(INPUTS) == "its files were changed"
    stage.path(MANIFEST).unlink()
    assert stage.outdated(INPUTS) == "not done yet"


def test_a_stage_without_its_manifest_is_not_finished(stage: Stage) -> None:
    stage.path(MANIFEST).unlink()
    assert stage.outdated(INPUTS) is not None
    with pytest.raises(ArtifactError, match="has no finished train; run `bcnet train` first"):
        stage.manifest()


def test_the_manifest_records_inputs_and_the_digest_of_every_file(stage: Stage) -> None:
    manifest = stage.manifest()
    assert manifest["inputs"] == INPUTS
    assert manifest["outputs"] == {name: file_digest(stage.path(name)) for name in ("a.json", "b.bin")}


def test_a_manifest_of_the_version_before_is_read_and_an_edited_one_is_not(stage: Stage) -> None:
    manifest = stage.manifest()
    del manifest["digest"]
    stage.path(MANIFEST).write_bytes(json_bytes({**manifest, "schema": 1}))
    assert stage.outdated(INPUTS) is None
    stage.path(MANIFEST).write_bytes(json_bytes({**manifest, "inputs": {}, "digest": digest(manifest)}))
    with pytest.raises(ArtifactError, match=r"manifest\.json was edited; run `bcnet train` again"):
        stage.require({})


def test_files_from_which_a_stage_continues_are_gone_when_it_is_finished(stage: Stage) -> None:
    stage.path("checkpoint").write_bytes(b"1")
    stage.finish(INPUTS, {"a.json": b"{}"}, [stage.path("checkpoint"), stage.path("never there")])
    assert not stage.path("checkpoint").exists()


@pytest.mark.parametrize("put", ["folder", "pipe", "loop"])
def test_what_is_no_file_is_refused_at_once(stage: Stage, put: str) -> None:
    for name in ("b.bin", MANIFEST):
        path = stage.path(name)
        path.unlink()
        if put == "folder":
            path.mkdir()
        elif put == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(path)
        assert stage.outdated(INPUTS) is not None
        with pytest.raises(ArtifactError, match=r"run `bcnet train` "):
            stage.require({})


def test_the_next_write_removes_what_a_killed_one_left_and_nothing_of_one_that_lives(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from bcnet.runs import write_file
def wait(handle):
    print(flush=True)
    sys.stdin.read()
    os._exit(9)
os.fsync = wait
write_file(Path(sys.argv[1]), b"new")
"""
    command = [sys.executable, "-c", code, tmp_path / "file"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        write_file(tmp_path / "mine", b"1")
        assert len(list(tmp_path.glob(".file.*.unfinished"))) == 1
        other.kill()
    write_file(tmp_path / "mine", b"2")
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine"]


def test_a_stage_that_cannot_be_written_again_stays_finished(stage: Stage, largest_file: LargestFile) -> None:
    with largest_file(1000), pytest.raises(OSError, match="File too large"):
        stage.finish({"model": "m2"}, {"a.json": b"{}", "b.bin": b"x" * 5000})
    assert stage.outdated(INPUTS) is None
    assert stage.path("a.json").read_bytes() == json_bytes({"a": 1})


def test_a_stage_that_is_written_again_vouches_for_the_new_files(stage: Stage) -> None:
    stage.finish({"model": "m2"}, {"a.json": b"{}"})
    assert stage.outdated({"model": "m2"}) is None
    assert set(stage.manifest()["outputs"]) == {"a.json"}


def test_a_stage_that_is_finished_beside_the_old_one_keeps_that_whole(stage: Stage) -> None:
    stage.path("failed.json").write_bytes(b"of an earlier time")
    for number in (2, 3):
        before = {path.name: path.read_bytes() for path in stage.folder.iterdir()}
        stage.finish_beside({"model": f"m{number}"}, {"a.json": json_bytes(number)})
        assert {path.name: path.read_bytes() for path in stage.previous.iterdir()} == before
        assert stage.outdated({"model": f"m{number}"}) is None
        assert {path.name for path in stage.folder.iterdir()} == {"a.json", MANIFEST}
    assert {path.name for path in stage.folder.parent.iterdir()} == {"train", "train.previous"}


def test_a_stage_that_cannot_be_finished_beside_the_old_one_leaves_no_trace(
    stage: Stage, largest_file: LargestFile
) -> None:
    with largest_file(1000), pytest.raises(OSError, match="File too large"):
        stage.finish_beside({"model": "m2"}, {"a.json": b"x" * 5000})
    assert stage.outdated(INPUTS) is None
    assert list(stage.folder.parent.iterdir()) == [stage.folder]
    # What a process that was killed has left there goes with the next one.
    (stage.folder.parent / ".train.new").mkdir()
    (stage.folder.parent / ".train.lock").touch()
    stage.tidy()
    assert list(stage.folder.parent.iterdir()) == [stage.folder]


@pytest.mark.parametrize("content", [b"012345678", b"0123456780", b""])
def test_a_truncated_or_edited_file_is_refused(stage: Stage, content: bytes) -> None:
    stage.path("b.bin").write_bytes(content)
    assert stage.outdated(INPUTS) is not None
    with pytest.raises(ArtifactError, match=r"b\.bin is not what train wrote .+; run `bcnet train` again"):
        stage.require({})


def test_a_missing_file_is_named(stage: Stage) -> None:
    stage.path("a.json").unlink()
    assert stage.outdated(INPUTS) is not None
    with pytest.raises(ArtifactError, match=r"a\.json is missing; run `bcnet train` again"):
        stage.require({})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"schema": 1, "inputs": {',
        b'{"schema": 1, "inputs": {}}',
        b'{"schema": 99, "inputs": {}, "outputs": {}}',
        b'{"schema": 1, "inputs": [], "outputs": {}}',
        b'{"schema": 1, "inputs": {}, "outputs": "a.json"}',
        b'{"schema": 2, "inputs": {}, "outputs": {}}',
        b'{"schema": 1, "inputs": {}, "outputs": {}, "digest": ""}',
        b'{"schema": 1, "inputs": ' + b"[" * 100_000,
    ],
)
def test_a_damaged_manifest_is_refused_with_the_command_that_makes_it_again(
    stage: Stage, content: bytes
) -> None:
    stage.path(MANIFEST).write_bytes(content)
    assert stage.outdated({}) is not None
    with pytest.raises(ArtifactError, match=r"manifest\.json (is|was) .+; run `bcnet train` "):
        stage.require({})


def test_a_stage_made_from_something_else_is_refused(stage: Stage) -> None:
    with pytest.raises(
        ArtifactError, match="was made with another data; run `bcnet train` again, or keep both"
    ):
        stage.require({"model": "m1", "data": "d2"})


def test_the_digest_of_a_stage_changes_with_what_it_wrote(stage: Stage) -> None:
    before = stage.require({"model": "m1"})
    assert stage.require({}) == before
    stage.finish(INPUTS, {"a.json": json_bytes({"a": 2}), "b.bin": b"0123456789"})
    assert stage.require({}) != before


def test_a_finished_stage_can_be_moved(stage: Stage, tmp_path: Path) -> None:
    shutil.move(stage.folder, tmp_path / "elsewhere")
    assert Stage(tmp_path / "elsewhere", "train", "bcnet train").outdated(INPUTS) is None


@pytest.mark.parametrize(
    ("run", "stage", "command"),
    [
        ("default", "train", "bcnet train"),
        ("default", "build-lut", "bcnet build-lut"),
        ("night", "search", "bcnet search --run night"),
        ("night", "compare", "bcnet run --compare --run night"),
    ],
)
def test_a_stage_knows_its_folder_and_its_command(run: str, stage: str, command: str) -> None:
    found = Run.named(run).stage(stage)
    assert found.folder == Path("runs") / run / stage
    assert found.command == command


def test_a_second_process_in_one_stage_is_refused_and_in_another_run_it_is_not(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from bcnet.runs import Run
for name in ("night", "day"):
    with Run(Path(sys.argv[1]) / name).stage("train").at_work():
        print(name)
"""
    with Run(tmp_path / "day").stage("train").at_work():
        second = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert second.stdout == "night\n"
    assert f"another process is at work in {tmp_path}/day/train; wait until it is done" in second.stderr
    with Run(tmp_path / "day").stage("train").at_work():
        pass  # free again
