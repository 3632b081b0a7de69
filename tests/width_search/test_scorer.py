"""Fast scores of a search's candidates: every image seen once, the same each time, nothing left changed."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bcnet.config import DataConfig
from bcnet.data.dataset import load_data
from bcnet.data.image_data import ImageData
from bcnet.data.splits import Split, shared_out
from bcnet.space.discover import discover_space
from bcnet.space.extract import tensors_of
from bcnet.space.subnet import Subnet
from bcnet.space.supernet import NarrowNetwork, Supernet
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.training.loop import fit_network
from bcnet.training.recipe import Recipe
from bcnet.training.task import Task
from bcnet.width_search.scorer import SHARED, Scorer, Validation, evaluate, score

WIDTHS = Widths((4, 6))


def network(method: str = "bcnet") -> tuple[nn.Module, WidthSpace]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 3),
    )
    space = discover_space(model, torch.zeros(1, 1, 8, 8), bins=4, channel_multiple=2, method=method)
    return model.eval(), space


def supernet_of(model: nn.Module, space: WidthSpace) -> Supernet:
    return Supernet(model, space, dict(model.state_dict()))


def images(count: int) -> ImageData:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3 * count, 1, 8, 8), generator=generator).to(torch.uint8)
    split = Split(pixels, torch.randint(0, 3, (3 * count,), generator=generator))
    train, val, test = (split.take(torch.arange(n * count, (n + 1) * count)) for n in range(3))
    return ImageData(train, val, test, ("a", "b", "c"), (0.5,), (0.3,))


def test_each_side_judges_its_half_of_the_images_with_its_half_of_the_statistics() -> None:
    model, space = network()
    state, data, count = dict(model.state_dict()), images(300), 2 * SHARED
    sides = []
    halves = zip(shared_out(data.train.take(torch.arange(count)), 2), shared_out(data.val, 2), strict=True)
    for side, (train, val) in zip(space.rule.sides, halves, strict=True):
        by = Validation(replace(data, train=train, val=val), SHARED)
        sides.append(by.score(by.recalibrated(Supernet(model, space, state), Subnet.at(space, WIDTHS, side))))
    fast = Scorer([Supernet(model, space, state)], data, count, shared=True)(WIDTHS)
    assert fast.accuracy == pytest.approx((sides[0].accuracy + sides[1].accuracy) / 2)
    assert fast.loss == pytest.approx((sides[0].loss + sides[1].loss) / 2)


def test_the_score_of_two_supernets_is_the_mean_of_theirs() -> None:
    model, space = network()
    first = dict(model.state_dict())
    second = {name: tensor.flip(0) for name, tensor in first.items() if tensor.ndim} | {
        name: tensor for name, tensor in first.items() if not tensor.ndim
    }
    supernets = [Supernet(model, space, state) for state in (first, second)]
    own = [score(supernet, WIDTHS, images(100), 64) for supernet in supernets]
    assert own[0].loss != own[1].loss
    both = Scorer(supernets, images(100), 64)(WIDTHS)
    assert both.accuracy == pytest.approx((own[0].accuracy + own[1].accuracy) / 2)
    assert both.loss == pytest.approx((own[0].loss + own[1].loss) / 2)


def test_sides_share_the_images_out_and_swap_halves_from_one_supernet_to_the_next() -> None:
    model, space = network()
    data = images(2 * SHARED + 1)
    scorer = Scorer([supernet_of(model, space)] * 2, data, 2 * SHARED, shared=True)
    assert [side.name for side in scorer.sides] == ["left", "right", "left", "right"]
    for part, whole in (("train", data.train.take(torch.arange(2 * SHARED))), ("val", data.val)):
        seen = [torch.cat([targets for _, targets in getattr(side, part)]) for side in scorer.sides]
        first, second = (own.labels for own in shared_out(whole, 2))
        wanted = [first, second, second, first]
        assert all(torch.equal(own, targets) for own, targets in zip(seen, wanted, strict=True))


def test_judges_that_share_images_out_all_see_every_class_in_proportion() -> None:
    model, space = network()
    data = images(240)
    labels = torch.arange(4).repeat(60)  # a class is every fourth image
    data = replace(data, val=Split(data.val.images, labels), train=Split(data.train.images, labels))
    scorer = Scorer([supernet_of(model, space)], data, 240, shared=True)
    for side in scorer.sides:
        for part in (side.val, side.train):
            assert part._part.labels.bincount().tolist() == [30, 30, 30, 30]


@pytest.mark.parametrize("method", ["bcnet", "unilateral"])
def test_where_images_are_few_or_there_is_one_side_all_are_judged_as_in_a_plain_score(method: str) -> None:
    model, space = network(method)
    data = images(2 * SHARED - 1 if method == "bcnet" else 200)
    plain = score(supernet_of(model, space), WIDTHS, data, 100)
    fast = Scorer([supernet_of(model, space)], data, 100, shared=True)(WIDTHS)
    assert fast.accuracy == pytest.approx(plain.accuracy)
    assert fast.loss == pytest.approx(plain.loss)


def test_the_same_widths_score_the_same_whatever_was_scored_between_and_the_supernet_stays_as_it_was() -> (
    None
):
    model, space = network()
    state = dict(model.state_dict())
    before = {name: tensor.clone() for name, tensor in state.items()}
    scorer = Scorer([Supernet(model, space, state)], images(200), 128)
    first = scorer(WIDTHS)
    assert scorer(space.largest()) != first
    assert scorer(WIDTHS) == first
    assert all(torch.equal(state[name], before[name]) for name in before)


def test_a_metric_that_changes_its_targets_in_place_gives_the_same_each_time() -> None:
    def metric(batches: Iterable[tuple[Any, Any]]) -> float:
        hits = 0
        for outputs, targets in batches:
            hits += int((outputs.argmax(1) == targets).sum())
            targets.fill_(0)
        return float(hits)

    model, space = network()
    scorer = Scorer([supernet_of(model, space)], images(200), 128, Task(metric=metric))
    assert scorer(WIDTHS) == scorer(WIDTHS)


def test_in_bfloat16_the_network_is_rounded_and_judged_in_float32() -> None:
    model, space = network()
    seen = set()

    def metric(batches: Iterable[tuple[Any, Any]]) -> float:
        for outputs, _ in batches:
            seen.add((outputs.dtype, torch.is_autocast_enabled("cpu")))
        return 0.5

    given = [supernet_of(model, space)], images(200), 128, Task(metric=metric)
    rounded, exact = Scorer(*given, amp=True)(WIDTHS), Scorer(*given)(WIDTHS)
    assert seen == {(torch.float32, False)}
    assert rounded.loss != exact.loss
    assert rounded.loss == pytest.approx(exact.loss, rel=0.02)


@pytest.fixture(scope="module")
def shifted() -> ImageData:
    """Digits at 16 pixels that training shifts by up to six of them."""
    return load_data(DataConfig(image_size=16, train_limit=800, shift=6), 0)


@pytest.fixture(scope="module")
def fitted(shifted: ImageData) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10)),
    )
    fit_network(model, shifted, Recipe(epochs=12, learning_rate=0.1, batch_size=32), "training")
    return model


def test_statistics_of_augmented_images_give_a_trained_network_its_own_loss_back(
    shifted: ImageData, fitted: nn.Module
) -> None:
    space = discover_space(fitted, torch.zeros(1, 1, 16, 16), bins=2, method="unilateral")
    state, count = tensors_of(fitted), len(shifted.train)

    def loss(network: NarrowNetwork) -> float:
        return evaluate(network, shifted, shifted.val).loss

    def again(data: ImageData) -> NarrowNetwork:
        whole = Subnet.at(space, space.largest())
        return Validation(data, count).recalibrated(Supernet.of(fitted, space), whole)

    own = loss(NarrowNetwork(fitted, space, state))
    assert loss(again(shifted)) == pytest.approx(own, rel=0.03)
    assert loss(again(replace(shifted, shift=0))) != pytest.approx(own, rel=0.15)
    assert Scorer([Supernet(fitted, space, state)], shifted, count)(space.largest()).loss == pytest.approx(
        own, rel=0.03
    )


def test_what_transforms_draw_for_statistics_is_the_same_for_every_candidate() -> None:
    drawn: list[float] = []

    def jittered(image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        drawn.append(float(torch.rand(())))
        return image * drawn[-1], label

    model, space = network()
    state, data = dict(model.state_dict()), replace(images(100), transforms=jittered)
    supernet, subnet = Supernet(model, space, state), Subnet.at(space, WIDTHS)
    first, second = (Validation(data, 64).recalibrated(supernet, subnet).state for _ in range(2))
    assert len(drawn) == 128
    assert drawn[:64] == drawn[64:]
    assert len(set(drawn[:64])) == 64
    assert all(torch.equal(first[name], second[name]) for name in first)
    scorer = Scorer([Supernet(model, space, state)], data, 64)
    assert scorer(WIDTHS) == scorer(WIDTHS)
    assert len(drawn) == 192  # read once for both sides, and kept
