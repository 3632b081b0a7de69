"""A command in several processes: its results, and that it goes on where one of them was killed."""

import shutil
from collections.abc import Callable
from pathlib import Path

from steady_run import Commands, essence, new_folder
from trained_run import TrainedRun

pytest_plugins = ("fault_fixtures",)
STAGES = ("train", "build-lut", "search", "slice", "export", "compare")


def before_search(whole: Path, path: Path) -> Path:
    """A copy of a run's folder as it was before its search."""
    folder = shutil.copytree(whole, path)
    for name in STAGES[2:]:
        shutil.rmtree(folder / "runs/default" / name)
    return folder


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
