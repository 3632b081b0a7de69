"""Search the widths of torchvision's LR-ASPP for a small segmentation set that is drawn here.

`python examples/segmentation.py` does, from any folder, what `bcnet run --config segmentation.toml` does in
this one: training, latency table, search, slice, export, and a comparison by mean intersection over union.
Nothing is downloaded. Two minutes on two cores.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

CLASSES = ("background", "square", "disc", "stripes")
SIDE = 64  # pixels


def network() -> nn.Module:
    """A network that returns {"out": logits (N, classes, H, W)}; nothing is downloaded."""
    model = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=len(CLASSES))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # torchvision's 0.01 wants far more steps than this example takes
    return model


def data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[str, ...]]:
    """Training and test images (N, 3, H, W) with masks (N, H, W), both uint8, and the classes' names."""
    return draw(240, seed=0), draw(100, seed=1), CLASSES


def draw(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of noise with one shape of each kind in about its colour, and the class of each pixel."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 90, (count, 3, SIDE, SIDE), generator=generator)
    masks = torch.zeros(count, SIDE, SIDE, dtype=torch.uint8)
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    for number in range(count):
        for kind in range(1, len(CLASSES)):
            radius = int(torch.randint(9, 15, (), generator=generator))
            row, column = torch.randint(radius, SIDE - radius, (2,), generator=generator).tolist()
            colour = torch.randint(60, 140, (3, 1), generator=generator)
            colour[kind - 1] += 80
            y, x = rows - row, columns - column
            square = (y.abs() <= radius) & (x.abs() <= radius)
            shape = {1: square, 2: y**2 + x**2 <= radius**2, 3: square & (y % 6 < 3)}[kind]
            images[number, :, shape] = colour
            masks[number, square if kind == 3 else shape] = kind
    return images.to(torch.uint8), masks


if __name__ == "__main__":
    from bcnet.cli import main

    sys.exit(main(["run", "--config", str(Path(__file__).with_suffix(".toml")), *sys.argv[1:]]))
