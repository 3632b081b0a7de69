"""ReActNet-A against the formula of its paper (arXiv 2003.03488), and the whole network in OpenVINO."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d

from bcnet.models import NETWORKS
from bcnet.models.reactnet import PublishedBlock
from bcnet.onnx_export.onnx_supernet import to_onnx
from bcnet.runtimes import runtime_here
from bcnet.runtimes.onnx_binary import binary_convolutions
from bcnet.space.discover import discover_space
from bcnet.space.supernet import cut
from bcnet.space.width_space import Widths


def with_own_values(model: nn.Module) -> nn.Module:
    """Thresholds, shifts, slopes and batch norms that differ between channels."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "conv" not in name and not name.startswith(("0", "4")):  # the real layers
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


def sign(x: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
    return torch.sign(x + tensors[f"{name}.bias"])


def batch_norm(x: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
    weight, bias = (tensors[f"{name}.{part}"].reshape(1, -1, 1, 1) for part in ("weight", "bias"))
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    return (x - mean) / variance.sqrt() * weight + bias


def scaled_signs(weight: Tensor) -> Tensor:
    """The paper's binary weights: signs, times the mean size of an output channel's weights."""
    return weight.abs().mean((1, 2, 3), keepdim=True) * weight.sign()


def rprelu(x: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
    x = x + tensors[f"{name}.0.bias"]
    slope = tensors[f"{name}.1.weight"].reshape(1, -1, 1, 1)
    return torch.where(x > 0, x, slope * x) + tensors[f"{name}.2.bias"]


def published_block(x: Tensor, tensors: dict[str, Tensor], out_channels: int, stride: int) -> Tensor:
    """The forward pass of a block in training, as in figure 5 of the paper."""
    y = conv2d(sign(x, tensors, "sign1"), scaled_signs(tensors["conv1.weight"]), None, stride, 1)
    y = batch_norm(y, tensors, "bn1") + (avg_pool2d(x, 2) if stride == 2 else x)
    y = rprelu(y, tensors, "act1")
    parts = []
    for copy in range(out_channels // x.shape[1]):
        z = conv2d(sign(y, tensors, "sign2"), scaled_signs(tensors[f"convs2.{copy}.weight"]))
        parts.append(batch_norm(z, tensors, f"bns2.{copy}") + y)
    return rprelu(torch.cat(parts, 1), tensors, "act2")


@pytest.mark.parametrize(("out_channels", "stride"), [(32, 1), (64, 1), (32, 2), (64, 2)])
def test_a_block_computes_the_papers_formula(out_channels: int, stride: int) -> None:
    """The mean size of weights, which the layers leave out, is divided out again by the batch norm.

    All but its epsilon, which therefore is next to nothing here.
    """
    torch.manual_seed(0)
    block = with_own_values(PublishedBlock(32, out_channels, stride)).double().train()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-12
    x = torch.randn(4, 32, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        found = block(x)
    wanted = published_block(x, block.state_dict(), out_channels, stride)
    assert found.shape == wanted.shape == (4, out_channels, 8 // stride, 8 // stride)
    assert (found - wanted).abs().max() < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("width", [32, 16])
def test_the_published_network_and_a_narrow_one_give_pytorchs_answers_in_openvino(width: int) -> None:
    """Where channels double, two convolutions read the same signs; all run with single bits."""
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install openvino")
    torch.manual_seed(0)
    model = with_own_values(NETWORKS["reactnet-a"](num_classes=10))
    images = torch.randn(16, 3, 32, 32)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0  # statistics of these images
        model.train()(images)
    space = discover_space(model.eval(), images[:1])
    assert [(group.channels, group.choices) for group in space.groups] == [(32, (8, 16, 24, 32))]
    network = cut(model, space, Widths((width,))).eval()
    proto = to_onnx(network, images)
    assert len(binary_convolutions(proto.graph)) == 2 * 13 + 5
    (found,) = runtime_here("openvino").predictor(proto.SerializeToString())(images.numpy())
    with torch.no_grad():
        wanted = network(images).numpy()
    # A sum within rounding of a threshold may have either sign, which in an untrained network changes all
    # that follows in that image.
    assert np.median(np.abs(found - wanted).max(1)) < 1e-5 * np.abs(wanted).max()
    assert (found.argmax(1) == wanted.argmax(1)).mean() > 0.9
