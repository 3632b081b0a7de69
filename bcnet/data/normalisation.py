"""What normalises images where no statistics are configured: those of the training images.

In: images in memory or on disk, or a Dataset of PIL images. Out: mean and deviation of each channel.
"""

from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from bcnet.data.image_data import ImageData
from bcnet.data.pictures import is_grey, pixels_of
from bcnet.data.splits import Items, Split
from bcnet.errors import DataError

# Number of training images whose mean and deviation normalise all: in memory, on disk, of a Dataset.
MEASURED, MEASURED_ON_DISK, MEASURED_ITEMS = 10_000, 1_000, 256


def statistics(part: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel, of pixels scaled to 0..1, from the first images."""
    most = MEASURED if isinstance(part.images, Tensor) else MEASURED_ON_DISK
    total = squares = torch.zeros(part.images.shape[1], dtype=torch.float64)
    values = 0
    for index in torch.split(torch.arange(min(most, len(part))), 256):
        pixels = part.take(index).pixels.double().div(255)
        total = total + pixels.sum((0, 2, 3))
        squares = squares + pixels.square().sum((0, 2, 3))
        values += pixels[:, 0].numel()
    mean = total / values
    std = (squares / values - mean.square()).clamp_min(0).sqrt().clamp_min(1e-3)
    return tuple(mean.tolist()), tuple(std.tolist())


def with_pictures(data: ImageData, train: Items) -> ImageData:
    """Where a Dataset gives PIL images: the same with their colours, and with their statistics.

    Other items are final, and so are images of which transforms make tensors other than of pixels. Raises
    DataError where training items and others differ in that, or in size.
    """
    first = torch.arange(1)
    ((given, _),) = data.items(train.take(first), first, (), None)
    if not isinstance(given, Image.Image):
        return data
    trained, evaluated = (
        data.items(train.take(first), first, (0, 0), transforms)[0][0]
        for transforms in (data.transforms, data.eval_transforms)
    )
    if _is_picture(trained) != _is_picture(evaluated):
        names = ["data.transforms", "data.eval_transforms"]
        image, final = names if _is_picture(trained) else names[::-1]
        raise DataError(
            f"{final} turns a PIL image into a final input, but {image} returns an image, which data.mean "
            "would normalise: let both return the same kind"
        )
    if not _is_picture(evaluated):
        return data
    grey = is_grey(evaluated) if isinstance(evaluated, Image.Image) else len(evaluated) == 1
    some = torch.arange(min(MEASURED_ITEMS, len(train)))
    images = [
        pixels_of(image, grey=grey) if isinstance(image, Image.Image) else image
        for image, _ in data.items(train.take(some), some, (), data.eval_transforms)
    ]
    sizes = sorted({(image.shape[2], image.shape[1]) for image in images})
    if len(sizes) > 1:
        small, large = (f"{width} x {height}" for width, height in (sizes[0], sizes[-1]))
        raise DataError(
            f"'{train.name}' gives images of different sizes ({small}, {large} pixels): scale and crop them "
            "to one size in data.eval_transforms, and for training in data.transforms"
        )
    mean, std = statistics(Split(torch.stack(images), some))
    return replace(data, colour="grey" if grey else "RGB", mean=mean, std=std)


def _is_picture(value: Any) -> bool:
    pixels = isinstance(value, Tensor) and value.dtype == torch.uint8 and value.ndim == 3
    return pixels or isinstance(value, Image.Image)
