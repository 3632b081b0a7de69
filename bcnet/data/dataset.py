"""Load the data that a configuration names. In: a `DataConfig`. Out: `ImageData`, checked, limited, split.

The validation part, which scores candidates, is split from the training part.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from bcnet.config import DataConfig
from bcnet.data.image_data import ImageData
from bcnet.data.loader import worker_count
from bcnet.data.normalisation import statistics, with_pictures
from bcnet.data.presets import MIXING
from bcnet.data.sources.builtin import cifar10, digits
from bcnet.data.sources.digit_scenes import SIDE, digit_scenes
from bcnet.data.sources.hugging_face import hugging_face
from bcnet.data.sources.image_folder import image_folder
from bcnet.data.sources.torchvision_datasets import torchvision_dataset
from bcnet.data.sources.webdataset_shards import webdataset_shards
from bcnet.data.splits import IGNORED, Items, Split, divided
from bcnet.data.stored import Listed
from bcnet.data.stored_splits import splits_of
from bcnet.errors import FOREIGN, DataError, one_line
from bcnet.user_code import UserFunction, import_function

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of each channel
# Sources of images that are stored encoded, by the first word of their name.
STORED: dict[str, Callable[[str, DataConfig], Listed]] = {
    "imagefolder": image_folder,
    "hf": hugging_face,
    "wds": webdataset_shards,
    "torchvision": torchvision_dataset,
}
NAMES = (
    *("digits", "digit-scenes", "cifar10", "imagefolder:PATH", "hf:NAME", "wds:PATTERN", "torchvision:NAME"),
    "package.module:function",
)


def load_data(
    config: DataConfig, seed: int, *, pixels: bool = True, trained_with: Statistics | None = None
) -> ImageData:
    """The dataset that `config` names, split and limited; the same for the same seed.

    Without `pixels`, stored images are a few blank ones of their size. `trained_with` are the mean and the
    deviation that a network expects: they normalise the images where none are configured, and the channels
    are as many. Raises DataError: unknown name, no images, unreadable files.
    """
    name, _, argument = config.name.partition(":")
    train: Split | Items
    test: Split | Items
    val: Split | Items | None = None
    stored = None
    if name in STORED:
        listed = STORED[name](argument, config)
        parts = splits_of(listed, config, seed, pixels=pixels)
        train, val, test = parts["train"], parts.get("val"), parts["test"]
        classes, stored = listed.classes, listed.found
    elif config.name in ("digits", "cifar10"):
        loaded = digits(config.image_size or 32) if config.name == "digits" else cifar10()
        train, test, classes = Split(*loaded[0]), Split(*loaded[1]), loaded[2]
    elif config.name == "digit-scenes":
        train, test, classes = digit_scenes(config.image_size or SIDE)
    elif argument:
        train, test, classes = _users_own(config.name)
    else:
        meant = f"did you mean 'imagefolder:{config.name}'? " if Path(config.name).is_dir() else ""
        raise DataError(f"unknown dataset '{config.name}'; {meant}known: {', '.join(NAMES)}")
    _check_settings(config, train)
    if config.augment == MIXING:
        _check_mixing(config, train, classes)
    test = _resized(_limit(test, config.test_limit, seed), config.image_size)
    train = _resized(_limit(train, config.train_limit, seed), config.image_size)
    if val is None:
        val_count = config.val_images or round(len(train) * config.val_fraction)
        val_count = val_count if pixels else 1
        if not 0 < val_count < len(train):
            raise DataError(
                f"{len(train)} training images cannot be split into training and {val_count} validation "
                "images; set data.val_images or data.val_fraction"
            )
        val, train = divided(train, val_count, seed + 1)
    configured = None if config.mean is None or config.std is None else (config.mean, config.std)
    given = configured or trained_with
    data = ImageData(
        train,
        val,
        test,
        classes,
        *_mean_and_std(given, train),
        stored=stored,
        colour="RGB" if stored or config.name == "cifar10" else _colour(train),
        transforms=_function(
            config.transforms,
            "data.transforms is called as transforms(input, target) and returns (input, target)",
        ),
        eval_transforms=_function(
            config.eval_transforms,
            "data.eval_transforms is called as eval_transforms(input, target) and returns (input, target)",
        ),
        collate=_function(
            config.collate,
            "data.collate is called with a list of (input, target) and returns (inputs, targets)",
        ),
        augment=config.augment,
        flip=config.flip,
        shift=config.shift,
    )
    data = replace(data, workers=_workers(config, data))
    if isinstance(train, Items) and data.collate is None:
        data = with_pictures(data, train)
    fits = given is not None and bool(data.mean) and len(given[0]) == data.input_shape[0]
    return data.with_statistics(*given) if given and (configured or fits) else data


def _mean_and_std(given: Statistics | None, train: Split | Items) -> Statistics:
    """Those that are given, else those of the training images; none of a Dataset's items."""
    if not isinstance(train, Split):
        return (), ()
    # Those of another number of channels are refused, if they were configured.
    return given if given and len(given[0]) == train.images.shape[1] else statistics(train)


def _workers(config: DataConfig, data: ImageData) -> int:
    """The configured number of processes that read data; if not given, none for plain images in memory."""
    if config.workers is not None:
        return config.workers
    return worker_count() if data.needs_workers else 0


def _colour(train: Split | Items) -> str | None:
    """The order of colours of a user's own images, which only their author knows, except for grey ones."""
    return "grey" if isinstance(train, Split) and train.images.shape[1] == 1 else None


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
    movable = isinstance(train, Split) and train.movable
    if not movable and config.augment.startswith("imagenet"):
        raise DataError(
            f"data.augment = '{config.augment}' changes images with class indices or masks, and nothing "
            "else: set it to 'none', and change images and targets together in data.transforms"
        )
    if not movable and config.augment == "light":
        asked = {"flip": config.flip, "shift": config.shift}
        for key in sorted(config.model_fields_set & {key for key, value in asked.items() if value}):
            off = "false" if key == "flip" else "0"
            raise DataError(
                f"data.{key} moves images in memory with class indices or masks, and nothing else: set it to "
                f"{off}, and move images and targets together in data.transforms"
            )


def _check_mixing(config: DataConfig, train: Split | Items, classes: tuple[str, ...]) -> None:
    """What RandAugment takes, and what can be mixed."""
    what = f"data.augment = '{MIXING}'"
    if not (isinstance(train, Split) and train.classified and len(classes) > 1):
        raise DataError(f"{what} mixes images with class indices of named classes: set it to 'imagenet'")
    if train.images.shape[1] not in (1, 3):
        raise DataError(
            f"{what} changes colours of grey or RGB images, not of {train.images.shape[1]} channels: set it "
            "to 'imagenet'"
        )
    if config.collate:
        raise DataError(f"{what} mixes whole batches, which data.collate makes: remove one of the two")


def _resized(part: Split | Items, size: int | None) -> Split | Items:
    """Images, and masks with them, scaled to `size` by `size` pixels, unless they are so already."""
    if size is None or not isinstance(part, Split) or part.images.shape[2:] == (size, size):
        return part
    parts = [
        torch.nn.functional.interpolate(images.float(), size=(size, size), mode="bilinear", antialias=True)
        for images in torch.split(part.pixels, 256)
    ]
    labels = part.labels
    if part.masked:
        rows, columns = (
            ((torch.arange(size) + 0.5) * (side / size)).long().clamp_max(side - 1)
            for side in part.images.shape[2:]
        )
        labels = labels[:, rows[:, None], columns]
    return Split(
        torch.cat([images.round().to(torch.uint8) for images in parts]), labels, sources=part.sources
    )


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
