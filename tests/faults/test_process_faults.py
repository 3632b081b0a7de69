"""A command in several processes: its results, and that it goes on where one of them was killed."""

import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from steady_run import SEED, Commands, essence, new_folder, rounds
from trained_run import ARENA, ROWS, TrainedRun, trained_folder

pytest_plugins = ("fault_fixtures",)
KILLED = 137
LIMIT_S = 1800  # for a run at low priority
ENDED = "another process of this command ended; run the same command again to continue"
STAGES = ("train", "build-lut", "search", "slice", "export", "compare")


def before_search(whole: Path, path: Path) -> Path:
    """A copy of a run's folder as it was before its search."""
    folder = shutil.copytree(whole, path)
    for name in STAGES[2:]:
        shutil.rmtree(folder / "runs/default" / name)
    return folder


@pytest.mark.slow
def test_two_processes_find_what_one_does_in_supernets(
    commands: Commands, whole: Path, tmp_path: Path
) -> None:
    folder = before_search(whole, tmp_path / "folder")
    answer = commands(folder, "search", processes=2)
    assert answer["codes"] == [0, 0], answer["said"]
    assert essence(folder / "runs/default/search") == essence(whole / "runs/default/search")


def test_two_processes_find_and_try_what_one_does_on_a_trained_network(
    trained_run: Callable[..., TrainedRun], commands: Commands, tmp_path: Path
) -> None:
    whole = trained_run("auto", "run").folder
    folder = before_search(whole, tmp_path / "folder")
    answer = commands(folder, "search", processes=2)
    assert answer["codes"] == [0, 0], answer["said"]
    assert essence(folder / "runs/default/search") == essence(whole / "runs/default/search")


@pytest.mark.slow
def test_two_processes_train_as_many_supernets_as_one_does(commands: Commands, tmp_path: Path) -> None:
    alone, several = new_folder(tmp_path / "alone"), new_folder(tmp_path / "several")
    train = "train", "--supernets", "2", "--epochs", "1"
    assert commands(alone, *train)["code"] == 0
    answer = commands(several, *train, processes=2)
    assert answer["codes"] == [0, 0], answer["said"]
    assert essence(several) == essence(alone)


@pytest.mark.slow
def test_two_processes_compare_with_the_networks_that_one_trains(
    commands: Commands, whole: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(whole, tmp_path / "folder")
    shutil.rmtree(folder / "runs/default/compare")
    answer = commands(folder, "run", processes=2)
    assert answer["codes"] == [0, 0], answer["said"]
    assert answer["said"].count("already done") == len(STAGES) - 1
    assert "training: full (from scratch): continuing after epoch" in answer["said"]  # of a checkpoint
    assert essence(folder) == essence(whole)


def test_a_run_in_two_processes_is_whole_and_one_process_finds_it_done(
    commands: Commands, whole: Path, tmp_path: Path
) -> None:
    folder = new_folder(tmp_path / "folder")
    answer = commands(folder, "run", processes=2)
    assert answer["codes"] == [0, 0], answer["said"]
    found, wanted = essence(folder), essence(whole)
    assert found.keys() == wanted.keys()
    tables = [name for name in wanted if name.startswith(("latency_tables", "runs/default/build-lut"))]
    assert {name: found[name] for name in tables} == {name: wanted[name] for name in tables}
    assert commands(folder, "run")["said"].count("already done") == len(STAGES)


def stage_of(folder: Path) -> str:
    """The first stage that is not finished."""
    unfinished = (name for name in STAGES if not (folder / "runs/default" / name / "manifest.json").exists())
    return next(unfinished, "all done")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["with a supernet", "from a trained network"])
def test_a_run_whose_processes_are_killed_at_any_time_ends_as_one_that_was_not(
    commands: Commands, whole: Path, tmp_path: Path, way: str
) -> None:
    def new(name: str) -> Path:
        path = tmp_path / name
        return (
            new_folder(path) if way == "with a supernet" else trained_folder(path, whole, "auto", classes=7)
        )

    start, undisturbed = time.monotonic(), new("undisturbed")
    assert commands(undisturbed, "run", processes=2, limit_s=LIMIT_S)["codes"] == [0, 0]
    longest, wanted = time.monotonic() - start, essence(undisturbed)
    rng, kills = random.Random(SEED), Counter[tuple[str, int]]()
    for number in count():
        folder = new(str(number))
        while True:
            rank, at = rng.randrange(2), stage_of(folder)
            when = {"seconds": rng.uniform(0, longest / 2)}, {"operation": rng.randint(1, 120)}
            victim = {"rank": rank, **rng.choice(when)}
            answer = commands(folder, "run", processes=2, victim=victim, limit_s=LIMIT_S)
            if answer["codes"] == [0, 0]:
                break
            assert answer["codes"][rank] == KILLED, answer
            # The other may have had nothing left to do with it, or leaves what it is at without a report.
            assert answer["codes"][1 - rank] in (0, 1, KILLED), answer
            if answer["codes"][1 - rank] == 1 and "could not connect" not in answer["said"]:
                assert answer["said"].splitlines()[-1].endswith(ENDED)
            kills[stage_of(folder), rank] += 1
            print(f"{at} to {stage_of(folder)}: killed process {rank}", flush=True)
        assert essence(folder) == wanted
        shutil.rmtree(folder)
        print(f"whole after {kills.total()} kills", flush=True)
        if kills.total() >= rounds(50):
            break
    print(f"{kills.total()} kills in {number + 1} runs, by stage and process: {dict(kills)}")


def arena_of(folder: Path) -> dict[str, Any]:
    """What an arena has made: its cells and rows without how long they took, and the networks."""
    made = folder / "runs/arena/bench/arena"
    report = json.loads((made / "arena.json").read_text(encoding="utf-8"))
    rows = [*report["cells"], *(row for budget in report["budgets"] for row in budget["rows"])]
    kept = [{key: value for key, value in row.items() if not key.endswith("_s")} for row in rows]
    networks = {path.name: path.read_bytes() for path in made.glob("networks/*")}
    return {"rows": kept, **networks, "left": [path.name for path in made.glob("checkpoint*")]}


def before_arena(whole: Path, path: Path) -> Path:
    """A copy of a folder as it was before its arena, with the network that one process has trained."""
    folder = shutil.copytree(whole, path)
    for name in "bench", "search":
        shutil.rmtree(folder / "runs/arena" / name)
    return folder


@pytest.mark.slow
def test_two_processes_make_the_arena_that_one_does(
    trained_run: Callable[..., TrainedRun], commands: Commands, tmp_path: Path
) -> None:
    whole = trained_run("auto", *ARENA).folder
    wanted = arena_of(whole)
    assert len(wanted["rows"]) == 2 * len(("original", *ROWS))
    assert wanted["left"] == []
    folder = before_arena(whole, tmp_path / "folder")
    answer = commands(folder, *ARENA, processes=2)
    assert answer["codes"] == [0, 0], answer["said"]
    assert arena_of(folder) == wanted


@pytest.mark.slow
def test_an_arena_whose_processes_are_killed_at_any_time_ends_as_one_process_does(
    trained_run: Callable[..., TrainedRun], commands: Commands, tmp_path: Path
) -> None:
    whole = trained_run("auto", *ARENA).folder
    start, wanted = time.monotonic(), arena_of(whole)
    undisturbed = commands(before_arena(whole, tmp_path / "undisturbed"), *ARENA, processes=2)
    assert undisturbed["codes"] == [0, 0], undisturbed["said"]
    longest, kills, rng = time.monotonic() - start, Counter[int](), random.Random(SEED)
    for number in count():
        folder = before_arena(whole, tmp_path / str(number))
        while True:
            processes, rank = rng.choice((1, 2, 2, 2)), rng.randrange(2)
            when = {"seconds": rng.uniform(0, longest)}, {"operation": rng.randint(1, 120)}
            victim = {"rank": rank % processes, **rng.choice(when)}
            answer = commands(folder, *ARENA, processes=processes, victim=victim, limit_s=LIMIT_S)
            if not any(answer["codes"]):
                break
            assert answer["codes"][rank % processes] == KILLED, answer
            assert set(answer["codes"]) <= {0, 1, KILLED}, answer
            if 1 in answer["codes"] and "could not connect" not in answer["said"]:
                assert answer["said"].splitlines()[-1].endswith(ENDED)
            kills[rank % processes] += 1
        assert arena_of(folder) == wanted
        shutil.rmtree(folder)
        if kills.total() >= rounds(12):
            break
    print(f"{kills.total()} kills in {number + 1} arenas, by process: {dict(kills)}")
