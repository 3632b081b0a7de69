"""Datasets by name, decoded once and kept in memory as bytes.

In: a `DataConfig`. Out: `ImageData`: training, validation and test images. The validation part is split from
the training images (it scores candidates); the test images are never used for a choice.
"""

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bcnet.config import DataConfig
from bcnet.errors import DataError
from bcnet.imports import import_function
from bcnet.progress import progress_bar

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
        train, test, classes = _digits(config.image_size or 32, seed)
    elif config.name == "cifar10":
        train, test, classes = _cifar10(config)
    elif name == "imagefolder":
        train, test, classes = _image_folder(Path(argument), config, seed)
    elif argument:
        result = import_function(config.name, DataError)()
        try:
            train, test, classes = result
            train, test, classes = Split(*train), Split(*test), tuple(classes)
        except (TypeError, ValueError):
            raise DataError(
                f"'{config.name}' must return (train, test, class names), train and test as (images, labels)"
            ) from None
        _check_split(config.name, train)
        _check_split(config.name, test)
    else:
        raise DataError(f"unknown dataset '{config.name}'; there is: {', '.join(NAMES)}")
    test = _limit(test, config.test_limit, seed)
    train = _limit(train, config.train_limit, seed)
    val_count = round(len(train) * config.val_fraction)
    if not 0 < val_count < len(train):
        raise DataError(f"{len(train)} training images cannot be split into training and validation images")
    val, rest = _stratified(train, val_count, seed + 1)
    pixels = rest.images[:10_000].float().div(255)
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)).clamp_min(1e-3)
    return ImageData(rest, val, test, classes, tuple(mean.tolist()), tuple(std.tolist()))


def _check_split(name: str, split: Split) -> None:
    images, labels = split.images, split.labels
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
        raise DataError(f"'{name}' must return images as a uint8 tensor (N, C, H, W), not empty")
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise DataError(f"'{name}' must return labels as an int64 tensor (N,)")


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


def _digits(size: int, seed: int) -> tuple[Split, Split, tuple[str, ...]]:
    """scikit-learn's 1,797 handwritten digits (8x8 scans), enlarged; a fifth of them is the test set."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float()[:, None] * (255 / 16)
    images = torch.nn.functional.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    split = Split(images.round().to(torch.uint8), torch.from_numpy(bunch.target).long())
    test, train = _stratified(split, round(len(split) * 0.2), seed=0)
    return train, test, tuple(str(digit) for digit in range(10))


def _cifar10(config: DataConfig) -> tuple[Split, Split, tuple[str, ...]]:
    """CIFAR-10 as torchvision stores it, under .cache/cifar10; downloaded once when it is not there."""
    from torchvision.datasets import CIFAR10

    root = Path(".cache/cifar10")
    try:
        with redirect_stdout(io.StringIO()):
            parts = [CIFAR10(str(root), train=train, download=True) for train in (True, False)]
    except Exception as cause:
        raise DataError(
            f"CIFAR-10 is not under {root} and could not be fetched ({cause}); "
            "use imagefolder:PATH for a copy of your own"
        ) from None
    splits = []
    for part in parts:
        images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
        if config.image_size not in (None, 32):
            images = torch.nn.functional.interpolate(
                images.float(), size=(config.image_size, config.image_size), mode="bilinear"
            ).to(torch.uint8)
        splits.append(Split(images, torch.tensor(part.targets)))
    return splits[0], splits[1], tuple(parts[0].classes)


def _image_folder(path: Path, config: DataConfig, seed: int) -> tuple[Split, Split, tuple[str, ...]]:
    """PATH/train/<class>/* and PATH/test/<class>/*, or PATH/<class>/* of which a fifth is the test set."""
    from torchvision.datasets import ImageFolder

    def listing(folder: Path) -> tuple[list[tuple[str, int]], tuple[str, ...]]:
        try:
            found = ImageFolder(str(folder))
        except FileNotFoundError as cause:
            reason = str(cause).splitlines()[0].rstrip(".")
            raise DataError(
                f"no images in {folder}: {reason}; it needs one folder of images a class"
            ) from None
        return found.samples, tuple(found.classes)

    if not path.is_dir():
        raise DataError(f"imagefolder:{path}: there is no folder {path}")
    if not (path / "train").is_dir():
        samples, classes = listing(path)
        everything = _decode(_limit_samples(samples, config.train_limit, seed), config.image_size)
        test, train = _stratified(everything, max(1, round(len(everything) * 0.2)), seed=0)
        return train, test, classes
    if not (path / "test").is_dir():
        raise DataError(f"{path} has train/ but no test/; bcnet needs both, or classes directly in {path}")
    samples, classes = listing(path / "train")
    test_samples, test_classes = listing(path / "test")
    if classes != test_classes:
        raise DataError(f"{path}/train and {path}/test hold different classes")
    train = _decode(_limit_samples(samples, config.train_limit, seed), config.image_size)
    size = train.images.shape[-1]
    return train, _decode(_limit_samples(test_samples, config.test_limit, seed), size), classes


def _limit_samples(samples: list[tuple[str, int]], limit: int | None, seed: int) -> list[tuple[str, int]]:
    """Choose before decoding, so that a part of a large folder costs only that part."""
    labels = torch.tensor([label for _, label in samples])
    index = _limit(Split(torch.arange(len(samples)), labels), limit, seed).images
    return [samples[i] for i in index.tolist()]


def _decode(samples: list[tuple[str, int]], size: int | None) -> Split:
    """Read images into one tensor: shorter side to `size` (the first image's if None), centre cropped."""
    from PIL import Image

    if size is None:
        try:
            with Image.open(samples[0][0]) as image:
                size = min(image.size)
        except OSError as cause:
            raise DataError(f"{samples[0][0]} cannot be read as an image ({cause}); remove it") from None

    def read(path: str, side: int) -> Tensor:
        from torchvision.transforms import functional

        try:
            with Image.open(path) as image:
                rgb = image.convert("RGB")
        except OSError as cause:
            raise DataError(f"{path} cannot be read as an image ({cause}); remove it") from None
        if rgb.size != (side, side):
            rgb = functional.center_crop(functional.resize(rgb, side), [side, side])
        return functional.pil_to_tensor(rgb)  # type: ignore[no-any-return]

    reader: Callable[[tuple[str, int]], Tensor] = lambda sample: read(sample[0], size)  # noqa: E731
    pixels: list[Tensor] = []
    with ThreadPoolExecutor() as pool, progress_bar("reading images", len(samples)) as advance:
        for decoded in pool.map(reader, samples):
            pixels.append(decoded)
            advance("")
    return Split(torch.stack(pixels), torch.tensor([label for _, label in samples]))
