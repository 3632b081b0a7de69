"""Subnets of a supernet that is wider than its network, and of channels that lie apart."""

import gc
import weakref

import pytest
import torch
from torch import nn

from bcnet.errors import SpaceError
from bcnet.models import NETWORKS
from bcnet.space.channel_rules import Side
from bcnet.space.discover import discover_space
from bcnet.space.extract import tensors_of
from bcnet.space.subnet import Subnet, neighbours, subnet_state
from bcnet.space.supernet import cut, forward_path
from bcnet.space.widen import supernet_state
from bcnet.space.width_space import WidthSpace
from tests.space.witnesses import anywhere, drawn, scattered


@pytest.mark.parametrize("side", ["left", "right"])
def test_paths_of_the_wider_bcnetv2_supernet_equal_their_cuts(side: Side) -> None:
    model, x = scattered(NETWORKS["digits"]()), torch.randn(2, 1, 32, 32)
    space = discover_space(model, x, method="bcnetv2")
    state = supernet_state(model, space)
    widths = drawn(space)
    with torch.no_grad():
        path = forward_path(model, space, widths, x, side, state)
        assert torch.equal(path, cut(model, space, widths, side, state)(x))
        apart = anywhere(space, widths)
        path = forward_path(model, space, apart, x, state=state)
        assert torch.equal(path, cut(model, space, apart, state=state)(x))
    assert state["0.0.weight"].shape[0] == 80 + space.groups[0].choices[0]


@pytest.fixture
def two_layers() -> tuple[nn.Module, WidthSpace]:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    return model, discover_space(model, torch.zeros(1, 1, 1, 1), bins=2, channel_multiple=1)


def test_neighbouring_channels_are_a_view_and_others_are_those_of_their_indices(
    two_layers: tuple[nn.Module, WidthSpace],
) -> None:
    model, space = two_layers
    tensors = tensors_of(model)
    together, apart = (Subnet.keeping(space, [kept]) for kept in ([2, 1], torch.tensor([3, 0, 1])))
    assert together == Subnet((range(1, 3),)) == Subnet.keeping(space, [torch.tensor([1, 2])])
    assert apart == Subnet(((0, 1, 3),))
    assert (together.widths, apart.widths) == ((2,), (3,))
    assert [*neighbours(apart.channels[0])] == [(0, 2), (3, 4)]
    taken = subnet_state(tensors, space, together)
    assert taken["0.weight"].data_ptr() == tensors["0.weight"][1:].data_ptr()
    taken = subnet_state(tensors, space, apart)
    assert torch.equal(taken["0.weight"], tensors["0.weight"][[0, 1, 3]])
    assert torch.equal(taken["2.weight"], tensors["2.weight"][:, [0, 1, 3]])
    assert taken["2.bias"] is tensors["2.bias"]


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ([], "channels of 0 groups given, the space has 1"),
        ([[]], "the channels to keep of group '0' must be distinct indices"),
        ([[1, 1]], "must be distinct indices"),
        ([[0, 4]], r"are not all within 0\.\.3"),
        ([[-1]], r"are not all within 0\.\.3"),
    ],
)
def test_channels_that_a_group_does_not_have_are_refused(
    two_layers: tuple[nn.Module, WidthSpace], channels: list[list[int]], message: str
) -> None:
    with pytest.raises(SpaceError, match=message):
        Subnet.keeping(two_layers[1], channels)


def test_networks_that_are_no_longer_used_are_freed() -> None:
    """A run goes through several networks, each with all of its weights."""
    models = [nn.Sequential(nn.Linear(4, 4)) for _ in range(5)]
    for model in models:
        tensors_of(model)
        assert tensors_of(model)["0.weight"] is model[0].weight
    alive = [weakref.ref(model) for model in models]
    del model, models
    gc.collect()
    assert sum(reference() is not None for reference in alive) <= 2
