"""The data for training, scoring and testing: images in memory, or the items of a custom Dataset.

In: a `DataConfig`. Out: `ImageData` with a training, a validation and a test part. The validation part, which
scores candidates, is split from the training part; the test part is never used for decisions.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.data import Dataset, default_collate

from bcnet.config import DataConfig
from bcnet.data.sources.builtin import cifar10, digits
from bcnet.data.sources.image_folder import Found, image_folder
from bcnet.data.splits import IGNORED, Item, Items, divided, pair
from bcnet.data.splits import Split as Split
from bcnet.errors import FOREIGN, DataError, one_line
from bcnet.seeds import seeded
from bcnet.space.inputs import to_device
from bcnet.user_code import UserFunction, code_of, import_function

NAMES = ("digits", "cifar10", "imagefolder:PATH", "package.module:function")
# Maximum number of items that are scored at once, on a CPU and on a GPU, and of values in their inputs.
EVALUATED = 256
EVALUATED_CUDA = 2048
PIXELS = 2**25
KEPT_BYTES = 2**30  # maximum size of batches that are kept for repeated scoring
DIGESTED = 256  # number of items of a Dataset whose digest shows whether it has changed


@dataclass(frozen=True)
class ImageData:
    """A dataset. `mean` and `std` are per channel, of pixels scaled to 0..1; a Dataset's items have none.

    `stated`: whether they were given, rather than computed from the training images. `colour`: "RGB" or
    "grey" if known. `transforms(input, target)` changes each training item; `collate(items)` makes (inputs,
    targets). `flip` and `shift` (in pixels) augment training images in memory with class indices or masks.
    `folder` describes the folder of images from which it was read.
    """

    train: Split | Items
    val: Split | Items
    test: Split | Items
    classes: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    transforms: Callable[[Any, Any], Item] | None = None
    collate: Callable[[list[Item]], Item] | None = None
    folder: Found | None = None
    colour: str | None = None
    stated: bool = False
    flip: bool = False
    shift: int = 0

    def __str__(self) -> str:
        """For people: how many images or items there are, and what was found in a folder of images."""
        parts = ((self.train, "training"), (self.val, "validation"), (self.test, "test"))
        what = "images" if isinstance(self.train, Split) else "items"
        counts = ", ".join(f"{len(part):,} {name}" for part, name in parts)
        classes = f"; {len(self.classes):,} classes" if self.classes else ""
        return f"{counts} {what}{classes}" + (f"; {self.folder}" if self.folder else "")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(channels, height, width) of one image; of the first tensor where a network takes several."""
        if isinstance(self.train, Split):
            return tuple(self.train.images.shape[1:])
        example = self.example(1)
        tensors = [leaf for leaf in tree_leaves(example) if isinstance(leaf, Tensor)]
        if not tensors:
            raise DataError(f"'{self.train.name}' gives inputs without a tensor ({type(example).__name__})")
        return tuple(tensors[0].shape[0 if isinstance(example, list) else 1 :])

    @property
    def evaluated(self) -> int:
        """The number of items that are scored at once; less for large ones."""
        return self.evaluated_on("cpu")

    def evaluated_on(self, device: str) -> int:
        """The same for a device: more on a GPU, which idles between small batches."""
        most = EVALUATED_CUDA if device.startswith("cuda") else EVALUATED
        return max(1, min(most, PIXELS // math.prod(self.input_shape)))

    def example(self, count: int) -> Any:
        """The network's inputs for `count` items, all zero."""
        with seeded(0):
            inputs, _ = self.batch(self.train.take(torch.zeros(count, dtype=torch.int64)))
        return tree_map_only(Tensor, lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype), inputs)

    def with_statistics(self, mean: tuple[float, ...], std: tuple[float, ...]) -> "ImageData":
        """The same data, normalised with the statistics that a network was trained with. Raises DataError."""
        if not isinstance(self.train, Split):
            raise DataError("data.mean normalises images in memory; a Dataset's inputs are final: remove it")
        if len(mean) != self.input_shape[0]:
            raise DataError(f"data.mean has {len(mean)} channels, the images have {self.input_shape[0]}")
        return replace(self, mean=mean, std=std, stated=True)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> float32, channels-last, with zero mean and unit deviation."""
        mean, std = _of_pixels(self.mean, images.device), _of_pixels(self.std, images.device)
        return ((images.float() - mean) / std).contiguous(memory_format=torch.channels_last)

    def batch(
        self,
        part: Split | Items,
        transforms: Callable[[Any, Any], Item] | None = None,
        device: str = "cpu",
    ) -> Item:
        """(inputs, targets) of a whole part, on `device`: normalised images, or a Dataset's items."""
        if isinstance(part, Split) and transforms is None and self.collate is None:
            return self.normalise(part.images.to(device)), part.labels.to(device)
        items = part.items()
        if transforms is not None:
            items = [pair(transforms(*item), "data.transforms") for item in items]
        if isinstance(part, Split):
            items = [(self.normalise(image[None])[0], target) for image, target in items]
        if self.collate is not None:
            inputs, targets = pair(self.collate(items), "data.collate")
        else:
            try:
                inputs, targets = (_as_tuple(items[0][i], v) for i, v in enumerate(default_collate(items)))
            except (RuntimeError, TypeError, ValueError, KeyError) as cause:
                raise DataError(
                    f"items cannot be joined into a batch ({one_line(cause)}); give tensors of one shape, "
                    "or set data.collate"
                ) from cause
        return to_device(tree_map_only(Tensor, _channels_last, inputs), device), to_device(targets, device)

    def augmented(
        self, part: Split | Items, generator: torch.Generator, seeds: Sequence[int], device: str = "cpu"
    ) -> Item:
        """A training batch: `batch` of augmented images, with `transforms`.

        Augmentation uses the CPU's `generator`; random numbers of custom functions depend only on the
        `seeds`, not on dropout or previous batches.
        """
        if isinstance(part, Split) and part.movable and (self.flip or self.shift):
            # Custom functions receive tensors on the CPU.
            own = self.transforms is None and self.collate is None
            part = (part.to(device) if own else part).moved(self.flip, self.shift, generator)
        with seeded(*seeds):
            return self.batch(part, self.transforms, device)

    def batches(self, part: Split | Items, size: int) -> Iterator[Item]:
        """Batches of a part in order, without transforms."""
        for start in range(0, len(part), size):
            with seeded(start):
                batch = self.batch(part.take(torch.arange(start, min(start + size, len(part)))))
            yield batch

    def digest(self) -> str:
        """Every image and target in memory, or some items of a Dataset and its code; the classes' names."""
        found = sha256(repr(self.classes).encode())
        if self.stated:
            found.update(repr((self.mean, self.std)).encode())
        for part in (self.train, self.val, self.test):
            if isinstance(part, Split):
                found.update(repr(tuple(part.images.shape)).encode())
                found.update(part.labels.contiguous().numpy().tobytes())
                found.update(part.images.contiguous().numpy().data)
                continue
            found.update(repr(part.index.tolist()).encode() + code_of(type(part.dataset)).encode())
            some = torch.linspace(0, len(part) - 1, min(len(part), DIGESTED)).round().long()
            with seeded(0):
                for leaf in tree_leaves(part.take(some).items()):
                    found.update(_content(leaf))
        return found.hexdigest()[:16]


class KeptBatches:
    """`ImageData.batches` of a part, equal in size, read once and kept for repeated iteration.

    With `augmented`, they are training batches, the same in each iteration. Inputs are kept on `device`,
    targets on the CPU. Batches that do not fit into `room` bytes, or that a custom metric has changed, are
    read again.
    """

    def __init__(
        self,
        data: ImageData,
        part: Split | Items,
        room: int = KEPT_BYTES,
        device: str = "cpu",
        *,
        augmented: bool = False,
    ) -> None:
        self._data, self._part, self._room, self._device = data, part, room, device
        self._augmented = augmented
        count = math.ceil(len(part) / data.evaluated_on(device))
        self._size = math.ceil(len(part) / max(count, 1))
        self._kept: dict[int, tuple[Item, list[int]]] = {}

    def __iter__(self) -> Iterator[Item]:
        for start in range(0, len(self._part), self._size):
            batch, versions = self._kept.get(start, (None, []))
            if batch is None or versions != _versions(batch):
                inputs, targets = self._read(start)
                batch = inputs, to_device(targets, "cpu")
                size_bytes = sum(leaf.nbytes for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))
                if start in self._kept or size_bytes <= self._room:
                    self._room -= 0 if start in self._kept else size_bytes
                    self._kept[start] = batch, _versions(batch)
            yield batch

    def _read(self, start: int) -> Item:
        part = self._part.take(torch.arange(start, min(start + self._size, len(self._part))))
        if self._augmented:
            generator = torch.Generator().manual_seed(start)
            return self._data.augmented(part, generator, (start,), self._device)
        with seeded(start):
            return self._data.batch(part, device=self._device)


def _versions(tree: Any) -> list[int]:
    """How often each tensor was changed in place."""
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


@lru_cache(maxsize=16)
def _of_pixels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Values per channel for pixels of 0 to 255, (1, C, 1, 1), copied to a GPU only once."""
    return torch.tensor(values, device=device).view(1, -1, 1, 1) * 255


def load_data(config: DataConfig, seed: int, *, pixels: bool = True) -> ImageData:
    """The dataset that `config` names, split and limited; the same for the same seed.

    Without `pixels`, a folder's images are a few blank ones of their size. Raises DataError: unknown name, no
    images, unreadable files.
    """
    name, _, argument = config.name.partition(":")
    train: Split | Items
    test: Split | Items
    val: Split | Items | None = None
    folder = None
    if name == "imagefolder":
        found = image_folder(Path(argument), config, seed, pixels=pixels)
        train, val, test, classes, folder = found.train, found.val, found.test, found.classes, found.found
    elif config.name in ("digits", "cifar10"):
        loaded = digits(config.image_size or 32) if config.name == "digits" else cifar10()
        train, test, classes = Split(*loaded[0]), Split(*loaded[1]), loaded[2]
    elif argument:
        train, test, classes = _users_own(config.name)
    else:
        raise DataError(f"unknown dataset '{config.name}'; known: {', '.join(NAMES)}")
    _check_settings(config, train)
    test = _resized(_limit(test, config.test_limit, seed), config.image_size)
    train = _resized(_limit(train, config.train_limit, seed), config.image_size)
    if val is None:
        val_count = round(len(train) * config.val_fraction) or int(not pixels)
        if not 0 < val_count < len(train):
            raise DataError(
                f"{len(train)} training images cannot be split into training and validation images"
            )
        val, train = divided(train, val_count, seed + 1)
    data = ImageData(
        train,
        val,
        test,
        classes,
        *(_statistics(train.images[:10_000]) if isinstance(train, Split) else ((), ())),
        folder=folder,
        colour=_colour(config, train),
        transforms=_function(
            config.transforms,
            "data.transforms is called as transforms(input, target) and returns (input, target)",
        ),
        collate=_function(
            config.collate,
            "data.collate is called with a list of (input, target) and returns (inputs, targets)",
        ),
        flip=config.flip,
        shift=config.shift,
    )
    if config.mean is None or config.std is None:
        return data
    return data.with_statistics(config.mean, config.std)


def _colour(config: DataConfig, train: Split | Items) -> str | None:
    """The order of colours; for a user's own images only their author knows it."""
    if not isinstance(train, Split):
        return None
    if config.name == "cifar10" or config.name.startswith("imagefolder:"):
        return "RGB"
    return "grey" if train.images.shape[1] == 1 else None


def _function(name: str | None, contract: str) -> UserFunction | None:
    return UserFunction(name, import_function(name, DataError), DataError, contract) if name else None


def _users_own(name: str) -> tuple[Split | Items, Split | Items, tuple[str, ...]]:
    """What the user's function `name` gives, checked."""
    function = import_function(name, DataError)
    try:
        result = function()
    except FOREIGN as cause:
        raise DataError(f"'{name}' failed: {one_line(cause)}") from cause
    try:
        train, test, classes = result
        parts = _part(train, name), _part(test, name)
        classes = tuple(classes)
    except (TypeError, ValueError):
        raise DataError(
            f"'{name}' must return (train, test, class names), train and test as (images, labels) "
            "or as a torch.utils.data.Dataset with a length"
        ) from None
    shapes = []
    for part in parts:
        if isinstance(part, Split):
            _check_split(name, part, len(classes))
            shapes.append(part.images.shape[1:])
        elif not len(part):
            raise DataError(f"'{name}' must return a Dataset that is not empty")
    if len(shapes) == 1:
        raise DataError(f"'{name}' must return both parts as tensors, or both as a Dataset")
    if len(set(shapes)) > 1:
        raise DataError(f"'{name}' must return training and test images of the same shape")
    return *parts, classes


def _part(value: Any, name: str) -> Split | Items:
    if isinstance(value, Dataset):
        return Items(value, torch.arange(len(value)), name)  # type: ignore[arg-type]
    images, targets = value
    return Split(images, targets)


def _content(leaf: object) -> bytes:
    if isinstance(leaf, Tensor):
        values = leaf.cpu().contiguous().flatten().view(torch.uint8)
        return repr((leaf.dtype, leaf.shape)).encode() + values.numpy().tobytes()
    if isinstance(leaf, np.ndarray):
        return repr((leaf.dtype, leaf.shape)).encode() + leaf.tobytes()
    # Of other objects a repr may hold an address, which is another one in each process.
    return repr(leaf if isinstance(leaf, str | bytes | int | float) else type(leaf)).encode()


def _as_tuple(item: Any, joined: Any) -> Any:
    """default_collate makes a list of tuples, but several inputs are a tuple here."""
    return tuple(joined) if isinstance(item, tuple) and isinstance(joined, list) else joined


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _check_settings(config: DataConfig, train: Split | Items) -> None:
    """Settings that would change images and leave their targets behind."""
    if isinstance(train, Items):
        if config.image_size is not None:
            raise DataError(
                "data.image_size scales images in memory; a Dataset gives its own size: remove it"
            )
    elif not (train.classified or train.masked) and config.image_size is not None:
        raise DataError(
            "data.image_size scales images with class indices or masks, not other targets: remove it, "
            f"and return the images of '{config.name}' at their final size"
        )
    if not (isinstance(train, Split) and train.movable):
        asked = {"flip": config.flip, "shift": config.shift}
        for key in sorted(config.model_fields_set & {key for key, value in asked.items() if value}):
            off = "false" if key == "flip" else "0"
            raise DataError(
                f"data.{key} moves images in memory with class indices or masks, and nothing else: set it to "
                f"{off}, and move images and targets together in data.transforms"
            )


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


def _resized(part: Split | Items, size: int | None) -> Split | Items:
    """Images, and masks with them, scaled to `size` by `size` pixels, unless they are so already."""
    if size is None or not isinstance(part, Split) or part.images.shape[2:] == (size, size):
        return part
    parts = [
        torch.nn.functional.interpolate(images.float(), size=(size, size), mode="bilinear", antialias=True)
        for images in torch.split(part.images, 256)
    ]
    labels = part.labels
    if part.masked:
        rows, columns = (
            ((torch.arange(size) + 0.5) * (side / size)).long().clamp_max(side - 1)
            for side in part.images.shape[2:]
        )
        labels = labels[:, rows[:, None], columns]
    return Split(torch.cat([images.round().to(torch.uint8) for images in parts]), labels)


def _check_split(name: str, split: Split, classes: int) -> None:
    images, labels = split.images, split.labels
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
        raise DataError(f"'{name}' must return images as a uint8 tensor (N, C, H, W), not empty")
    whole = isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point()
    if (
        not isinstance(labels, Tensor)
        or labels.shape[:1] != images.shape[:1]
        or (whole and labels.dtype != torch.int64)
    ):
        raise DataError(
            f"'{name}' must return labels as an int64 tensor (N,), or other targets as a tensor (N, ...)"
        )
    if not classes or not (split.classified or split.masked):
        return
    counted = labels[labels != IGNORED] if split.masked and classes <= IGNORED else labels
    if len(counted) and (counted.min() < 0 or counted.max() >= classes):
        raise DataError(
            f"'{name}' must return labels from 0 to {classes - 1}, one a class name, "
            f"not {counted.min()} to {counted.max()}"
        )


def _limit(part: Split | Items, limit: int | None, seed: int) -> Split | Items:
    if limit is None or limit >= len(part):
        return part
    return divided(part, limit, seed)[0]
