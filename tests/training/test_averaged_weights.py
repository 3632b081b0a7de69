"""The moving average of weights is what is kept, and continues exactly; gradients are limited in norm."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bcnet.config import Config
from bcnet.data.image_data import ImageData
from bcnet.data.splits import Split
from bcnet.pipeline.train_supernet import train
from bcnet.pipeline.training_file import Checkpoint, CheckpointFiles, Record
from bcnet.space.discover import discover_space
from bcnet.space.supernet import Supernet
from bcnet.training import checkpoints
from bcnet.training.checkpoints import CheckpointFile, Snapshot
from bcnet.training.loop import Trainee, fit, fit_network
from bcnet.training.recipe import Recipe, training_digest

RECIPE = Recipe(epochs=3, learning_rate=0.05, batch_size=8, warmup_epochs=0, momentum=0, weight_decay=0)
AVERAGED = replace(RECIPE, ema=0.8, clip_gradients=0.5)


def images(count: int = 16) -> ImageData:
    pixels = torch.randint(0, 256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    part = Split(pixels.to(torch.uint8), torch.arange(count) % 3)
    return ImageData(part, part, part, ("a", "b", "c"), (0.5,), (0.3,))


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def followed(recipe: Recipe, gradient: Tensor) -> tuple[list[Tensor], Tensor]:
    """The weights before each step and at the end, of a training whose every gradient is the same."""
    weight = nn.Parameter(torch.zeros(2))
    before = []

    def step(inputs: Any, targets: Any, number: int) -> Tensor:
        before.append(weight.detach().clone())
        assert weight.grad is not None
        weight.grad += gradient
        return weight.detach().sum()

    fit(Trainee({"weight": weight}, step), images(), recipe, "training")
    return before, weight.detach()


def test_the_average_over_the_steps_is_kept() -> None:
    gradient = torch.tensor([1.0, -2.0])
    before, last = followed(RECIPE, gradient)
    states = [*before[1:], last]  # after each step
    assert len(states) == 6
    average = torch.zeros(2)
    for number, state in enumerate(states):
        decay = min(0.8, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * state
    _, kept = followed(replace(RECIPE, ema=0.8), gradient)
    torch.testing.assert_close(kept, average)
    assert not torch.allclose(kept, last)


@pytest.mark.parametrize(("norm", "factor"), [(0.5, 0.1), (5.0, 1.0), (9.0, 1.0)])
def test_gradients_above_the_norm_are_scaled_down_to_it(norm: float, factor: float) -> None:
    gradient = torch.tensor([3.0, -4.0])
    _, free = followed(RECIPE, gradient)
    _, clipped = followed(replace(RECIPE, clip_gradients=norm), gradient)
    torch.testing.assert_close(clipped, factor * free, rtol=1e-4, atol=0)


def test_statistics_of_batch_norm_are_averaged_and_counters_are_not() -> None:
    models = [network(), network()]
    for model, recipe in zip(models, (RECIPE, replace(RECIPE, ema=0.8)), strict=True):
        fit_network(model, images(), recipe, "training")
    last, kept = (dict(model.named_buffers()) for model in models)
    assert kept["1.num_batches_tracked"] == last["1.num_batches_tracked"] == 6
    assert not torch.allclose(kept["1.running_mean"], last["1.running_mean"])


@pytest.mark.parametrize(("epoch", "step"), [(1, 0), (3, 0), (1, 1)])
def test_a_killed_training_keeps_the_same_average(
    tmp_path: Path, epoch: int, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(CheckpointFile):
        def save(self, snapshot: Snapshot) -> None:
            super().save(snapshot)
            if (snapshot.epoch, snapshot.step) == (epoch, step):
                raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "EVERY_S", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", math.inf)

    whole, parts = network(), network()
    fit_network(whole, images(), AVERAGED, "training")
    file = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fit_network(network(), images(), AVERAGED, "training", checkpoint=Killed(file, {}))
    curve = fit_network(parts, images(), AVERAGED, "training", checkpoint=CheckpointFile(file, {}))
    assert len(curve) == 3 - epoch
    for name, tensor in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], tensor)


def test_a_checkpoint_without_an_average_is_not_continued_with_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = CheckpointFile(tmp_path / "checkpoint.safetensors", {})
    fit_network(network(), images(), RECIPE, "training", checkpoint=file)
    curve = fit_network(network(), images(), AVERAGED, "training", checkpoint=file)
    assert len(curve) == 3
    assert "training starts from the beginning" in capsys.readouterr().err


def test_a_killed_supernet_keeps_the_same_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    space = discover_space(model, torch.zeros(1, 1, 8, 8), bins=4, channel_multiple=2, method="bcnet")
    files = [CheckpointFiles(tmp_path / f"{name}.safetensors", {}) for name in ("whole", "parts")]
    whole = train(Supernet.with_extra(model, space), images(), AVERAGED, checkpoints=files[0])
    save = CheckpointFiles.save

    def stopped(files: CheckpointFiles, checkpoint: Checkpoint, records: list[Record]) -> None:
        save(files, checkpoint, records)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(CheckpointFiles, "save", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(Supernet.with_extra(model, space), images(), AVERAGED, checkpoints=files[1])
    parts = train(Supernet.with_extra(model, space), images(), AVERAGED, checkpoints=files[1])
    plain = train(Supernet.with_extra(model, space), images(), RECIPE)
    assert parts.curve == whole.curve
    for name, tensor in whole.supernet.state.items():
        assert torch.equal(parts.supernet.state[name], tensor)
    assert not torch.equal(plain.supernet.state["0.weight"], whole.supernet.state["0.weight"])


def test_digests_of_trainings_without_these_settings_are_those_of_earlier_versions() -> None:
    def digest(**train: float | str | None) -> str:
        return training_digest(Config.model_validate({"train": train}))

    assert digest() == digest(ema=None, clip_gradients=None, base_batch=None) == "736dad0bb86a63fc"
    assert digest(parallel=8) == digest()  # of psenet only
    assert digest(method="psenet", draws=3) == digest(method="psenet") != digest(method="psenet", parallel=8)
    others = [digest(ema=0.9), digest(ema=0.99), digest(clip_gradients=1.0), digest(base_batch=256)]
    assert len({digest(), *others}) == 5
    recipe = Recipe.of(Config.model_validate({"train": {"ema": 0.9, "clip_gradients": 2.0}}), 1, 0.1)
    assert (recipe.ema, recipe.clip_gradients) == (0.9, 2.0)
