"""The embedded default: a small residual network for 32x32 images."""

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
    """Stem and three residual blocks: 56, 112 and 224 channels at 16, 8 and 4 pixels."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(in_channels, 56, 3, 2, 1, bias=False), nn.BatchNorm2d(56), nn.ReLU()),
        ResidualBlock(56, 56, 56, 1),
        ResidualBlock(56, 112, 112, 2),
        ResidualBlock(112, 224, 224, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(224, num_classes),
    )
