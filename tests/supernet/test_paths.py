"""The functional path, the physical cut and the masked full network are one network."""

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from bcnet.models import NETWORKS
from bcnet.supernet.discover import discover_space
from bcnet.supernet.methods import Side
from bcnet.supernet.paths import cut, forward_path, path_of, ranges, supernet_state
from bcnet.supernet.space import Widths, WidthSpace

TORCHVISION = ("mobilenet_v2", "resnet18", "resnet50", "vgg16_bn", "efficientnet_b0")


def network(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = NETWORKS[name]() if name in NETWORKS else torchvision.models.get_model(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.7, 1.3)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            nn.init.uniform_(module.weight, 0.7, 1.3)
    x = torch.randn(
        2, 1 if name == "digits" else 3, 32 if name in NETWORKS else 64, 32 if name in NETWORKS else 64
    )
    return model.eval(), x


def masked(model: nn.Module, space: WidthSpace, widths: Widths, side: Side, x: Tensor) -> Tensor:
    """The full network with the outgoing weights of all channels outside the path set to zero."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = path_of(space, widths, side)
    for name, axes in space.dimensions.items():
        if 1 not in axes:
            continue
        keep = torch.zeros(state[name].shape[1], dtype=torch.bool)
        for low, high in ranges(space, axes[1], path):
            keep[low:high] = True
        state[name][:, ~keep] = 0
    return torch.func.functional_call(model, state, (x,))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", [*NETWORKS, *TORCHVISION])
def test_path_cut_and_masked_network_agree(name: str, side: Side) -> None:
    model, x = network(name)
    space = discover_space(model, x)
    rng = np.random.default_rng(len(name))
    for widths in (space.smallest(), space.random(rng), space.random(rng)):
        with torch.no_grad():
            path = forward_path(model, space, widths, x, side)
            small = cut(model, space, widths, side)
            assert torch.equal(path, small(x))
            reference = masked(model, space, widths, side, x)
        assert float((path - reference).abs().max() / reference.abs().max()) < 1e-5
        assert space.params(widths) == sum(parameter.numel() for parameter in small.parameters())


@pytest.mark.parametrize("side", ["left", "right"])
def test_paths_of_the_wider_bcnetv2_supernet_equal_their_cuts(side: Side) -> None:
    model, x = network("digits")
    space = discover_space(model, x, method="bcnetv2")
    state = supernet_state(model, space)
    widths = space.random(np.random.default_rng(0))
    with torch.no_grad():
        path = forward_path(model, space, widths, x, side, state)
        assert torch.equal(path, cut(model, space, widths, side, state)(x))
    assert state["0.0.weight"].shape[0] == 80 + space.groups[0].choices[0]
