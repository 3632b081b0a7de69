"""The FLOPs utilisation ratio: the rise of the loss with channels of one group dropped at random."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bcnet.allocation.utilisation import ChannelDropout, utilisation
from bcnet.space.discover import discover_space
from bcnet.space.extract import tensors_of
from bcnet.space.subnet import Subnet
from bcnet.space.supernet import NarrowNetwork, Supernet
from bcnet.space.width_space import Widths, WidthSpace

WIDTHS = Widths((3, 4))  # of 4 and 4


class Residual(nn.Module):
    """A stem whose channels two layers read, of which one adds to them; a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 1)
        self.inner = nn.Conv2d(4, 4, 1)
        self.outer = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.outer(self.inner(x).relu())).mean((2, 3)))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Residual().eval()


@pytest.fixture
def space(model: nn.Module) -> WidthSpace:
    found = discover_space(model, torch.zeros(1, 1, 2, 2), bins=4, channel_multiple=1, method="unilateral")
    assert [set(group.layers) for group in found.groups] == [{"stem", "outer"}, {"inner"}]
    return found


def test_the_rise_is_the_mean_over_passes_less_the_loss_with_nothing_dropped() -> None:
    losses = {(0, 0): 1.4, (0, 1): 1.6, (1, 0): 1.0, (1, 1): 1.2}

    def loss_of(group: int | None, rate: float, number: int) -> float:
        assert rate == (0.0 if group is None else 0.1 * (group + 1))
        return 1.0 if group is None else losses[group, number]

    assert utilisation(np.array([0.1, 0.2]), loss_of, passes=2).tolist() == pytest.approx([0.5, 0.1])


def test_the_same_channels_are_dropped_in_all_layers_that_read_a_group(
    model: nn.Module, space: WidthSpace
) -> None:
    """Kept ones are scaled; each image has its own."""
    network = Supernet.of(model, space).narrow(Subnet.at(space, WIDTHS))
    state = network.state
    x = torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    kept = torch.rand(5, 3, generator=torch.Generator().manual_seed(7)) >= 0.4
    assert 0 < int(kept.sum()) < kept.numel()
    factors = kept[:, :, None, None] / 0.6
    with torch.no_grad():
        stem = nn.functional.conv2d(x, state["stem.weight"], state["stem.bias"])
        inner = nn.functional.conv2d(stem * factors, state["inner.weight"], state["inner.bias"]).relu()
        outer = nn.functional.conv2d(inner, state["outer.weight"], state["outer.bias"])
        features = (stem + outer).mean((2, 3)) * factors[:, :, 0, 0]
        expected = nn.functional.linear(features, state["head.weight"], state["head.bias"])
        dropout = ChannelDropout(model, space, WIDTHS)
        plain = network.run(x)
        with dropout.dropping(0, 0.4, seed=7):
            torch.testing.assert_close(network.run(x), expected)
            assert not torch.equal(network.run(x), expected)  # the next batch: others
        assert torch.equal(network.run(x), plain)


def test_at_a_rate_of_nothing_nothing_changes(model: nn.Module, space: WidthSpace) -> None:
    x = torch.rand(3, 1, 2, 2)
    with torch.no_grad(), ChannelDropout(model, space, space.largest()).dropping(1, 0.0, seed=0):
        assert torch.equal(NarrowNetwork(model, space, tensors_of(model)).run(x), model(x))
