"""Paths of a supernet that is wider than its network."""

import gc
import weakref

import pytest
import torch
from torch import nn

from bcnet.models import NETWORKS
from bcnet.space.channel_rules import Side
from bcnet.space.discover import discover_space
from bcnet.space.subnet import cut, forward_path, tensors_of
from bcnet.space.widen import supernet_state
from tests.space.witnesses import drawn, scattered


@pytest.mark.parametrize("side", ["left", "right"])
def test_paths_of_the_wider_bcnetv2_supernet_equal_their_cuts(side: Side) -> None:
    model, x = scattered(NETWORKS["digits"]()), torch.randn(2, 1, 32, 32)
    space = discover_space(model, x, method="bcnetv2")
    state = supernet_state(model, space)
    widths = drawn(space)
    with torch.no_grad():
        path = forward_path(model, space, widths, x, side, state)
        assert torch.equal(path, cut(model, space, widths, side, state)(x))
    assert state["0.0.weight"].shape[0] == 80 + space.groups[0].choices[0]


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
