"""Datasets by name, decoded once and kept in memory as bytes.

In: a `DataConfig`. Out: `ImageData`: training, validation and test images. The validation part is split from
the training images (it scores candidates); the test images are never used for a choice.
"""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from bcnet.config import DataConfig
from bcnet.errors import DataError, one_line
from bcnet.imports import import_function
from bcnet.progress import progress_bar

if TYPE_CHECKING:
    from PIL.Image import Image

NAMES = ("digits", "cifar10", "imagefolder:PATH", "package.module:function")


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) as uint8 and their class indices (N,) as int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> "Split":
        """The images at `index`."""
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True)
class ImageData:
    """A dataset for classification; `mean` and `std` are per channel, of pixels scaled to 0..1."""

    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> float32, channels last in memory, zero mean and unit deviation."""
        shape = (1, -1, 1, 1)
        mean = torch.tensor(self.mean, device=images.device).view(shape) * 255
        std = torch.tensor(self.std, device=images.device).view(shape) * 255
        return ((images.float() - mean) / std).contiguous(memory_format=torch.channels_last)

    def batches(self, split: Split, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised batches of a split, in order."""
        for start in range(0, len(split), size):
            part = split.take(torch.arange(start, min(start + size, len(split))))
            yield self.normalise(part.images), part.labels


def load_data(config: DataConfig, seed: int) -> ImageData:
    """The dataset that `config` names, split and limited; the same for the same seed.

    Raises DataError: unknown name, no images, unreadable files.
    """
    name, _, argument = config.name.partition(":")
    if config.name == "digits":
        train, test, classes = _digits(config.image_size or 32)
    elif config.name == "cifar10":
        train, test, classes = _cifar10()
    elif name == "imagefolder":
        train, test, classes = _image_folder(Path(argument), config, seed)
    elif argument:
        function = import_function(config.name, DataError)
        try:
            result = function()
        except (Exception, SystemExit) as cause:
            raise DataError(f"'{config.name}' failed: {one_line(cause)}") from cause
        try:
            train, test, classes = result
            train, test, classes = Split(*train), Split(*test), tuple(classes)
        except (TypeError, ValueError):
            raise DataError(
                f"'{config.name}' must return (train, test, class names), train and test as (images, labels)"
            ) from None
        _check_split(config.name, train, len(classes))
        _check_split(config.name, test, len(classes))
        if train.images.shape[1:] != test.images.shape[1:]:
            raise DataError(f"'{config.name}' must return training and test images of the same shape")
    else:
        raise DataError(f"unknown dataset '{config.name}'; there is: {', '.join(NAMES)}")
    test = _resized(_limit(test, config.test_limit, seed), config.image_size)
    train = _resized(_limit(train, config.train_limit, seed), config.image_size)
    val_count = round(len(train) * config.val_fraction)
    if not 0 < val_count < len(train):
        raise DataError(f"{len(train)} training images cannot be split into training and validation images")
    val, rest = _stratified(train, val_count, seed + 1)
    return ImageData(rest, val, test, classes, *_statistics(rest.images[:10_000]))


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel, of pixels scaled to 0..1."""
    total = squares = torch.zeros(images.shape[1], dtype=torch.float64)
    for part in torch.split(images, 256):
        pixels = part.double().div(255)
        total = total + pixels.sum((0, 2, 3))
        squares = squares + pixels.square().sum((0, 2, 3))
    count = images.numel() / images.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt().clamp_min(1e-3)
    return tuple(mean.tolist()), tuple(std.tolist())


def _resized(split: Split, size: int | None) -> Split:
    """Images scaled to `size` by `size` pixels, unless they are so already."""
    if size is None or split.images.shape[2:] == (size, size):
        return split
    parts = [
        torch.nn.functional.interpolate(part.float(), size=(size, size), mode="bilinear", antialias=True)
        for part in torch.split(split.images, 256)
    ]
    return Split(torch.cat([part.round().to(torch.uint8) for part in parts]), split.labels)


def _check_split(name: str, split: Split, classes: int) -> None:
    images, labels = split.images, split.labels
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
        raise DataError(f"'{name}' must return images as a uint8 tensor (N, C, H, W), not empty")
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise DataError(f"'{name}' must return labels as an int64 tensor (N,)")
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"'{name}' must return labels from 0 to {classes - 1}, one a class name, "
            f"not {labels.min()} to {labels.max()}"
        )


def _stratified(split: Split, count: int, seed: int) -> tuple[Split, Split]:
    """Two parts, the first of `count` images, with the classes in proportion."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(split), generator=generator)
    labels = split.labels[shuffled]
    # The position of each image within its class, as a part of the class: taking the lowest of these takes
    # the same share of every class.
    rank = torch.empty(len(split), dtype=torch.float64)
    for label in range(int(labels.max()) + 1):
        where = (labels == label).nonzero().flatten()
        rank[where] = (torch.arange(len(where), dtype=torch.float64) + 0.5) / len(where)
    order = shuffled[rank.argsort(stable=True)]
    return split.take(order[:count]), split.take(order[count:])


def _limit(split: Split, limit: int | None, seed: int) -> Split:
    if limit is None or limit >= len(split):
        return split
    return _stratified(split, limit, seed)[0]


def _digits(size: int) -> tuple[Split, Split, tuple[str, ...]]:
    """scikit-learn's 1,797 handwritten digits (8x8 scans), enlarged; a fifth of them is the test set."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float()[:, None] * (255 / 16)
    images = torch.nn.functional.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    split = Split(images.round().to(torch.uint8), torch.from_numpy(bunch.target).long())
    test, train = _stratified(split, round(len(split) * 0.2), seed=0)
    return train, test, tuple(str(digit) for digit in range(10))


def _cifar10() -> tuple[Split, Split, tuple[str, ...]]:
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
        Split(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in parts
    )
    return train, test, tuple(parts[0].classes)


def _image_folder(path: Path, config: DataConfig, seed: int) -> tuple[Split, Split, tuple[str, ...]]:
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
    parts = _stratified(Split(torch.arange(len(samples)), labels), count, seed)
    first, rest = ([samples[i] for i in part.images.tolist()] for part in parts)
    return first, rest


def _decode(samples: list[_Sample], size: int) -> Split:
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
    return Split(torch.stack(pixels), torch.tensor([sample.label for sample in samples]))


def _picture(path: str) -> "Image":
    """An image file in RGB. Pillow raises SyntaxError, among others, for damaged files."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as cause:
        raise DataError(f"{path} cannot be read as an image ({one_line(cause)}); remove it") from None
