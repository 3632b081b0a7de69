"""Paths of a supernet that is wider than its network."""

import pytest
import torch
from witnesses import drawn, scattered

from bcnet.models import NETWORKS
from bcnet.supernet.discover import discover_space
from bcnet.supernet.methods import Side
from bcnet.supernet.paths import cut, forward_path
from bcnet.supernet.widen import supernet_state


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
