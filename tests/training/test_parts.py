"""Several subnets in one pass: the gradients are those of each alone on its part of the batch."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bcnet.data.splits import Item
from bcnet.errors import TrainingError
from bcnet.space.subnet import Subnet
from bcnet.space.supernet import cut
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.training import parts
from bcnet.training.parts import MaskedParts, SlicedParts, fastest_parts, part_of
from bcnet.training.recipe import Recipe
from bcnet.training.step_plan import StepPlan
from bcnet.training.supernet_step import Parts, SlicedPaths, parallel_step
from bcnet.training.task import Task
from tests.space.witnesses import scattered, sliced_paths
from tests.training.tried_ways import RECIPE, Between, batch, given_speeds, left_as_it_was, with_space

WIDTHS = [Widths((8, 12, 4)), Widths((2, 7, 1)), Widths((5, 3, 4))]


class Tiny(nn.Module):
    """A depthwise block with a shortcut and batch norms that move what is zero, a transposed and a grouped
    convolution, and a classifier of flattened channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.body = nn.Sequential(
            nn.Conv2d(8, 12, 1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False),
            nn.BatchNorm2d(12),
            nn.Sigmoid(),
            nn.Conv2d(12, 8, 1, bias=False),
            nn.BatchNorm2d(8),
        )
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.head = nn.Linear(4 * 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.body(x)
        z: Tensor = self.head(self.up(x).flatten(1))
        return z


def setup(model: nn.Module | None = None) -> tuple[nn.Module, WidthSpace]:
    torch.manual_seed(0)
    return with_space(scattered(model or Tiny()), "psenet")


def gradients(way: Callable[[SlicedPaths], Parts], subnets: list[Subnet], at: Item) -> dict[str, Tensor]:
    """Losses and gradients of one of the ways, in a new supernet."""
    sliced = sliced_paths(*setup(), RECIPE)
    losses = way(sliced)(subnets, *at)
    found = {name: own.grad for name, own in sliced.parameters.items() if own.grad is not None}
    return {"losses": torch.stack(losses), **found}


@pytest.mark.parametrize("way", [MaskedParts, SlicedParts])
def test_gradients_are_the_mean_of_those_of_the_networks_cut_out_each_on_its_part(
    way: Callable[[SlicedPaths], Parts],
) -> None:
    model, space = setup()
    inputs, labels = batch()
    subnets = [Subnet.at(space, widths) for widths in WIDTHS]
    found = gradients(way, subnets, (inputs, labels))
    expected = {name: torch.zeros_like(own) for name, own in model.named_parameters()}
    for place, subnet in enumerate(subnets):
        small = cut(model, space, subnet).train()
        loss = nn.functional.cross_entropy(small(inputs[place::3]), labels[place::3])
        (loss / 3).backward()  # type: ignore[no-untyped-call]
        assert float(found["losses"][place]) == pytest.approx(float(loss.detach()), rel=1e-5)
        for name, own in small.named_parameters():
            assert own.grad is not None
            expected[name][tuple(slice(length) for length in own.shape)] += own.grad
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_masks_and_slices_give_the_same_gradients_in_either_layout(layout: torch.memory_format) -> None:
    _, space = setup()
    inputs, labels = batch()
    at = inputs.contiguous(memory_format=layout), labels
    subnets = [Subnet.at(space, widths) for widths in WIDTHS]
    masked, sliced = gradients(MaskedParts, subnets, at), gradients(SlicedParts, subnets, at)
    assert masked.keys() == sliced.keys()
    for name, gradient in sliced.items():
        torch.testing.assert_close(masked[name], gradient, rtol=1e-5, atol=1e-5, msg=name)


def test_statistics_of_the_whole_batch_would_give_other_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    _, space = setup()
    subnets = [Subnet.at(space, widths) for widths in WIDTHS]
    ghost = gradients(MaskedParts, subnets, batch())
    monkeypatch.setattr(parts, "_ghost", lambda norm, forward, count, x: forward(x))
    plain = gradients(MaskedParts, subnets, batch())
    assert float((plain["losses"] - ghost["losses"]).abs().max()) > 0.01


def test_a_masked_step_leaves_modules_and_statistics_as_they_were() -> None:
    sliced = sliced_paths(*setup(), RECIPE)
    before = {name: own.clone() for name, own in sliced.buffers.items()}
    MaskedParts(sliced)([Subnet.at(sliced.space, widths) for widths in WIDTHS], *batch())
    assert all("forward" not in vars(module) for module in sliced.model.modules())
    assert all(torch.equal(own, before[name]) for name, own in sliced.buffers.items())


def test_a_step_gives_each_path_a_part_and_returns_the_losses_of_the_drawn_widths() -> None:
    sliced = sliced_paths(*setup(), RECIPE)
    seen: list[Subnet] = []

    class Recorded(SlicedParts):
        def __call__(self, subnets: list[Subnet], inputs: Tensor, targets: Tensor) -> list[Tensor]:  # type: ignore[override]
            seen.extend(subnets)
            return [torch.tensor(float(place)) for place in range(len(subnets))]

    plan = StepPlan(widest=True, narrowest=True, parallel=True)
    losses = parallel_step(Recorded(sliced), WIDTHS, *batch(), plan=plan)
    space = sliced.space
    wanted = [space.largest(), *WIDTHS, space.smallest()]
    assert [subnet.widths for subnet in seen] == wanted
    assert [float(loss) for loss in losses] == [1, 2, 3]


def test_batches_that_cannot_be_divided_equally_are_trained_on_slices() -> None:
    _, space = setup()
    subnets = [Subnet.at(space, widths) for widths in WIDTHS]
    masked, sliced = (gradients(way, subnets, batch(count=11)) for way in (MaskedParts, SlicedParts))
    assert all(torch.equal(masked[name], sliced[name]) for name in sliced)


def test_too_few_images_and_batches_without_rows_are_refused_in_one_line() -> None:
    with pytest.raises(TrainingError, match=r"2 images are too few for 3; lower train\.parallel or raise"):
        part_of(batch(count=2), 0, 3)
    for targets in ([torch.zeros(2)] * 4, torch.zeros(3), torch.tensor(1.0)):
        with pytest.raises(TrainingError, match="inputs and targets have to be tensors with a row for each"):
            part_of((torch.zeros(4, 1), targets), 0, 2)


def of_speeds(monkeypatch: pytest.MonkeyPatch, masked_s: float, sliced_s: float) -> None:
    given_speeds(monkeypatch, parts, MaskedParts, masked_s, sliced_s)


def test_the_faster_way_is_taken_and_the_supernet_left_as_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sliced = sliced_paths(*setup(), RECIPE)
    of_speeds(monkeypatch, 0.002, 0.010)
    with left_as_it_was(sliced):
        assert isinstance(fastest_parts(sliced, *batch(), 3), MaskedParts)
    message = capsys.readouterr().err
    assert (
        "the 3 subnets of a step in one pass with masks: a step takes 2.000 ms with masks, 10.000" in message
    )
    of_speeds(monkeypatch, 0.010, 0.002)
    with left_as_it_was(sliced):
        assert isinstance(fastest_parts(sliced, *batch(), 3), SlicedParts)
    assert "one after the other on slices: a step takes 10.000 ms with masks" in capsys.readouterr().err


class Functional(Between):
    """A layer that is called by function: nothing can be masked before it."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.conv(x).mean((2, 3)), self.head.weight, self.head.bias)


@pytest.mark.parametrize(
    ("model", "recipe", "count", "why"),
    [
        (Between(nn.GroupNorm(1, 8)), RECIPE, 3, "a layer normalises across the channels of conv"),
        (Functional(nn.ReLU()), RECIPE, 3, "with masks gradients are off by "),
        (Tiny(), Recipe(1, 0.1, task=Task(loss=nn.functional.cross_entropy)), 3, "the loss is your own"),
        (Tiny(), RECIPE, 5, "12 images cannot be divided equally"),
    ],
    ids=["group norm", "functional", "own loss", "uneven"],
)
def test_what_cannot_be_masked_is_trained_on_slices_and_says_why(
    model: nn.Module,
    recipe: Recipe,
    count: int,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    of_speeds(monkeypatch, 0.002, 0.010)
    sliced = sliced_paths(*setup(model), recipe)
    assert isinstance(fastest_parts(sliced, *batch(), count), SlicedParts)
    assert f"subnets of a step one after the other on slices: {why}" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("amp", [False, True])
def test_on_a_gpu_masks_give_the_gradients_of_the_slices(amp: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    of_speeds(monkeypatch, 0.002, 0.010)
    recipe = Recipe(epochs=1, learning_rate=0.1, batch_size=12, device="cuda", amp=amp)
    sliced = sliced_paths(*setup(), recipe)
    inputs, targets = (tensor.cuda() for tensor in batch())
    assert isinstance(fastest_parts(sliced, inputs, targets, 3), MaskedParts)
