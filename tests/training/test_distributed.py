"""Several processes train the same network as one: each on its share of every batch."""

import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from several_processes import in_processes
from torch import Tensor, nn

from bcnet.cli import main
from bcnet.data.image_data import ImageData
from bcnet.data.splits import Split
from bcnet.errors import DataError, TrainingError, UsageError
from bcnet.pipeline.train_supernet import train
from bcnet.pipeline.training_file import CheckpointFiles, lines_beside
from bcnet.processes import Processes
from bcnet.runs import Run
from bcnet.sealed import SealedLines
from bcnet.space.discover import discover_space
from bcnet.space.supernet import Supernet
from bcnet.space.widen import supernet_state
from bcnet.training import checkpoints
from bcnet.training.checkpoints import CheckpointFile, Snapshot
from bcnet.training.distributed import _slurm_address, world
from bcnet.training.loop import Trainee, fit, fit_network
from bcnet.training.recipe import Recipe

RECIPE = Recipe(epochs=2, learning_rate=0.1, batch_size=16)
AVERAGED = replace(RECIPE, ema=0.9, clip_gradients=0.5)


def images() -> ImageData:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (48, 3, 8, 8), generator=generator).to(torch.uint8)
    part = Split(pixels, torch.arange(48) % 4)
    return ImageData(part, part, part, ("a", "b", "c", "d"), (0.5,) * 3, (0.3,) * 3, flip=True, shift=1)


def network(*norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), *norm, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64, 4))


def trained(
    rank: int, recipe: Recipe = RECIPE, augment: str = "light", batch_norm: bool = False
) -> tuple[list[float], dict[str, Tensor]]:
    model = network(*([nn.BatchNorm2d(16)] if batch_norm else []))
    data = replace(images(), augment=augment)
    return fit_network(model, data, recipe, "training"), model.state_dict()


def killed(rank: int) -> Any:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return trained(rank)


class Copied(CheckpointFile):
    """Written after each step by the first process; what is there in the second epoch is kept, too."""

    def save(self, snapshot: Snapshot) -> None:
        if world().first:
            super().save(snapshot)
            if (snapshot.epoch, snapshot.step) == (1, 2):
                shutil.copy(self.path, self.path.with_name("within.safetensors"))


def with_checkpoints(rank: int, path: Path) -> Any:
    checkpoints.EVERY_S, checkpoints.SHARE = 0.0, math.inf
    model = network(nn.BatchNorm2d(16), nn.Dropout(0.2))
    return fit_network(model, images(), AVERAGED, "training", checkpoint=Copied(path, {})), model.state_dict()


def overflowing(rank: int) -> Any:
    """Weight and scale after each step of a training in float16; the second one overflows in one process."""
    recipe = replace(RECIPE, amp=True, half=torch.float16, momentum=0.0, weight_decay=0.0)
    weight, scaler, found = nn.Parameter(torch.ones(1)), recipe.scaler(), []

    def step(inputs: Any, targets: Any, number: int) -> Tensor:
        found.append((float(weight), scaler.get_scale()))
        scaler.scale(weight.sum() * (torch.inf if (number, rank) == (1, 1) else 1.0 + rank)).backward()
        return torch.ones(())

    fit(Trainee({"weight": weight}, step, scaler=scaler), images(), recipe, "training")
    return found


def not_finite(rank: int) -> Any:
    model = network()
    if rank == 1:
        model.register_forward_hook(lambda module, inputs, outputs: outputs * float("nan"))
    return fit_network(model, images(), RECIPE, "training")


def records(rank: int, folder: Path) -> list[Any]:
    model = network()
    space = discover_space(model, torch.zeros(1, 3, 8, 8), bins=4, channel_multiple=2)
    files = CheckpointFiles(folder / f"{rank}.safetensors", {})
    train(Supernet(model, space, supernet_state(model, space)), images(), RECIPE, checkpoints=files)
    return SealedLines(lines_beside(files.path), {}).values


@pytest.mark.parametrize(
    ("count", "recipe", "augment"), [(2, RECIPE, "light"), (4, RECIPE, "light"), (2, AVERAGED, "imagenet")]
)
def test_a_network_is_trained_as_by_one_process(count: int, recipe: Recipe, augment: str) -> None:
    curve, state = trained(0, recipe, augment)
    for own_curve, own in in_processes(count, trained, recipe, augment):
        assert own_curve == pytest.approx(curve, abs=1e-6)
        for name, tensor in state.items():
            torch.testing.assert_close(own[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("recipe", [RECIPE, AVERAGED])
def test_all_processes_end_with_the_same_network_and_mean_batch_norm_statistics(recipe: Recipe) -> None:
    first, second = in_processes(2, trained, recipe, "light", True)
    assert first[0] == second[0]
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])
    _, alone = trained(0, recipe, "light", True)
    # The mean of a batch is that of its shares' means; their variances are a little smaller than its own.
    torch.testing.assert_close(first[1]["1.running_mean"], alone["1.running_mean"], rtol=0.1, atol=0.02)


def test_processes_that_continue_within_an_epoch_end_to_the_last_bit_as_undisturbed_ones(
    tmp_path: Path,
) -> None:
    whole = in_processes(2, with_checkpoints, tmp_path / "checkpoint.safetensors")
    continued = in_processes(2, with_checkpoints, tmp_path / "within.safetensors")
    for (own_curve, own), (curve, state) in zip(continued, whole, strict=True):
        assert own_curve == curve[1:]
        assert all(torch.equal(own[name], state[name]) for name in state)


def test_a_supernet_has_the_same_widths_and_losses_as_in_one_process(tmp_path: Path) -> None:
    alone = records(9, tmp_path)
    assert len(alone) == 6
    for own in in_processes(2, records, tmp_path):
        assert [widths for widths, _ in own] == [widths for widths, _ in alone]
        assert [loss for _, loss in own] == pytest.approx([loss for _, loss in alone], abs=2e-5)


def test_a_process_that_ends_stops_the_others_with_one_line() -> None:
    first, second = in_processes(2, killed)
    assert second is None
    assert isinstance(first, TrainingError)
    assert str(first).startswith("another process of this command ended; run the same command again")


def test_a_loss_that_is_not_finite_in_one_share_stops_all() -> None:
    for error in in_processes(2, not_finite):
        assert isinstance(error, TrainingError)
        assert str(error).startswith("training diverged: the loss of step 0 is nan")


def test_a_step_that_overflows_in_one_process_is_left_out_in_all() -> None:
    first, second = in_processes(2, overflowing)
    assert first == second
    weights, scales = zip(*first, strict=True)
    assert weights[0] > weights[1] == weights[2] > weights[3]
    assert scales[:3] == (scales[0], scales[0], scales[0] / 2)


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    for error in in_processes(3, trained):
        assert isinstance(error, DataError)
        assert str(error) == "a batch of 16 images has no 3 equal parts: set train.batch_size"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Processes(1, 0, 0)),
        ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}, Processes(4, 3, 1)),
        (
            {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "2", "SLURM_LOCALID": "0"},
            Processes(8, 2, 0),
        ),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, Processes(1, 0, 0)),  # a batch script without srun
    ],
)
def test_processes_are_those_of_torchrun_or_of_a_slurm_step(
    environment: dict[str, str], expected: Processes
) -> None:
    assert Processes.of(environment) == expected


@pytest.mark.parametrize(
    "environment", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "2", "RANK": "a", "LOCAL_RANK": "0"}]
)
def test_variables_that_name_no_process_are_refused(environment: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="WORLD_SIZE, RANK, LOCAL_RANK must be set to integers"):
        Processes.of(environment)


@pytest.mark.parametrize(
    ("nodes", "first"), [("gpu[03-05,9]", "gpu03"), ("node7,node9", "node7"), ("gpu[7,9-12]", "gpu7")]
)
def test_the_first_process_of_a_slurm_step_is_on_its_first_node(nodes: str, first: str) -> None:
    assert _slurm_address(nodes)["MASTER_ADDR"] == first


def test_copies_that_killed_processes_left_are_removed_and_those_in_use_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / "bcnet-run-killed"
    (left / "default").mkdir(parents=True)
    (tmp_path / ".bcnet-run-killed.lock").touch()
    with Processes(3, 1).own_run(Run(tmp_path / "a")) as first:
        assert not left.exists()
        with Processes(3, 2).own_run(Run(tmp_path / "a")):
            assert first.folder.parent.exists()
            assert len(list(tmp_path.glob("bcnet-run-*"))) == 2
    assert list(tmp_path.iterdir()) == []


def test_other_processes_work_on_a_copy_of_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path / "default")
    run.folder.mkdir()
    (run.folder / "a").write_text("before")
    with Processes(2, 0).own_run(run) as own:
        assert own == run
    with Processes(2, 1).own_run(run) as own:
        assert (own.folder / "a").read_text() == "before"
        (own.folder / "a").write_text("after")
    assert (run.folder / "a").read_text() == "before"
    assert not own.folder.exists()


def test_a_command_that_measures_is_refused_in_several_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert main(["build-lut"]) == 2
    assert capsys.readouterr().err == (
        "bcnet, process 0 of 2: `bcnet build-lut` runs in one process: start it without torchrun or srun; "
        "`bcnet train`, `bcnet search`, `bcnet slice`, `bcnet run` and `bcnet bench` may run in several\n"
    )


@pytest.mark.slow
def test_torchrun_trains_and_slices_a_run_that_one_process_exports(project: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    shutil.rmtree("runs")
    subprocess.run([*torchrun, "-m", "bcnet", "train"], check=True)
    assert main(["build-lut"]) == 0
    assert main(["search"]) == 0
    subprocess.run([sys.executable, "-m", "bcnet", "slice", "--processes", "2"], check=True)
    assert main(["export"]) == 0
    assert [path.name for path in Path("runs").iterdir()] == ["default"]
