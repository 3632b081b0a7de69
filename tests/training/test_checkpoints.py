"""A killed training of a plain network ends like an undisturbed one; a damaged checkpoint is not used."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from bcnet.config import DataConfig
from bcnet.data.dataset import load_data
from bcnet.data.image_data import ImageData
from bcnet.training.checkpoints import CheckpointFile, Snapshot
from bcnet.training.loop import fit_network
from bcnet.training.recipe import Recipe

RECIPE = Recipe(epochs=3, learning_rate=0.05, batch_size=16, warmup_epochs=1)
MADE_FROM = {"supernet": "1", "widths": "8"}


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig(image_size=16, train_limit=60, test_limit=40), 0)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )


def trained(data: ImageData, recipe: Recipe = RECIPE, file: CheckpointFile | None = None) -> nn.Module:
    model = network()
    fit_network(model, data, recipe, "fine-tuning", checkpoint=file)
    return model


def killed_after_two_epochs(data: ImageData, recipe: Recipe, path: Path) -> None:
    class Killed(CheckpointFile):
        def save(self, snapshot: Snapshot) -> None:
            super().save(snapshot)
            if snapshot.epoch == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(data, recipe, Killed(path, MADE_FROM))


def same(first: nn.Module, second: nn.Module) -> bool:
    states = first.state_dict(), second.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_training_that_was_killed_ends_to_the_last_bit_as_one_that_was_not(
    data: ImageData, tmp_path: Path, optimizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe(**{**vars(RECIPE), "optimizer": optimizer})
    path = tmp_path / "checkpoint.safetensors"
    killed_after_two_epochs(data, recipe, path)
    continued = trained(data, recipe, CheckpointFile(path, MADE_FROM))
    assert "fine-tuning: continuing after epoch 2 of 3" in capsys.readouterr().err
    assert same(continued, trained(data, recipe))
    finished = trained(data, recipe, CheckpointFile(path, MADE_FROM))  # killed after the last epoch
    assert same(finished, continued)


def edited(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def retold(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'\\"epoch\\": 2', b'\\"epoch\\": 3'))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("damage", "made_from", "message"),
    [
        (edited, MADE_FROM, "it is not what was written: cut short or edited"),
        (retold, MADE_FROM, "it is not what was written: cut short or edited"),
        (cut_short, MADE_FROM, "it is cut short, edited, or from an earlier version"),
        (
            lambda path: path.write_bytes(b""),
            MADE_FROM,
            "it is cut short, edited, or from an earlier version",
        ),
        (lambda path: None, {"supernet": "2"}, "has other settings"),
    ],
)
def test_a_checkpoint_that_is_damaged_or_of_something_else_is_not_continued(
    data: ImageData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    made_from: dict[str, str],
    message: str,
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    killed_after_two_epochs(data, RECIPE, path)
    before = path.read_bytes()
    damage(path)
    assert (path.read_bytes() != before) or made_from != MADE_FROM
    capsys.readouterr()
    again = trained(data, RECIPE, CheckpointFile(path, made_from))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(str(path))
    assert message in line
    assert line.endswith("training starts from the beginning")
    assert same(again, trained(data))
