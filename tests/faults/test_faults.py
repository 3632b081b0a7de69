"""Kills before file operations, full disks, damage: the same result as without, or one line; no litter.

BCNET_FAULT_ROUNDS and BCNET_FAULT_SEED in the environment set the number of faults per kind, and their seed.
"""

import json
import random
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from finished import STAGES, continue_alike, go_to, refused_or_alike, values
from steady_run import SEED, Commands, essence, new_folder, rounds

from bcnet.pipeline.training_file import CheckpointFiles, lines_beside, load_finished
from bcnet.sealed import SealedLines, read_about

pytest_plugins = ("fault_fixtures",)
KILLED = 137
DISKS = (0, 1, 500, 2_000, 8_000, 16_000, 30_000, 40_000, 50_000, 60_000, 70_000, 80_000, 90_000)
DISKS = (*DISKS, 110_000, 140_000, 180_000, 250_000)


def test_a_run_killed_again_and_again_ends_as_one_that_was_not(
    commands: Commands, whole: Path, tmp_path: Path
) -> None:
    for round_ in range(rounds(1)):
        rng = random.Random(SEED + round_)
        folder = new_folder(tmp_path / str(round_))
        kills = 0
        while commands(folder, "run", kill=rng.randint(1, 300))["code"] == KILLED:
            kills += 1
            assert kills < 100
        assert kills
        assert essence(folder) == essence(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    ["train.method=cafenet", "train.method=psenet", "preset=bcnet-paper", "preset=bcnetv2-paper"],
)
def test_a_run_of_each_other_method_killed_again_and_again_ends_as_one_that_was_not(
    commands: Commands, tmp_path: Path, setting: str
) -> None:
    given = "run", "--set", setting, "--set", "train.parallel=3"
    undisturbed, folder = new_folder(tmp_path / "undisturbed"), new_folder(tmp_path / "folder")
    assert commands(undisturbed, *given)["code"] == 0
    rng, kills = random.Random(SEED), 0
    while commands(folder, *given, kill=rng.randint(1, 300))["code"] == KILLED:
        kills += 1
        assert kills < 100
    assert kills
    assert essence(folder) == essence(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_kill_before_any_file_operation_of_a_stage_changes_nothing(
    commands: Commands, whole: Path, tmp_path: Path, stage: str
) -> None:
    before = new_folder(tmp_path / "before")
    for name in STAGES:
        if name == stage:
            break
        assert commands(before, name)["code"] == 0
    after = shutil.copytree(before, tmp_path / "after")
    operations = commands(after, stage)["operations"]
    wanted = essence(after)
    # What a journal's lines have in common is tried with a few of them.
    lines = [n for n, operation in enumerate(operations, 1) if operation.endswith("jsonl")]
    numbers = sorted({*range(1, len(operations) + 1)} - {*lines[24:]})
    for number in numbers:
        folder = shutil.copytree(before, tmp_path / "killed")
        assert commands(folder, stage, kill=number)["code"] == KILLED
        answer = commands(folder, stage)
        assert answer["code"] == 0, answer["said"]
        assert essence(folder) == wanted, (number, operations[number - 1])
        shutil.rmtree(folder)
    print(f"{stage}: {len(numbers)} kills")


@pytest.mark.parametrize("sizes", [DISKS[4::6], pytest.param(DISKS, marks=pytest.mark.slow)])
def test_on_a_full_disk_a_run_says_so_in_one_line_and_goes_on_when_there_is_room(
    commands: Commands, whole: Path, tmp_path: Path, sizes: Sequence[int]
) -> None:
    folder, full = new_folder(tmp_path / "full"), 0
    for room in sizes:
        answer = commands(folder, "run", room=room)
        if answer["code"] == 0:
            break
        last = answer["said"].splitlines()[-1]
        assert answer["code"] == 1, answer["said"]
        assert re.fullmatch(r"bcnet: .+ No space left on device; free some space; .+", last), last
        assert not list(folder.rglob("*.unfinished"))
        full += 1
    assert full > len(sizes) // 2
    assert commands(folder, "run")["code"] == 0
    assert essence(folder) == essence(whole)


@pytest.fixture
def damaging(commands: Commands, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a copy of the whole run whose stages are not made again, but end with an error."""
    folder = shutil.copytree(whole, tmp_path / "damaged")
    go_to(folder, monkeypatch)
    return folder


def test_no_damage_to_a_finished_run_is_taken_for_a_result(
    damaging: Path, time_limit: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    refused_or_alike(rounds(20), time_limit, capsys)


@pytest.fixture
def stopped(commands: Commands, tmp_path: Path) -> dict[Path, Callable[[], list[Any]]]:
    """Files from which stopped commands continue, each with what reads its values."""
    folder, kept = new_folder(tmp_path / "stopped"), tmp_path / "kept"
    kept.mkdir()

    def stop(stage: str, before: str, left: str) -> Path:
        """Kill a stage before an operation, save the files it left, and let it continue to its end."""
        assert commands(folder, stage, kill=before)["code"] == KILLED
        (path,) = folder.glob(left)
        for file in (path, lines_beside(path)):
            if file.exists():
                shutil.copy(file, kept)
        assert commands(folder, stage)["code"] == 0
        return kept / path.name

    checkpoint = stop("train", r"rename .*/\.supernet", "runs/default/train/checkpoint.safetensors")
    journal = stop("build-lut", r"open .*\.cpu\.json.*unfinished", "latency_tables/.*.jsonl")
    state = stop("search", r"open .*/\.result\.json", "runs/default/search/state.jsonl")
    supernet = folder / "runs/default/train/supernet.safetensors"
    inputs = read_about(checkpoint)["inputs"]

    def lines(path: Path) -> Callable[[], list[Any]]:
        belongs_to = json.loads(path.read_bytes().splitlines()[0][17:])["belongs_to"]
        return lambda: SealedLines(path, belongs_to).values

    def steps(path: Path) -> list[Any]:
        return SealedLines(lines_beside(path), inputs, read_about(path)["records"]).values

    def training() -> list[Any]:
        at = CheckpointFiles(checkpoint, inputs).load()
        return (
            []
            if at is None
            else [repr((at.snapshot.epoch, steps(checkpoint), at.curve)), values(at.snapshot.tensors)]
        )

    def trained() -> list[Any]:
        found = load_finished(supernet, inputs)
        return [] if found is None else [repr((steps(supernet), found.curve)), values(found.state)]

    return {
        **dict.fromkeys((checkpoint, lines_beside(checkpoint)), training),
        **dict.fromkeys((supernet, lines_beside(supernet)), trained),
        journal: lines(journal),
        state: lines(state),
    }


def test_no_damage_to_what_a_stopped_command_continues_from_changes_what_it_comes_to(
    stopped: dict[Path, Callable[[], list[Any]]], time_limit: Callable[[float], None]
) -> None:
    continue_alike(stopped, rounds(250), time_limit)
