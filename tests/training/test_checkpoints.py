"""A killed training of a plain network ends like an undisturbed one; a damaged checkpoint is not used."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from bcnet.config import DataConfig
from bcnet.data.dataset import load_data
from bcnet.data.image_data import ImageData
from bcnet.data.splits import Items
from bcnet.data.training_batches import TrainingBatches
from bcnet.events import Event, observed
from bcnet.sealed import seal_tensors, unseal_tensors
from bcnet.training import checkpoints
from bcnet.training.checkpoints import EVERY_S, CheckpointFile, EpochLog, Pace, Snapshot
from bcnet.training.loop import fit_network
from bcnet.training.recipe import Recipe
from bcnet.width_search.scorer import evaluate_network

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


@dataclass(frozen=True)
class Killed(CheckpointFile):
    """A training that is killed after the checkpoint of this epoch and step."""

    at: tuple[int, int] = (2, 0)

    def save(self, snapshot: Snapshot) -> None:
        super().save(snapshot)
        if (snapshot.epoch, snapshot.step) == self.at:
            raise KeyboardInterrupt


def killed_after(data: ImageData, recipe: Recipe, path: Path, epoch: int = 2, step: int = 0) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(data, recipe, Killed(path, MADE_FROM, at=(epoch, step)))


@pytest.fixture
def after_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are written after each step."""
    monkeypatch.setattr(checkpoints, "EVERY_S", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", math.inf)


def same(first: nn.Module, second: nn.Module) -> bool:
    states = first.state_dict(), second.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("epoch", "step", "done"), [(2, 0, "2"), (0, 1, "0.3333"), (2, 2, "2.667")], ids=str)
@pytest.mark.usefixtures("after_each_step")
def test_a_training_that_was_killed_ends_to_the_last_bit_as_one_that_was_not(
    data: ImageData,
    tmp_path: Path,
    optimizer: str,
    epoch: int,
    step: int,
    done: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = Recipe(**{**vars(RECIPE), "optimizer": optimizer})
    path = tmp_path / "checkpoint.safetensors"
    killed_after(data, recipe, path, epoch, step)
    continued, whole = network(), network()
    own = fit_network(continued, data, recipe, "fine-tuning", checkpoint=CheckpointFile(path, MADE_FROM))
    assert f"fine-tuning: continuing after epoch {done} of 3\n" in capsys.readouterr().err
    assert own == fit_network(whole, data, recipe, "fine-tuning")[epoch:]
    assert same(continued, whole)
    finished = trained(data, recipe, CheckpointFile(path, MADE_FROM))  # killed after the last epoch
    assert same(finished, continued)


class Seen:
    """The events of a training."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None: ...

    def values(self, name: str, key: str) -> list[float]:
        return [event.values[key] for event in self.events if event.name == name]


def test_a_log_has_every_epoch_of_a_training_that_was_killed_and_the_network_is_the_same(
    data: ImageData, tmp_path: Path
) -> None:
    def accuracy(model: nn.Module) -> float:
        return evaluate_network(model, data, data.val).accuracy

    whole, parts = EpochLog(accuracy), EpochLog(accuracy)
    seen = Seen()
    with observed([seen]):
        expected = trained(data, file=CheckpointFile(tmp_path / "whole", MADE_FROM, whole))
    assert same(expected, trained(data))
    with pytest.raises(KeyboardInterrupt):
        trained(data, file=Killed(tmp_path / "parts", MADE_FROM, EpochLog(accuracy), at=(2, 0)))
    assert same(trained(data, file=CheckpointFile(tmp_path / "parts", MADE_FROM, parts)), expected)
    assert parts.epochs == whole.epochs
    assert [own.number for own in whole.epochs] == [1, 2, 3]
    assert [own.rate for own in whole.epochs] == pytest.approx([0.033383, 0.0375, 0.0033494], abs=1e-6)
    assert seen.values("epoch", "learning_rate") == pytest.approx(
        [own.rate for own in whole.epochs], rel=1e-4
    )
    assert seen.values("validation", "accuracy") == [own.accuracy for own in whole.epochs]
    assert whole.epochs[-1].accuracy == pytest.approx(accuracy(expected), abs=1e-6)
    curve = fit_network(network(), data, RECIPE, "fine-tuning")
    assert [own.loss for own in whole.epochs] == [round(loss, 5) for loss in curve]
    trained(data, file=CheckpointFile(tmp_path / "another", MADE_FROM, parts))
    assert parts.epochs == whole.epochs  # and not those of the training before


def test_a_checkpoint_of_an_earlier_version_continues_after_its_epoch(
    data: ImageData, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    killed_after(data, RECIPE, path, 2)
    tensors, about = unseal_tensors(path)
    assert about == {"made_from": MADE_FROM, "epoch": 2}
    path.write_bytes(seal_tensors(tensors, about))
    assert same(trained(data, RECIPE, CheckpointFile(path, MADE_FROM)), trained(data))


def test_checkpoints_within_an_epoch_take_at_most_a_hundredth_of_the_time() -> None:
    now = 1000.0
    pace = Pace(lambda: now)
    for pause, writing in ((EVERY_S, 0.1), (EVERY_S, 20.0), (2000.0, 0.0), (EVERY_S, 0.0)):
        now += pause - 1
        assert not pace.due
        now += 1
        assert pace.due
        with pace.writing():
            now += writing


def test_batches_before_the_first_wanted_are_not_read() -> None:
    read = []

    class Counted(Dataset[tuple[Tensor, int]]):
        def __len__(self) -> int:
            return 12

        def __getitem__(self, number: int) -> tuple[Tensor, int]:
            read.append(number)
            return torch.full((1, 4, 4), float(number)), number % 2

    items = Items(Counted(), torch.arange(12), "counted")
    data = ImageData(items, items, items, ("a", "b"))
    with TrainingBatches(data, 4, 0, "cpu") as source:
        whole = [inputs for inputs, _ in source.epoch(1)]
        order, _ = list(read), read.clear()
        last = [inputs for inputs, _ in source.epoch(1, 2)]
    assert read == order[8:]
    assert len(last) == 1
    assert torch.equal(last[0], whole[2])


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
    killed_after(data, RECIPE, path)
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
