"""Layers of one bit: their values, the gradients of the published layers, and what is counted."""

import pytest
import torch
from torch import Tensor, nn

from bcnet.errors import ModelError
from bcnet.models.binary import (
    BinaryConv2d,
    Operations,
    RPReLU,
    RSign,
    layers_of_one_bit,
    only_binary,
    set_binary,
)
from bcnet.models.reactnet import PublishedBlock


def published(weight: Tensor, x: Tensor, stride: int) -> Tensor:
    """The binary convolution of ReActNet's authors, with the mean size of the weights as a factor."""
    scale = weight.abs().mean((1, 2, 3), keepdim=True).detach()
    signs, clipped = scale * torch.sign(weight), torch.clamp(weight, -1.0, 1.0)
    return nn.functional.conv2d(x, signs.detach() - clipped.detach() + clipped, stride=stride, padding=1)


def test_signs_are_taken_above_the_threshold_of_each_channel() -> None:
    layer = RSign(2)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([0.5, -0.5]).reshape(1, 2, 1, 1))
    x = torch.tensor([[-0.6, -0.5, -0.4], [0.4, 0.5, 0.6]]).reshape(1, 2, 1, 3)
    assert layer(x).flatten().tolist() == [-1, -1, 1, -1, -1, 1]


def test_the_derivative_of_a_sign_is_that_of_a_piecewise_quadratic_function() -> None:
    x = torch.tensor([-2.0, -0.75, 0.0, 0.25, 2.0]).reshape(1, 1, 1, 5).requires_grad_()
    RSign(1)(x).sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [0.0, 0.5, 2.0, 1.5, 0.0]


@pytest.mark.parametrize("stride", [1, 2])
def test_values_and_gradients_are_the_published_ones_behind_a_batch_norm(stride: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 32, 6, 6, generator=generator, dtype=torch.float64).sign()
    layer = BinaryConv2d(32, 8, 3, stride).double()
    with torch.no_grad():
        layer.weight.mul_(30)  # some are above 1, where no gradient passes
    weight = layer.weight.detach().clone().requires_grad_()
    factors = torch.randn(layer(x).shape, generator=generator, dtype=torch.float64)
    results = []
    for maps in (layer(x), published(weight, x, stride)):
        norm = nn.BatchNorm2d(8, eps=1e-12, dtype=torch.float64)
        results.append(norm(maps))
        (results[-1] * factors).sum().backward()
    torch.testing.assert_close(*results)
    assert float(layer.weight.detach().abs().max()) > 1
    torch.testing.assert_close(layer.weight.grad, weight.grad)


def test_sums_of_signs_are_integers_of_the_right_parity() -> None:
    x = torch.randn(1, 32, 4, 4).sign()
    sums = BinaryConv2d(32, 8, 1)(x)
    assert set((sums.detach().flatten() % 2).tolist()) == {0.0}
    assert float(sums.detach().abs().max()) <= 32


def test_an_activation_is_shifted_before_and_behind_its_slope() -> None:
    layer = RPReLU(1)
    with torch.no_grad():
        layer[0].bias.fill_(-1.0)
        layer[2].bias.fill_(5.0)
    assert layer(torch.tensor([0.0, 3.0]).reshape(2, 1, 1, 1)).flatten().tolist() == [4.75, 7.0]


def test_a_file_holds_the_signs_and_refuses_weights_without_one() -> None:
    layer = BinaryConv2d(32, 32, 3)
    x = torch.randn(1, 32, 4, 4).sign()
    assert torch.equal(layer.deployed()(x), layer(x))
    assert set(layer.deployed().weight.flatten().tolist()) == {-1.0, 1.0}
    with torch.no_grad():
        layer.weight[0, 0] = 0
    with pytest.raises(
        ModelError, match=r"9 weights of a binary convolution of shape \(32, 32, 3, 3\) are zero"
    ):
        layer.deployed()
    with torch.no_grad():
        layer.weight[0, 0] = 1
        layer.weight[0, 0, 0, 0] = 0
    with pytest.raises(ModelError, match=r"^1 weight of a binary convolution of shape .* is zero, which"):
        layer.deployed()


def test_no_initial_weight_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """A uniform number is exactly zero once in some millions, as many weights as a network has."""
    monkeypatch.setattr(nn.Conv2d, "reset_parameters", lambda layer: nn.init.zeros_(layer.weight))
    layer = BinaryConv2d(32, 32, 1)
    assert bool((layer.deployed().weight == 1).all())


def test_binary_products_and_parameters_are_counted_apart() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1, bias=False),
        RSign(32),
        BinaryConv2d(32, 64, 3),
        nn.Flatten(),
        nn.Linear(1024, 2),
    )
    found = Operations.of(model, torch.zeros(2, 3, 8, 8))
    assert (found.binary_macs, found.real_macs) == (16 * 64 * 32 * 9, 16 * 32 * 27 + 2048)
    assert (found.binary_params, found.real_params) == (64 * 32 * 9, 32 * 27 + 32 + 2048 + 2)
    assert found.packed_bytes == 64 * 32 * 9 // 8 + 4 * found.real_params
    set_binary(model, activations=True, weights=False)
    assert Operations.of(model, torch.zeros(1, 3, 8, 8)).binary_macs == 0


def test_a_sign_and_the_convolutions_that_read_it_are_one_layer() -> None:
    block = PublishedBlock(32, 64, 1)
    assert layers_of_one_bit(block) == {
        "conv1": (block.sign1, block.conv1),
        "convs2.0": (block.sign2, block.convs2[0], block.convs2[1]),
    }


def test_a_layer_that_was_made_real_stays_real() -> None:
    block = PublishedBlock(32, 64, 1)
    only_binary(block, ["convs2.0"])
    for weights in (True, False):
        set_binary(block, activations=True, weights=weights)
        assert (block.sign1.binary, block.conv1.binary) == (False, False)
        assert (block.sign2.binary, *(conv.binary for conv in block.convs2)) == (True, weights, weights)
    only_binary(block, ["conv1"])
    assert (block.sign1.binary, block.conv1.binary, block.sign2.binary) == (True, True, False)


def test_an_unknown_layer_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(
        ModelError, match=r"^there is no layer 'conv9' that can be binary; known: conv1, convs2\.0$"
    ):
        only_binary(PublishedBlock(32, 64, 1), ["conv1", "conv9"])
