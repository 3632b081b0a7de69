"""Channels removed while training: the order by hand, the cut network, budgets, and what is refused."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from bcnet.allocation.limits import Limits
from bcnet.data.image_data import ImageData
from bcnet.data.splits import Split
from bcnet.errors import BudgetError
from bcnet.latency_tables.failed import FAILED_MS
from bcnet.methods.group_fisher import (
    FisherSettings,
    NormalisedBy,
    Pruned,
    SteadyRecipe,
    prune_by_group_fisher,
)
from bcnet.space.discover import discover_space
from bcnet.space.extract import with_state
from bcnet.space.subnet import Subnet
from bcnet.space.supernet import Supernet
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.training.loop import batches
from bcnet.training.recipe import Objective
from tests.methods.tiny import product_bound
from tests.training.test_gradient_importance import Functional, Tiny

RECIPE = SteadyRecipe(epochs=1, learning_rate=1e-9, batch_size=8)
IMAGES = 24  # three steps an epoch


@pytest.fixture(scope="module")
def data() -> ImageData:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGES, 3, 6, 6), generator=generator).to(torch.uint8)
    split = Split(pixels, torch.arange(IMAGES) % 3)
    return ImageData(split, split, split, ("a", "b", "c"), (0.5,) * 3, (0.3,) * 3, flip=True, shift=1)


@pytest.fixture
def tiny() -> Tiny:
    torch.manual_seed(0)
    model = Tiny()
    for norm in (model.norm, model.inner):
        norm.weight.data.uniform_(0.5, 1.5)
        norm.bias.data.uniform_(-0.5, 0.5)
    return model


@pytest.fixture(scope="module")
def space() -> WidthSpace:
    found = discover_space(
        Tiny(), torch.zeros(1, 3, 6, 6), bins=6, channel_multiple=1, method="unilateral", min_width=0.1
    )
    assert [group.choices for group in found.groups] == [(1, 2, 3, 4, 5, 6), (1, 2, 3, 4)]
    return found


def latency(stem: float, widen: float) -> Callable[[Widths], float]:
    """So many ms a channel."""
    return lambda widths: stem * widths[0] + widen * widths[1]


def information(model: Tiny, data: ImageData, images: int) -> list[Tensor]:
    """Of each channel of both groups: squares of each image's gradients by one gate at all its readers."""
    probe, into = copy.deepcopy(model).train(), ("into point", "into depthwise", "into widen")
    total = [torch.zeros(6), torch.zeros(4)]
    for inputs, targets in list(batches(data, RECIPE, 0))[: images // 8]:
        stem, widen = torch.ones(8, 6, requires_grad=True), torch.ones(8, 4, requires_grad=True)

        def gated(name: str, x: Tensor, stem: Tensor = stem, widen: Tensor = widen) -> Tensor:
            gate = stem if name in into else widen if name == "into head" else None
            return x if gate is None else x * gate[:, :, None, None]

        probe.gate = gated
        loss = nn.functional.cross_entropy(probe(inputs), targets, reduction="sum")
        for own, gradient in zip(total, torch.autograd.grad(loss, (stem, widen)), strict=True):
            own += gradient.square().sum(0)
    return total


def removed(pruned: Pruned) -> list[tuple[int, str, tuple[int, ...]]]:
    return [(own.step, own.group, own.channels) for own in pruned.removals]


@pytest.mark.parametrize(("stem", "widen"), [(1.0, 1.0), (1.0, 50.0), (50.0, 1.0)])
def test_the_order_of_removals_is_that_of_coupled_information_over_the_latency_saved(
    tiny: Tiny, space: WidthSpace, data: ImageData, stem: float, widen: float
) -> None:
    """One interval: all that goes is chosen by what the same three batches showed.

    What is saved beyond the limit counts for nothing.
    """
    found = information(tiny, data, IMAGES)
    ms, limit = (stem, widen), stem * 3 + widen * 2
    left, wanted = [6, 4], []
    orders = [own.argsort().tolist() for own in found]
    while (need := stem * left[0] + widen * left[1] - limit) > 0:
        rates = [
            float(own[order[len(order) - n]]) / min(each, need) if n > 1 else float("inf")
            for own, order, n, each in zip(found, orders, left, ms, strict=True)
        ]
        group = 0 if rates[0] < rates[1] else 1
        wanted.append((3, ("stem", "widen")[group], (orders[group][len(orders[group]) - left[group]],)))
        left[group] -= 1
    limits = Limits(space, latency(stem, widen), limit)
    pruned = prune_by_group_fisher(tiny, limits, data, RECIPE)
    assert removed(pruned) == wanted
    assert pruned.passes == 1


def pruned_by(
    tiny: Tiny, data: ImageData, limits: Limits, by: NormalisedBy = "latency", **recipe: float
) -> Pruned:
    own = replace(RECIPE, **{"epochs": 2, "learning_rate": 0.05, **recipe})
    return prune_by_group_fisher(tiny, limits, data, own, FisherSettings(1, by))


@pytest.mark.parametrize("by", ["latency", "macs", "memory"])
def test_the_cut_network_gives_the_masked_networks_outputs_within_the_budget(
    tiny: Tiny, space: WidthSpace, data: ImageData, by: NormalisedBy
) -> None:
    limits = Limits(space, latency(2.0, 3.0), 12.0)
    pruned = pruned_by(tiny, data, limits, by)
    assert latency(2.0, 3.0)(pruned.widths) <= 12.0
    assert [len(own) for own in pruned.kept] == list(pruned.widths)
    whole, small = tiny, with_state(tiny, space, pruned.state)
    x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(small(x), whole(x), rtol=1e-5, atol=1e-6)
    assert sum(p.numel() for p in small.parameters()) == space.params(pruned.widths)
    # The same channels of the network before differ: what is left was trained.
    torch.manual_seed(0)
    before = Supernet.of(Tiny(), space).narrow(Subnet.keeping(space, pruned.kept)).state
    assert not torch.equal(before["stem.weight"], pruned.state["stem.weight"])


def test_removals_are_spread_evenly_over_the_steps(tiny: Tiny, space: WidthSpace, data: ImageData) -> None:
    """Ten ms are to be four in six steps: what is left falls by one ms a step."""
    pruned = pruned_by(tiny, data, Limits(space, latency(1.0, 1.0), 4.0))
    assert [own.step for own in pruned.removals] == [1, 2, 3, 4, 5, 6]


def test_where_the_whole_network_does_not_run_at_all_removals_are_spread_all_the_same(
    tiny: Tiny, space: WidthSpace, data: ImageData
) -> None:
    def partly(widths: Widths) -> float:
        return FAILED_MS if widths[1] == 4 else float(sum(widths))

    pruned = pruned_by(tiny, data, Limits(space, partly, 4.0))
    assert sum(pruned.widths) == 4
    assert removed(pruned)[0][:2] == (1, "widen")
    # As from twice the limit: at most 7.3, 6.7, 6, 5.3, 4.7 and 4 ms.
    assert [own.step for own in pruned.removals] == [1, 1, 1, 2, 4, 5]


def test_latency_prefers_what_saves_much_where_multiply_accumulates_do_not(
    tiny: Tiny, space: WidthSpace, data: ImageData
) -> None:
    """Each of four removals is of the group whose channels take long, unless that is not looked at."""
    for slow, name in ((latency(1000.0, 1.0), "stem"), (latency(1.0, 1000.0), "widen")):
        limits = Limits(space, slow, slow(Widths((6, 4))) - 2000)
        assert {own.group for own in pruned_by(copy.deepcopy(tiny), data, limits).removals} == {name}
    by_macs = [
        pruned_by(copy.deepcopy(tiny), data, Limits(space, ms, ms(Widths((6, 4))) - 2000), "macs")
        for ms in (latency(1000.0, 1.0), latency(1000.0, 2.0))
    ]
    assert removed(by_macs[0]) == removed(by_macs[1])


def test_the_same_seed_gives_the_same_network_and_another_one_another(
    tiny: Tiny, space: WidthSpace, data: ImageData
) -> None:
    limits = Limits(space, latency(1.0, 1.0), 6.0)
    first, again, other = (pruned_by(copy.deepcopy(tiny), data, limits, seed=seed) for seed in (0, 0, 1))
    assert removed(first) == removed(again)
    assert all(torch.equal(tensor, again.state[name]) for name, tensor in first.state.items())
    assert any(
        tensor.shape != other.state[name].shape or not torch.equal(tensor, other.state[name])
        for name, tensor in first.state.items()
    )


def test_what_no_network_meets_is_refused_before_any_training(
    tiny: Tiny, space: WidthSpace, data: ImageData
) -> None:
    before = copy.deepcopy(tiny.state_dict())
    with pytest.raises(BudgetError, match=r"no network meets 1.000 ms: the fastest takes 2.000 ms"):
        pruned_by(tiny, data, Limits(space, latency(1.0, 1.0), 1.0))
    with pytest.raises(BudgetError, match=r"no network has at most 0.5 parameters: the narrowest has 1"):
        pruned_by(tiny, data, Limits(space, latency(1.0, 1.0), 9.0, [product_bound(2, [(0, 1)], 0.5)]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.state_dict().items())


def test_a_network_within_the_limits_is_neither_trained_nor_cut(
    tiny: Tiny, space: WidthSpace, data: ImageData
) -> None:
    before = copy.deepcopy(tiny.state_dict())
    pruned = pruned_by(tiny, data, Limits(space, latency(1.0, 1.0), 10.0))
    assert (pruned.widths, pruned.passes, pruned.removals) == ((6, 4), 0, ())
    assert all(torch.equal(tensor, before[name]) for name, tensor in pruned.state.items())


def test_stairs_and_bounds_are_met(tiny: Tiny, space: WidthSpace, data: ImageData) -> None:
    """Only every third channel of a group saves anything, and a narrow first group takes longer."""

    def stairs(widths: Widths) -> float:
        return -(-widths[0] // 3) + -(-widths[1] // 3) + (5.0 if widths[0] < 3 else 0.0)

    bound = product_bound(2, [(0, 1)], 7)
    pruned = pruned_by(tiny, data, Limits(space, stairs, 2.0, [bound]))
    assert stairs(pruned.widths) <= 2.0
    assert pruned.widths[0] == 3
    assert pruned.widths[0] * pruned.widths[1] <= 7


def test_what_positions_depend_on_loses_its_last_channels(
    tiny: Tiny, space: WidthSpace, data: ImageData
) -> None:
    groups = tuple(replace(group, ordered=True) for group in space.groups)
    pruned = pruned_by(tiny, data, Limits(replace(space, groups=groups), latency(1.0, 1.0), 5.0))
    assert [own.tolist() for own in pruned.kept] == [list(range(width)) for width in pruned.widths]


def test_channels_that_no_module_reads_go_in_the_order_of_their_taylor_importance(data: ImageData) -> None:
    torch.manual_seed(0)
    model = Functional()
    space = discover_space(
        model, torch.zeros(1, 3, 6, 6), bins=4, channel_multiple=1, method="unilateral", min_width=0.1
    )
    importance = torch.zeros(4)
    for inputs, targets in batches(data, RECIPE, 0):
        loss = nn.functional.cross_entropy(model(inputs), targets)
        own = list(model.first.parameters())
        weight, bias = (p.detach() * g for p, g in zip(own, torch.autograd.grad(loss, own), strict=True))
        importance += (weight.flatten(1).sum(1) + bias).square()
    limits = Limits(space, latency(1.0, 0.0), 1.0)
    pruned = prune_by_group_fisher(model, limits, data, RECIPE)
    assert [own.channels[0] for own in pruned.removals] == importance.argsort()[:3].tolist()


def test_another_loss_is_learned_from(tiny: Tiny, space: WidthSpace, data: ImageData) -> None:
    seen = []

    def loss(model: nn.Module, inputs: Tensor, targets: Tensor, _: object) -> Tensor:
        seen.append(len(inputs))
        return nn.functional.cross_entropy(model(inputs), targets)

    limits = Limits(space, latency(1.0, 1.0), 6.0)
    pruned = prune_by_group_fisher(tiny, limits, data, RECIPE, objective=Objective(loss))
    assert seen == [8, 8, 8]
    assert sum(pruned.widths) == 6
