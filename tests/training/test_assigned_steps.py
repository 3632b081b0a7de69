"""CafeNet's training: the assignment of the lowest loss on the batch before is trained, after random ones."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from several_processes import in_processes
from torch import Tensor, nn

from bcnet.data.image_data import ImageData
from bcnet.data.splits import Split
from bcnet.space.discover import discover_space
from bcnet.space.free_channels import Assignments
from bcnet.space.subnet import Subnet
from bcnet.space.supernet import Supernet
from bcnet.space.width_space import Widths
from bcnet.training.assigned_steps import BestAssignments, batch_of
from bcnet.training.loop import batches
from bcnet.training.recipe import Recipe
from bcnet.training.supernet_step import SlicedPaths, supernet_step, trainable

RECIPE = Recipe(epochs=4, learning_rate=0.1, batch_size=8)
DRAWN = [Widths((4, 6)), Widths((6, 4))]


def images() -> ImageData:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (32, 1, 6, 6), generator=generator).to(torch.uint8)
    split = Split(pixels, torch.arange(32) % 3)
    return ImageData(split, split, split, ("a", "b", "c"), (0.5,), (0.3,))


def sliced() -> SlicedPaths:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
    )
    space = discover_space(model, torch.zeros(1, 1, 6, 6), bins=4, channel_multiple=2, method="cafenet")
    supernet = trainable(Supernet.with_extra(model, space), "cpu")
    model.train()
    return SlicedPaths(supernet, RECIPE)


def batch(number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(8, 1, 6, 6, generator=generator), torch.arange(8) % 3


def loss(paths: SlicedPaths, subnet: Subnet, inputs: Tensor, targets: Tensor) -> float:
    """The cross entropy of a subnet in training mode, its tensors sliced by hand."""
    first, second = (list(own) for own in subnet.channels)
    own, norm = paths.parameters, nn.functional.batch_norm
    x = nn.functional.conv2d(inputs, own["0.weight"][first], own["0.bias"][first])
    x = norm(x, None, None, own["1.weight"][first], own["1.bias"][first], training=True).relu()
    x = nn.functional.conv2d(x, own["3.weight"][second][:, first], own["3.bias"][second])
    x = norm(x, None, None, own["4.weight"][second], own["4.bias"][second], training=True).relu()
    logits = nn.functional.linear(x.mean((2, 3)), own["8.weight"][:, second], own["8.bias"])
    return float(nn.functional.cross_entropy(logits, targets).detach())


def test_the_loss_of_a_path_is_that_of_its_slices_and_changes_nothing() -> None:
    paths = sliced()
    before = {name: tensor.clone() for name, tensor in paths.buffers.items()}
    for subnet in Assignments(2).of(paths.space, DRAWN[0], 5, 0):
        assert float(paths.loss(subnet, *batch(0))) == pytest.approx(loss(paths, subnet, *batch(0)), rel=1e-5)
    assert all(torch.equal(paths.buffers[name], before[name]) for name in before)
    assert all(parameter.grad is None for parameter in paths.parameters.values())


def test_the_assignment_of_the_lowest_loss_on_the_batch_before_is_trained() -> None:
    paths, own = sliced(), Assignments(offset=2, trained=6, random=0.0)
    assign = BestAssignments(paths, own, images())
    (first, _) = assign(DRAWN, *batch(7), number=7)
    assert first == own.of(paths.space, DRAWN[0], 1, RECIPE.seed, 7, 0)[0]  # no batch is known yet
    chosen = assign(DRAWN, *batch(8), number=8)
    differs = False
    for place, widths in enumerate(DRAWN):
        tried = own.of(paths.space, widths, 6, RECIPE.seed, 8, place)
        by_batch = [[loss(paths, subnet, *batch(number)) for subnet in tried] for number in (7, 8)]
        best, on_its_own = (min(range(6), key=losses.__getitem__) for losses in by_batch)
        assert chosen[place] == tried[best]
        assert chosen[place].widths == widths
        differs = differs or best != on_its_own
    assert differs  # by the batch that is trained on, another one would have been chosen


def test_the_first_share_of_the_steps_trains_a_random_assignment(monkeypatch: pytest.MonkeyPatch) -> None:
    paths, own = sliced(), Assignments(trained=4, random=0.5)  # of 4 epochs with 4 steps
    compared: list[Subnet] = []
    real = SlicedPaths.loss

    def counted(paths: SlicedPaths, subnet: Subnet, *rest: Any) -> Tensor:
        compared.append(subnet)
        return real(paths, subnet, *rest)

    monkeypatch.setattr(SlicedPaths, "loss", counted)
    assign = BestAssignments(paths, own, images())
    for number in range(8):
        assert assign(DRAWN[:1], *batch(number), number=number) == own.of(
            paths.space, DRAWN[0], 1, RECIPE.seed, number, 0
        )
    assert not compared
    assign(DRAWN[:1], *batch(8), number=8)
    assert len(compared) == 4


def test_a_step_adds_the_gradients_of_the_assigned_channels() -> None:
    paths = sliced()
    chosen = [Assignments(2).of(paths.space, widths, 1, 5)[0] for widths in DRAWN]
    supernet_step(paths, chosen, *batch(0))
    own = {name: parameter.detach().clone().requires_grad_() for name, parameter in paths.parameters.items()}
    supernet = replace(paths.supernet, state={**own, **{n: b.clone() for n, b in paths.buffers.items()}})
    inputs, targets = batch(0)
    losses = [RECIPE.loss(supernet.run(subnet, inputs), targets) for subnet in chosen]
    (sum(losses, torch.zeros(())) / len(losses)).backward()  # type: ignore[no-untyped-call]
    for name, parameter in paths.parameters.items():
        torch.testing.assert_close(parameter.grad, own[name].grad, rtol=1e-4, atol=1e-6)


def test_a_training_that_continues_compares_by_the_batch_that_was_trained_on_before() -> None:
    data = replace(images(), flip=True, shift=1)
    for epoch in (0, 2):
        for step, (inputs, targets) in enumerate(batches(data, RECIPE, epoch)):
            again = batch_of(4 * epoch + step, data, RECIPE)
            assert torch.equal(again[0], inputs)
            assert torch.equal(again[1], targets)


def chosen_in_each(rank: int, processes: int) -> tuple[list[Subnet], float]:
    paths = sliced()
    share = slice(rank * 8 // processes, (rank + 1) * 8 // processes)
    assign = BestAssignments(paths, Assignments(offset=2, trained=6, random=0.0), images())
    for number in (7, 8):
        inputs, targets = batch(number)
        found = assign(DRAWN, inputs[share], targets[share], number=number)
    return found, loss(paths, found[0], *batch(7))


def test_processes_that_share_batches_choose_the_same_assignment() -> None:
    found = in_processes(2, chosen_in_each, 2)
    assert found[0] == found[1]
