"""The route of a trained network: killed or damaged, it gives the same result, or one line; no litter."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damage import damaged
from finished import continue_alike, go_to, pruned_values, refused_or_alike, values
from steady_run import SEED, Commands, essence, rounds
from trained_run import TrainedRun

from bcnet.config import load_config
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.pruned import PrunedNetwork
from bcnet.sealed import SealedLines, read_about
from bcnet.training.checkpoints import CheckpointFile

pytest_plugins = ("fault_fixtures",)
KILLED = 137
FOLDERS = ("train", "search", "slice", "export", "compare")  # of the stages that write into the run
METHODS = "auto", pytest.param("group-fisher", marks=pytest.mark.slow)


def until(run: TrainedRun, stage: str, path: Path) -> Path:
    """A copy of the run's folder as it was before a stage."""
    folder = shutil.copytree(run.folder, path)
    for name in FOLDERS[FOLDERS.index(stage) :]:
        shutil.rmtree(folder / "runs/default" / name)
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_no_damage_to_a_run_from_a_trained_network_is_taken_for_a_result(
    trained_run: Callable[..., TrainedRun],
    method: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    time_limit: Callable[[float], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    go_to(shutil.copytree(trained_run(method, "run").folder, tmp_path / "damaged"), monkeypatch)
    wanted = refused_or_alike(rounds(20), time_limit, capsys)
    assert bool(wanted["pruned"]) is (method == "group-fisher")


def reader(path: Path, run: TrainedRun) -> Callable[[], list[Any]]:
    """What reads the values of a file that a stopped command continues from."""
    if path.suffix == ".jsonl":
        belongs_to = json.loads(path.read_bytes().splitlines()[0][17:])["belongs_to"]
        return lambda: SealedLines(path, belongs_to).values
    if "pruned" in path.name:
        problem = open_problem(load_config(run.folder / "bcnet.toml"))
        return lambda: pruned_values(PrunedNetwork.unsealed(path, problem, "group-fisher")[0])
    made_from = read_about(path)["made_from"]

    def training() -> list[Any]:
        at = CheckpointFile(path, made_from).load()
        return [] if at is None else [at.epoch, values(at.tensors)]

    return training


@pytest.mark.parametrize("method", METHODS)
def test_no_damage_to_what_a_training_or_a_search_continues_from_changes_what_it_comes_to(
    trained_run: Callable[..., TrainedRun],
    method: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    time_limit: Callable[[float], None],
) -> None:
    run = trained_run(method, "run")
    go_to(run.folder, monkeypatch)
    copies = [Path(shutil.copy(path, tmp_path)) for path in run.kept.values()]
    # Training, pruned networks or scores, fine-tuning, the uniform network and its training.
    names = {path.name.replace("pruned-1", "pruned-0").replace("-lower-rate", "") for path in copies}
    assert len(names) == 5
    continue_alike({path: reader(path, run) for path in copies}, rounds(150), time_limit)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["auto", "group-fisher"])
def test_a_command_that_continues_from_a_damaged_file_ends_as_one_that_was_not_stopped(
    commands: Commands, trained_run: Callable[..., TrainedRun], method: str, tmp_path: Path
) -> None:
    run, rng = trained_run(method, "run"), random.Random(SEED)
    for _ in range(rounds(10)):
        name = rng.choice(sorted(run.kept))
        stage = name.split("/")[1]
        folder = until(run, stage, tmp_path / "stopped")
        path = folder / "runs" / name
        path.parent.mkdir(parents=True)
        shutil.copy(run.kept[name], path)
        command = "run" if stage == "compare" else stage
        with damaged(path, rng, sorted(run.kept.values())) as how:
            first = commands(folder, command)
        refused = first["said"].splitlines()[-1].startswith("bcnet: ")
        assert first["code"] == 0 or (first["code"] == 1 and refused), (how, first)
        path.unlink(missing_ok=True)
        if first["code"]:
            assert commands(folder, command)["code"] == 0
        done = folder / "runs/default" / stage
        assert essence(done) == essence(run.folder / "runs/default" / stage), how
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("method", "stage", "most"),
    [
        ("auto", "search", 1),
        *(
            pytest.param(method, stage, None, marks=pytest.mark.slow)
            for method, stage in [
                ("auto", "train"),
                ("auto", "search"),
                ("auto", "slice"),
                ("group-fisher", "search"),
                ("group-fisher", "slice"),
            ]
        ),
    ],
)
def test_a_kill_before_any_file_operation_of_a_stage_on_a_trained_network_changes_nothing(
    commands: Commands,
    trained_run: Callable[..., TrainedRun],
    tmp_path: Path,
    method: str,
    stage: str,
    most: int | None,
) -> None:
    run = trained_run(method, "run")
    before = until(run, stage, tmp_path / "before")
    wanted = essence(until(run, FOLDERS[FOLDERS.index(stage) + 1], tmp_path / "wanted"))
    probe = shutil.copytree(before, tmp_path / "probe")
    operations = commands(probe, stage)["operations"]
    # What scores have in common is tried with a few of them.
    lines = [n for n, operation in enumerate(operations, 1) if operation.endswith("jsonl")]
    numbers = sorted({*range(1, len(operations) + 1)} - {*lines[24:]})
    for number in numbers if most is None else random.Random(SEED).sample(numbers, most):
        folder = shutil.copytree(before, tmp_path / "killed")
        assert commands(folder, stage, kill=number)["code"] == KILLED
        answer = commands(folder, stage)
        assert answer["code"] == 0, answer["said"]
        assert essence(folder) == wanted, (number, operations[number - 1])
        shutil.rmtree(folder)
    print(f"{method}, {stage}: {len(numbers)} kills")
