"""Paths on whole tensors with masks, and as recorded work, train as paths on slices do."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bcnet.data.image_data import ImageData
from bcnet.data.splits import Split
from bcnet.pipeline.train_supernet import train
from bcnet.space.subnet import Subnet
from bcnet.space.supernet import Supernet
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.training import cuda_graph
from bcnet.training.cuda_graph import RecordedPaths, captured, fastest_paths
from bcnet.training.recipe import Recipe
from bcnet.training.step_plan import STEPS, StepPlan
from bcnet.training.supernet_step import supernet_step
from bcnet.training.task import Task
from tests.space.witnesses import assert_same_gradients, sliced_paths
from tests.training.tried_ways import RECIPE, Between, batch, given_speeds, left_as_it_was, with_space


class Mobile(nn.Module):
    """A depthwise block with a shortcut, batch norm and a gate: each mask must reach every one of them."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.body = nn.Sequential(
            nn.Conv2d(8, 12, 1, bias=False),
            nn.BatchNorm2d(12),
            nn.Conv2d(12, 12, 3, padding=1, groups=12),
            nn.Sigmoid(),
            nn.Conv2d(12, 8, 1),
        )
        self.gate = nn.Conv2d(8, 8, 1)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(8 * 16, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.body(x)
        z: Tensor = self.head(x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid())
        return z


def setup(method: str = "bcnet", model: nn.Module | None = None) -> tuple[nn.Module, WidthSpace]:
    torch.manual_seed(0)
    return with_space(model or Mobile(), method)


def at_once(work: Callable[[], None]) -> Callable[[], None]:
    """In place of a CUDA graph: a replay does the work again, on the same tensors."""
    return work


@pytest.mark.parametrize("method", ["unilateral", "bcnet", "bcnetv2"])
@pytest.mark.parametrize("widths", [(8, 12), (2, 7), (5, 3)])
def test_masks_give_the_gradients_that_slices_give(method: str, widths: tuple[int, ...]) -> None:
    model, space = setup(method)
    for side in space.rule.sides:
        assert_same_gradients(model, space, batch(), Subnet.at(space, Widths(widths), side))


def test_a_recorded_step_adds_the_gradients_of_each_of_its_paths_on_each_new_batch() -> None:
    model, space = setup()
    sliced, other = sliced_paths(model, space, RECIPE), sliced_paths(model, space, RECIPE)
    recorded_paths = RecordedPaths(other, *batch(), STEPS["plain"].paths(2, 1), at_once)
    for parameter in other.parameters.values():
        assert parameter.grad is not None
        parameter.grad.zero_()
    for seed, widths in enumerate([Widths((3, 5)), Widths((8, 2))]):
        (expected,) = supernet_step(sliced, [widths], *batch(seed))
        (loss,) = supernet_step(recorded_paths, [widths], *batch(seed))
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    for name, parameter in sliced.parameters.items():
        torch.testing.assert_close(other.parameters[name].grad, parameter.grad, rtol=1e-4, atol=1e-6)


def test_batches_of_another_shape_and_distilled_paths_go_to_the_slices() -> None:
    model, space = setup()
    replays: list[int] = []

    def counted(work: Callable[[], None]) -> Callable[[], None]:
        return lambda: (replays.append(1), work())[1]

    paths = RecordedPaths(sliced_paths(model, space, RECIPE), *batch(), 1, counted)
    path = Subnet.at(space, Widths((3, 5)))
    assert paths(path, *batch(count=5))[1].shape == (5, 3)
    assert paths(path, *batch(), teacher=torch.zeros(12, 3))[1].shape == (12, 3)
    assert paths(path, *batch(), count=2)[1].shape == (12, 3)
    assert not replays
    assert paths(path, *batch())[1] is None
    assert replays == [1]


def of_speeds(monkeypatch: pytest.MonkeyPatch, recorded_s: float, sliced_s: float) -> None:
    """What the two ways take: masks are slower on a processor."""
    given_speeds(monkeypatch, cuda_graph, RecordedPaths, recorded_s, sliced_s)


def test_the_faster_way_is_taken_and_the_supernet_left_as_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, space = setup()
    sliced = sliced_paths(model, space, RECIPE)
    of_speeds(monkeypatch, 0.002, 0.010)
    with left_as_it_was(sliced):
        assert isinstance(fastest_paths(sliced, *batch(), 2, at_once), RecordedPaths)
    assert (
        "training by a recorded CUDA graph: a path takes 2.000 ms recorded, 10.000 on slices"
        in capsys.readouterr().err
    )
    of_speeds(monkeypatch, 0.010, 0.002)
    with left_as_it_was(sliced):
        assert fastest_paths(sliced, *batch(), 2, at_once) is sliced
    assert (
        "training on slices, not by a recorded CUDA graph: a path takes 10.000 ms recorded"
        in capsys.readouterr().err
    )


def over_deviation(x: Tensor) -> Tensor:
    """Where a channel is zero, its deviation is zero, and its gradient not a number."""
    return x / x.std((2, 3), keepdim=True)


def of_all_channels(x: Tensor) -> Tensor:
    """What is one thing for eight channels, and another for a narrow network's."""
    return x / x.shape[1]


def at_random(x: Tensor) -> Tensor:
    """What is drawn would be the same in every replay. Here it changes nothing, for groups to be found."""
    return x if random.random() < 1 else -x


def refused(work: Callable[[], None]) -> Callable[[], None]:
    raise RuntimeError("operation not permitted when stream is capturing")


def forgetful(work: Callable[[], None]) -> Callable[[], None]:
    """A recording whose replay does nothing."""
    return lambda: None


@pytest.mark.parametrize(
    ("model", "recipe", "capture", "why"),
    [
        (Between(nn.GroupNorm(1, 8)), RECIPE, at_once, "a layer normalises across the channels of conv"),
        (
            Mobile(),
            Recipe(epochs=1, learning_rate=0.1, task=Task(loss=nn.functional.cross_entropy)),
            at_once,
            "the loss is your own",
        ),
        (
            Mobile(),
            RECIPE,
            refused,
            "recording failed (RuntimeError: operation not permitted when stream is capturing)",
        ),
        (Mobile(), RECIPE, forgetful, "what was recorded gives gradients that are off by 100.0%"),
        (Between(over_deviation), RECIPE, at_once, "with masks gradients are off by nan"),
        (
            Between(of_all_channels),
            RECIPE,
            at_once,
            "a layer normalises across the channels of conv, or computes with their number",
        ),
        (
            Between(at_random),
            RECIPE,
            at_once,
            "recording failed (TrainingError: the network draws random numbers on the processor)",
        ),
        (
            Between(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)),
            RECIPE,
            at_once,
            "between.running_mean is neither trained nor recalibrated for each candidate",
        ),
    ],
    ids=[
        *("group norm", "own loss", "refused", "forgetful", "nan", "counts channels", "draws"),
        "instance norm",
    ],
)
def test_what_cannot_be_recorded_is_trained_on_slices_and_says_why(
    model: nn.Module,
    recipe: Recipe,
    capture: Callable[[Callable[[], None]], Callable[[], None]],
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    of_speeds(monkeypatch, 0.002, 0.010)
    sliced = sliced_paths(*setup(model=model), recipe)
    with left_as_it_was(sliced):
        assert fastest_paths(sliced, *batch(), 1, capture) is sliced
    assert f"training on slices, not by a recorded CUDA graph: {why}" in capsys.readouterr().err


def test_networks_with_dropout_are_recorded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    of_speeds(monkeypatch, 0.002, 0.010)
    model, space = setup(model=Mobile(dropout=0.5))
    assert isinstance(fastest_paths(sliced_paths(model, space, RECIPE), *batch(), 1, at_once), RecordedPaths)
    assert all(module.training for module in model.modules())


def images() -> ImageData:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(48) % 3
    pixels = torch.randint(0, 80, (48, 1, 6, 6), generator=generator)
    pixels[torch.arange(48), 0, labels * 2] = 255  # a bright row tells the class
    split = Split(pixels.to(torch.uint8), labels)
    return ImageData(split, split.take(torch.arange(24)), split, ("a", "b", "c"), (0.3,), (0.2,))


@pytest.mark.gpu
@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_on_a_gpu_a_graph_gives_the_gradients_of_the_slices(
    amp: bool, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_speeds(monkeypatch, 0.002, 0.010)
    recipe = Recipe(epochs=1, learning_rate=0.1, batch_size=8, device="cuda", amp=amp)
    sliced = sliced_paths(*setup(model=Mobile(dropout)), recipe)
    inputs, targets = (tensor.cuda() for tensor in batch())
    assert isinstance(fastest_paths(sliced, inputs, targets, 2), RecordedPaths)


@pytest.mark.gpu
def test_on_a_gpu_what_waits_for_it_is_not_recorded_and_training_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, space = setup(model=Between(lambda x: x * float(x.detach().abs().max() > 0)))
    recipe = Recipe(epochs=2, learning_rate=0.1, batch_size=24, device="cuda")
    supernet, plan = Supernet.with_extra(model, space), StepPlan(cuda_graph=True)
    assert len(train(supernet, images(), recipe, plan=plan).curve) == 2
    assert "on slices, not by a recorded CUDA graph: recording failed (" in capsys.readouterr().err
    torch.cuda.empty_cache()
    total = torch.zeros(1, device="cuda")

    def work() -> None:
        total.add_(1)

    before = float(total)
    captured(work)()  # another recording is possible
    assert float(total) > before


@pytest.mark.gpu
def test_on_a_gpu_a_recorded_training_learns_what_a_sliced_one_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    of_speeds(monkeypatch, 0.002, 0.010)
    model, space = setup()
    recipe = Recipe(epochs=30, learning_rate=0.1, batch_size=24, device="cuda")
    plans = [StepPlan(cuda_graph=graph) for graph in (False, True)]
    curves = [train(Supernet.with_extra(model, space), images(), recipe, plan=plan).curve for plan in plans]
    assert "training by a recorded CUDA graph" in capsys.readouterr().err
    assert curves[1][0] == pytest.approx(curves[0][0], rel=0.05)
    assert all(curve[-1] < 0.5 for curve in curves)
