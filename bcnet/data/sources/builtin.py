"""The built-in datasets: digits and CIFAR-10, as bytes.

Out: training and test images (N, C, H, W) as uint8 with class indices (N,) as int64, and the classes' names.
"""

import io
from contextlib import redirect_stdout
from pathlib import Path

import torch
from torch import Tensor

from bcnet.data.splits import stratified
from bcnet.errors import DataError, one_line

Pair = tuple[Tensor, Tensor]  # images, labels
Loaded = tuple[Pair, Pair, tuple[str, ...]]  # training, test, names of the classes


def digits(size: int) -> Loaded:
    """scikit-learn's 1,797 handwritten digits (8x8 scans), enlarged; a fifth of them is the test set."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float()[:, None] * (255 / 16)
    images = torch.nn.functional.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    images, labels = images.round().to(torch.uint8), torch.from_numpy(bunch.target).long()
    test, train = stratified(labels, round(len(labels) * 0.2), seed=0)
    names = tuple(str(digit) for digit in range(10))
    return (images[train], labels[train]), (images[test], labels[test]), names


def cifar10() -> Loaded:
    """CIFAR-10 as torchvision stores it, in .cache/cifar10; downloaded if it is missing."""
    from torchvision.datasets import CIFAR10

    root = Path(".cache/cifar10")
    try:
        with redirect_stdout(io.StringIO()):
            parts = [CIFAR10(str(root), train=train, download=True) for train in (True, False)]
    except Exception as cause:
        raise DataError(
            f"CIFAR-10 is not under {root} and could not be fetched ({one_line(cause)}); "
            "use imagefolder:PATH for a copy of your own"
        ) from None
    train, test = (
        (torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in parts
    )
    return train, test, tuple(parts[0].classes)
