"""Batch-norm recalibration of a supernet's subnets, which is that of the networks extracted from it."""

import pytest
import torch
from torch import Tensor

from bcnet.errors import ModelError
from bcnet.models import NETWORKS
from bcnet.space.discover import discover_space
from bcnet.space.recalibration import Batch, recalibrated
from bcnet.space.subnet import Subnet
from bcnet.space.supernet import Supernet
from bcnet.space.widen import supernet_state
from tests.space.witnesses import anywhere, drawn, scattered


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    torch.manual_seed(0)
    model = scattered(NETWORKS["digits"]())
    space = discover_space(model, torch.zeros(1, 1, 16, 16), method="bcnetv2")
    return Supernet(model, space, supernet_state(model, space))


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(count, 1, 16, 16, generator=generator), None) for count in (4, 1, 6)]


def subnets(supernet: Supernet) -> list[Subnet]:
    space, widths = supernet.space, drawn(supernet.space)
    return [Subnet.at(space, widths), Subnet.at(space, widths, "right"), anywhere(space, widths)]


def test_a_recalibrated_subnet_is_the_recalibrated_network_that_is_extracted(
    supernet: Supernet, batches: list[Batch]
) -> None:
    before = {name: tensor.clone() for name, tensor in supernet.state.items()}
    for subnet in subnets(supernet):
        network = supernet.recalibrate(subnet, batches)
        plain = recalibrated(supernet.extract(subnet), batches)
        x = batches[0][0]
        with torch.no_grad():
            assert torch.equal(network.run(x), plain(x))
            assert torch.equal(network.extract()(x), plain(x))
        for name, tensor in plain.state_dict().items():
            assert torch.equal(network.state[name], tensor)
    assert all(torch.equal(supernet.state[name], before[name]) for name in before)


def test_statistics_are_the_mean_over_batches_of_more_than_one_image(
    supernet: Supernet, batches: list[Batch]
) -> None:
    subnet = subnets(supernet)[0]
    first, both = (supernet.recalibrate(subnet, given).state for given in (batches[:2], batches))
    last = supernet.recalibrate(subnet, batches[2:]).state
    name = next(name for name in both if name.endswith("running_mean"))
    torch.testing.assert_close(both[name], (first[name] + last[name]) / 2)
    assert int(both[name.replace("running_mean", "num_batches_tracked")]) == 2


def test_a_batch_that_the_network_does_not_take_is_one_line(supernet: Supernet) -> None:
    narrow: list[tuple[Tensor, None]] = [(torch.zeros(2, 3, 16, 16), None)]
    with pytest.raises(ModelError, match="the network fails on a batch of the data in eval mode"):
        supernet.recalibrate(subnets(supernet)[0], narrow)
