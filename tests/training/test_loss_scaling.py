"""Training in float16: losses are scaled, so small gradients are not zero, and large ones skip a step."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bcnet.config import Config
from bcnet.data.image_data import ImageData
from bcnet.data.splits import Split
from bcnet.pipeline.train_supernet import train
from bcnet.pipeline.training_file import CheckpointFiles
from bcnet.space.discover import discover_space
from bcnet.space.supernet import Supernet
from bcnet.training import checkpoints, recipe
from bcnet.training.checkpoints import CheckpointFile, Snapshot
from bcnet.training.loop import SCALE, Trainee, fit, fit_network
from bcnet.training.recipe import Recipe
from bcnet.training.supernet_step import SlicedPaths, supernet_step, trainable
from bcnet.training.task import Task

SINGLE = Recipe(epochs=2, learning_rate=0.05, batch_size=8, warmup_epochs=0)
HALF = replace(SINGLE, amp=True, half=torch.float16)


def images() -> ImageData:
    pixels = torch.randint(0, 256, (16, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    part = Split(pixels.to(torch.uint8), torch.arange(16) % 3)
    return ImageData(part, part, part, ("a", "b", "c"), (0.5,), (0.3,))


def network() -> nn.Module:
    torch.manual_seed(1)
    layers = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, 3))


def weights(own: Recipe, **more: Any) -> tuple[Tensor, list[float]]:
    """All weights after a training, and its curve."""
    model = network()
    curve = fit_network(model, images(), own, "training", **more)
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]), curve


def times(factor: float) -> Task:
    """Cross entropy, times a factor."""
    return Task(loss=lambda outputs, targets: factor * nn.functional.cross_entropy(outputs, targets))


@pytest.mark.parametrize("clip", [None, 0.1])
def test_weights_are_those_of_float32_but_for_rounding(clip: float | None) -> None:
    single, half = (weights(replace(own, clip_gradients=clip)) for own in (SINGLE, HALF))
    assert not torch.equal(half[0], single[0])
    torch.testing.assert_close(half[0], single[0], rtol=0, atol=2e-3)
    assert half[1] == pytest.approx(single[1], abs=2e-3)


def test_gradients_that_float16_cannot_hold_are_not_lost() -> None:
    tiny = {"learning_rate": 0.05e7, "weight_decay": 0.0, "task": times(1e-7)}
    single, half = (weights(replace(own, **tiny))[0] for own in (SINGLE, HALF))
    torch.testing.assert_close(half, single, rtol=0, atol=2e-2)
    start = torch.cat([parameter.detach().flatten() for parameter in network().parameters()])
    assert float((single - start).abs().max()) > 0.05


def test_a_step_whose_gradients_overflow_is_left_out_and_the_scale_is_halved() -> None:
    weight, before = nn.Parameter(torch.ones(2)), []
    scaler = HALF.scaler()

    def step(inputs: Any, targets: Any, number: int) -> Tensor:
        before.append((weight.detach().clone(), scaler.get_scale()))
        scaled = scaler.scale(weight.sum() * (torch.inf if number == 1 else 1.0))
        scaled.backward()  # type: ignore[no-untyped-call]
        return torch.ones(())

    own = replace(HALF, epochs=2, momentum=0.0, weight_decay=0.0)
    fit(Trainee({"weight": weight}, step, scaler=scaler), images(), own, "training")
    moved = [not torch.equal(first, second) for (first, _), (second, _) in pairwise(before)]
    assert moved == [True, False, True]
    assert [scale for _, scale in before] == [65536.0, 65536.0, 32768.0, 32768.0]


def test_gradients_of_all_paths_of_a_step_have_one_scale() -> None:
    model, data = network(), images()
    space = discover_space(model, torch.zeros(1, 1, 8, 8), bins=4, channel_multiple=2, method="bcnet")
    drawn = [space.largest(), space.uniform(0.5)]
    found = []
    for own in (SINGLE, HALF):
        paths = SlicedPaths(trainable(Supernet.with_extra(model.train(), space), "cpu"), own)
        inputs, targets = data.batch(data.train)
        supernet_step(paths, drawn, inputs, targets)
        scale = paths.scaler.get_scale()
        gradients = {name: each.grad for name, each in paths.parameters.items() if each.grad is not None}
        found.append({name: gradient / scale for name, gradient in gradients.items()})
    assert scale == 65536.0
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=2e-3)


@pytest.mark.parametrize(("epoch", "step"), [(1, 0), (1, 1)])
def test_a_killed_training_continues_with_its_scale(
    tmp_path: Path, epoch: int, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scales = []

    class Killed(CheckpointFile):
        def save(self, snapshot: Snapshot) -> None:
            super().save(snapshot)
            scales.append(snapshot.tensors[SCALE].tolist())
            if (snapshot.epoch, snapshot.step) == (epoch, step):
                raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "EVERY_S", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", math.inf)
    own = replace(HALF, epochs=3, learning_rate=1e-5, task=times(1000.0))  # which overflows at first
    whole, curve = weights(own)
    file = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        weights(own, checkpoint=Killed(file, {}))
    continued, rest = weights(own, checkpoint=CheckpointFile(file, {}))
    assert torch.equal(continued, whole)
    assert rest == curve[epoch:]
    assert scales[0][0] < 65536
    # One without a scale, of another device, is continued, too.
    other, _ = weights(replace(own, amp=False), checkpoint=CheckpointFile(file, {}))
    assert torch.equal(other, whole)  # it was at its end


def test_a_supernet_is_trained_in_float16(tmp_path: Path) -> None:
    model = network()
    space = discover_space(model, torch.zeros(1, 1, 8, 8), bins=4, channel_multiple=2, method="bcnet")
    files = [CheckpointFiles(tmp_path / f"{name}.safetensors", {}) for name in ("single", "half")]
    curves = [
        train(Supernet.with_extra(model, space), images(), own, checkpoints=at).curve
        for own, at in zip((SINGLE, HALF), files, strict=True)
    ]
    assert curves[1] == pytest.approx(curves[0], abs=5e-3)
    assert curves[1] != curves[0]
    at = files[1].load()
    assert at is not None
    assert at.snapshot.tensors[SCALE].tolist() == [65536.0, 4.0]  # four steps since it began


@pytest.mark.parametrize(
    ("native", "amp", "expected"),
    [
        (True, None, (True, torch.bfloat16)),
        (False, None, (True, torch.float16)),
        (False, True, (True, torch.float16)),
        (False, False, (False, torch.float16)),
    ],
)
def test_a_gpu_without_bfloat16_takes_float16(
    monkeypatch: pytest.MonkeyPatch, native: bool, amp: bool | None, expected: tuple[bool, torch.dtype]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    monkeypatch.setattr(recipe, "training_device", lambda config: "cuda")
    own = Recipe.of(Config.model_validate({"train": {"amp": amp}}), 1, 0.1)
    assert (own.amp, own.half) == expected
    assert own.bfloat16 is native
