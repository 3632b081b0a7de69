"""Channel-Bench-Macro's two networks (BCNetV2, arXiv 2203.13714, section on the benchmark), any widths.

Both take 32x32 images; `widths` are the seven searched channel counts.
"""

from collections.abc import Sequence

from torch import Tensor, nn

MOBILENET_WIDTHS = (128, 768, 768, 768, 256, 1536, 1024)
RESNET_WIDTHS = (256, 256, 256, 512, 512, 512, 512)


class InvertedResidual(nn.Module):
    """1x1, depthwise 3x3, 1x1; an identity shortcut where `shortcut` (MobileNetV2, CVPR 2018)."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int, stride: int, shortcut: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.shortcut else y


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; an identity shortcut where `shortcut` (ResNet, CVPR 2016)."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int, stride: int, shortcut: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 3, stride, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, out_channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.relu = nn.ReLU()
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        z: Tensor = self.relu(x + y if self.shortcut else y)
        return z


def mobilenet(
    in_channels: int = 3, num_classes: int = 10, widths: Sequence[int] = MOBILENET_WIDTHS
) -> nn.Module:
    """The MobileNet space's network at `widths` (c0 to c6)."""
    c0, c1, c2, c3, c4, c5, c6 = widths
    return nn.Sequential(
        nn.Conv2d(in_channels, c0, 3, 2, 1, bias=False),
        nn.BatchNorm2d(c0),
        nn.ReLU(),
        InvertedResidual(c0, c1, c0, 1, shortcut=True),
        InvertedResidual(c0, c2, c0, 1, shortcut=True),
        InvertedResidual(c0, c3, c4, 2, shortcut=False),
        InvertedResidual(c4, c5, c4, 1, shortcut=True),
        nn.Conv2d(c4, c6, 1, bias=False),
        nn.BatchNorm2d(c6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(c6, num_classes),
    )


def resnet(in_channels: int = 3, num_classes: int = 10, widths: Sequence[int] = RESNET_WIDTHS) -> nn.Module:
    """The ResNet space's network at `widths` (c0 to c6)."""
    c0, c1, c2, c3, c4, c5, c6 = widths
    return nn.Sequential(
        nn.Conv2d(in_channels, c0, 3, 2, 1, bias=False),
        nn.BatchNorm2d(c0),
        nn.ReLU(),
        BasicBlock(c0, c1, c0, 1, shortcut=True),
        BasicBlock(c0, c2, c0, 1, shortcut=True),
        BasicBlock(c0, c3, c4, 2, shortcut=False),
        BasicBlock(c4, c5, c4, 1, shortcut=True),
        BasicBlock(c4, c6, c4, 1, shortcut=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(c4, num_classes),
    )
