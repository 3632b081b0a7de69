"""The datasets that have names: digits, CIFAR-10 and folders of images, decoded once, as bytes.

Out: training and test images (N, C, H, W) as uint8 with class indices (N,) as int64, and the classes' names.
"""

import io
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from bcnet.config import DataConfig
from bcnet.errors import DataError, one_line
from bcnet.parts import stratified
from bcnet.progress import progress_bar

if TYPE_CHECKING:
    from PIL.Image import Image

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
    """CIFAR-10 as torchvision stores it, under .cache/cifar10; downloaded once when it is not there."""
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


def image_folder(path: Path, config: DataConfig, seed: int) -> Loaded:
    """PATH/train/<class>/* and PATH/test/<class>/*, or PATH/<class>/* of which a fifth is the test set."""
    from torchvision.datasets import ImageFolder

    def listing(folder: Path) -> tuple[list[_Sample], tuple[str, ...]]:
        try:
            found = ImageFolder(str(folder))
        except FileNotFoundError as cause:
            reason = str(cause).splitlines()[0].rstrip(".")
            raise DataError(
                f"no images in {folder}: {reason}; it needs one folder of images a class"
            ) from None
        return [_Sample(*sample) for sample in found.samples], tuple(found.classes)

    if not path.is_dir():
        raise DataError(f"imagefolder:{path}: there is no folder {path}")
    if not (path / "train").is_dir():
        samples, classes = listing(path)
        test, train = _divided(samples, max(1, round(len(samples) * 0.2)), seed=0)
        if not train:
            raise DataError(f"{path} holds one image; there is nothing to train on")
    elif not (path / "test").is_dir():
        raise DataError(f"{path} has train/ but no test/; bcnet needs both, or classes directly in {path}")
    else:
        train, classes = listing(path / "train")
        test, test_classes = listing(path / "test")
        if classes != test_classes:
            raise DataError(f"{path}/train and {path}/test hold different classes")
    side = config.image_size or min(_picture(train[0].path).size)
    # Chosen before they are decoded: a part of a large folder costs only that part.
    train = _divided(train, config.train_limit or len(train), seed)[0]
    test = _divided(test, config.test_limit or len(test), seed)[0]
    return _decode(train, side), _decode(test, side), classes


class _Sample(NamedTuple):
    path: str
    label: int


def _divided(samples: list[_Sample], count: int, seed: int) -> tuple[list[_Sample], list[_Sample]]:
    """Two parts, the first of at most `count` samples, with the classes in proportion."""
    if count >= len(samples):
        return samples, []
    labels = torch.tensor([sample.label for sample in samples])
    parts = stratified(labels, count, seed)
    first, rest = ([samples[i] for i in part.tolist()] for part in parts)
    return first, rest


def _decode(samples: list[_Sample], size: int) -> Pair:
    """Read images into one tensor: shorter side to `size`, centre cropped."""

    def read(sample: _Sample) -> Tensor:
        from torchvision.transforms import functional

        picture = _picture(sample.path)
        if picture.size != (size, size):
            picture = functional.center_crop(functional.resize(picture, size), [size, size])
        return functional.pil_to_tensor(picture)  # type: ignore[no-any-return]

    pixels: list[Tensor] = []
    with ThreadPoolExecutor() as pool, progress_bar("reading images", len(samples)) as advance:
        for decoded in pool.map(read, samples):
            pixels.append(decoded)
            advance("")
    return torch.stack(pixels), torch.tensor([sample.label for sample in samples])


def _picture(path: str) -> "Image":
    """An image file in RGB. Pillow raises SyntaxError, among others, for damaged files."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as cause:
        raise DataError(f"{path} cannot be read as an image ({one_line(cause)}); remove it") from None
