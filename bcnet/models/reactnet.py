"""ReActNet (Liu et al., ECCV 2020, arXiv 2003.03488): the network as published, and one with free widths.

Between the first convolution and the classifier all convolutions have weights and inputs of one bit; sums of
shortcuts, batch norms and activations are real. In the published network, shortcuts without parameters around
every convolution and reductions that duplicate their input tie all channels together into one group;
`reactnet-small` has a group for each stage and for the middle of each block.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from bcnet.errors import ModelError
from bcnet.models.binary import BinaryConv2d, RPReLU, RSign, only_binary, set_binary
from bcnet.plain import plain

# What has one bit; or the names of the layers that have one bit in activations and weights, all others none.
Binary = Literal["both", "activations", "none"] | Sequence[str]
# (output channels, stride) of the 13 blocks of ReActNet-A, after a first convolution of 32 channels.
REACTNET_A = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1)),
    *((512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1)),
)
FIRST = 32


def _pool(stride: int) -> nn.Module:
    """Means at as many positions as a padded convolution of this stride has, of odd sizes, too."""
    return nn.AvgPool2d(stride, ceil_mode=True)


class PublishedBlock(nn.Module):
    """A 3x3 and a 1x1 convolution, with a shortcut around each.

    Where channels double there are two 1x1 convolutions, whose outputs are joined: both have the same
    shortcut.
    """

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        copies = out_channels // channels
        self.sign1 = RSign(channels)
        self.conv1 = BinaryConv2d(channels, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.shortcut = _pool(2) if stride == 2 else nn.Identity()
        self.act1 = RPReLU(channels)
        self.sign2 = RSign(channels)
        self.convs2 = nn.ModuleList(BinaryConv2d(channels, channels, 1) for _ in range(copies))
        self.bns2 = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(copies))
        self.act2 = RPReLU(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv1(self.sign1(x))) + self.shortcut(x))
        bits = self.sign2(y)
        parts = [norm(conv(bits)) + y for conv, norm in zip(self.convs2, self.bns2, strict=True)]
        z: Tensor = self.act2(parts[0] if len(parts) == 1 else torch.cat(parts, 1))
        return z


class FreeBlock(nn.Module):
    """Two 3x3 convolutions with `middle` channels between them, and a shortcut around both.

    Where the resolution or the channels change, the shortcut is an average pool and a real 1x1 convolution,
    so that the channels before and after are two groups; there is none around a single convolution, so that
    the middle is one of its own.
    """

    def __init__(self, channels: int, middle: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.sign1 = RSign(channels)
        self.conv1 = BinaryConv2d(channels, middle, 3, stride)
        self.bn1 = nn.BatchNorm2d(middle)
        self.act1 = RPReLU(middle)
        self.sign2 = RSign(middle)
        self.conv2 = BinaryConv2d(middle, out_channels, 3)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out_channels:
            self.shortcut = nn.Sequential(
                _pool(stride) if stride > 1 else nn.Identity(),
                nn.Conv2d(channels, out_channels, 1, bias=False),
                nn.BatchNorm2d(out_channels),
            )
        self.act2 = RPReLU(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv1(self.sign1(x))))
        z: Tensor = self.act2(self.bn2(self.conv2(self.sign2(y))) + self.shortcut(x))
        return z


def reactnet_a(in_channels: int = 3, num_classes: int = 1000, binary: Binary = "both") -> nn.Module:
    """ReActNet-A, for images of 224 pixels: 13 blocks, from 64 to 1024 channels."""
    blocks, channels = [], FIRST
    for out_channels, stride in REACTNET_A:
        blocks.append(PublishedBlock(channels, out_channels, stride))
        channels = out_channels
    return _network(_first(in_channels, FIRST), blocks, channels, num_classes, binary)


def reactnet_small(
    in_channels: int = 3,
    num_classes: int = 10,
    widths: Sequence[int] = (64, 128, 256),
    depths: Sequence[int] = (2, 2, 2),
    expand: int = 1,
    binary: Binary = "both",
) -> nn.Module:
    """A binary network for images of 32 pixels: stages of `widths` channels at 16, 8 and 4 pixels.

    Each stage has so many blocks (`depths`), whose middles have `expand` times its channels. With `binary` as
    `none` it is its real counterpart, with the same tensors; with names of layers, only these are binary.
    """
    for name, own in (("widths", widths), ("depths", depths)):
        if not isinstance(own, list | tuple) or not own or not all(map(_counts, own)):
            given = plain(str(own))
            raise ModelError(f"reactnet-small: {name} are whole numbers above zero, e.g. [2, 2], not {given}")
    if not _counts(expand):
        raise ModelError(f"reactnet-small: expand is a whole number above zero, not {plain(str(expand))}")
    if len(widths) != len(depths):
        raise ModelError(
            f"reactnet-small: {len(widths)} widths and {len(depths)} depths; give as many of both"
        )
    blocks, channels = [], widths[0]
    for number, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for place in range(depth):
            stride = 2 if number and not place else 1
            blocks.append(FreeBlock(channels, expand * width, width, stride))
            channels = width
    return _network(_first(in_channels, widths[0]), blocks, channels, num_classes, binary)


def _counts(value: object) -> bool:
    """Whether a value is a number of channels or blocks."""
    return type(value) is int and value > 0


def _first(in_channels: int, channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(in_channels, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels))


def _network(
    first: nn.Module, blocks: Sequence[nn.Module], channels: int, num_classes: int, binary: Binary
) -> nn.Module:
    model = nn.Sequential(
        first,
        nn.Sequential(*blocks),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, num_classes),
    )
    if not isinstance(binary, str):
        only_binary(model, binary)
        return model
    kinds = ("both", "activations", "none")
    if binary not in kinds:
        raise ModelError(f"binary is '{binary}'; known: {', '.join(kinds)}, or a list of layers")
    set_binary(model, activations=binary != "none", weights=binary == "both")
    return model
