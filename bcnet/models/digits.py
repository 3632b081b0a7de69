"""Small residual networks for 32x32 images: `digits`, and `digit-scenes` with trained weights."""

from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected where the shape changes (He et al., CVPR 2016)."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, hidden, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        z: Tensor = self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))
        return z


def digits(in_channels: int = 1, num_classes: int = 10) -> nn.Module:
    """Stem and three residual blocks: 80, 160 and 320 channels at 16, 8 and 4 pixels."""
    return _residual(in_channels, (80, 160, 320), num_classes)


def digit_scenes(in_channels: int = 1, num_classes: int = 10) -> nn.Module:
    """Stem and three residual blocks: 32, 64 and 96 channels at 16, 8 and 4 pixels."""
    return _residual(in_channels, (32, 64, 96), num_classes)


def _residual(in_channels: int, widths: tuple[int, int, int], num_classes: int) -> nn.Module:
    first, second, third = widths
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(in_channels, first, 3, 2, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU()),
        ResidualBlock(first, first, first, 1),
        ResidualBlock(first, second, second, 2),
        ResidualBlock(second, third, third, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(third, num_classes),
    )
