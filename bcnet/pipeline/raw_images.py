"""Test images as an application has them, for files with their own pre-processing.

In: a configuration, its data. Out: what the file does to images; batches of uint8 images, and the network
inputs that the file's pre-processing and Pillow make of them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from bcnet.config import Config
from bcnet.data.decoding import picture_of, size_of
from bcnet.data.image_data import PIXELS, ImageData
from bcnet.data.pictures import LONGEST_SIDE, squared
from bcnet.data.splits import Split
from bcnet.errors import DataError
from bcnet.hw_profiles import HwProfile
from bcnet.onnx_export.opset import NEWEST
from bcnet.onnx_export.preprocess import Preprocessing
from bcnet.pipeline.differences import Differences
from bcnet.pipeline.results import PreprocessReport
from bcnet.runtimes import runtime_here

SIZED = 2000  # number of files whose sizes are compared


def preprocessing_of(config: Config, data: ImageData, profile: HwProfile) -> Preprocessing | None:
    """The pre-processing in the exported file; None if it is left to the application.

    Raises DataError for inputs that a custom function makes, and if images differ in size.
    """
    asked, test = config.export, data.test
    if not asked.preprocess:
        return None
    custom = [name for name in ("eval_transforms", "collate") if getattr(data, name) is not None]
    if custom or not isinstance(test, Split):
        what = f"data.{custom[0]} makes them" if custom else f"'{config.data.name}' gives final inputs"
        raise DataError(
            f"export.preprocess needs images that bcnet itself normalises, but {what}: set it to false, and "
            "pre-process images in the application as in training"
        )
    by_operator = profile.traits.antialias and profile.opset >= NEWEST
    network = (test.images.shape[2], test.images.shape[3])
    if test.originals is None:
        if asked.input_size not in (None, network):
            raise DataError(
                f"export.input_size: the images of '{config.data.name}' have {network[0]} x {network[1]} "
                "pixels, so a file for another size could not be verified: remove this setting"
            )
        return Preprocessing(network, None, data.mean, data.std, by_operator)
    size = asked.input_size or _size_of_all(test)
    if max(size) > LONGEST_SIDE * min(size):
        raise DataError(f"export.input_size: one side is more than {LONGEST_SIDE} times the other")
    return Preprocessing(size, network[0], data.mean, data.std, by_operator)


def _size_of_all(test: Split) -> tuple[int, int]:
    """Height and width of the test images. Raises DataError where they differ."""
    part = test.originals
    assert part is not None
    with ThreadPoolExecutor() as pool:
        places = range(0, len(part), max(1, len(part) // SIZED))
        sizes = sorted(set(pool.map(lambda place: size_of(part, place), places)), key=math.prod)
    if len(sizes) > 1:
        small, large = (f"{height} x {width}" for width, height in (sizes[0], sizes[-1]))
        raise DataError(
            f"export.preprocess: the test images have different sizes ({small} to {large} pixels): set "
            "export.input_size = [height, width] to the size of the application's images"
        )
    width, height = sizes[0]
    return height, width


class RawBatch(NamedTuple):
    """Images (N, height, width, channels) in uint8, and the network inputs (N, C, H, W) made from them.

    `inputs` are made by the file's own pre-processing, `pillow` by Pillow and `ImageData.normalise`.
    """

    pixels: NDArray[np.uint8]
    inputs: Tensor
    pillow: Tensor
    targets: Any


@dataclass
class RawImages:
    """The test images as the file takes them; those of another size are scaled and cropped to it."""

    data: ImageData
    preprocessing: Preprocessing
    scaled_first: int = 0

    def batches(self) -> Iterator[RawBatch]:
        """All test images, in order."""
        data, test = self.data, self.data.test
        assert isinstance(test, Split)
        self.scaled_first = 0
        for numbers in torch.split(torch.arange(len(test)), self.count):
            pixels, squares = self._images(test, numbers)
            (made,) = self._alone(pixels)
            yield RawBatch(pixels, torch.from_numpy(made), data.normalise(squares), test.labels[numbers])

    @property
    def count(self) -> int:
        """The number of images in a batch."""
        height, width = self.preprocessing.size
        return max(1, min(self.data.evaluated, PIXELS // (3 * height * width)))

    @cached_property
    def _alone(self) -> Callable[..., Sequence[NDArray[np.float32]]]:
        content = self.preprocessing.alone(tuple(self.data.example(1).shape))
        return runtime_here("onnxruntime", provider="cpu", threads=1).predictor(content)

    def _images(self, test: Split, numbers: Tensor) -> tuple[NDArray[np.uint8], Tensor]:
        """Images as the file takes them, and the network's inputs (N, C, H, W) after scaling by Pillow."""
        part, side = test.originals, self.preprocessing.side
        if part is None or side is None:
            own = test.take(numbers).pixels
            return np.ascontiguousarray(own.permute(0, 2, 3, 1).numpy()), own
        with ThreadPoolExecutor() as pool:
            images = list(pool.map(lambda place: picture_of(part, place).image, numbers.tolist()))
        size = self.preprocessing.size[::-1]
        self.scaled_first += sum(image.size != size for image in images)
        fitted = [
            image if image.size == size else ImageOps.fit(image, size, Image.Resampling.BILINEAR)
            for image in images
        ]
        squares = np.stack([np.asarray(squared(image, side)) for image in fitted])
        return np.stack([np.asarray(image) for image in fitted]), torch.from_numpy(squares).permute(
            0, 3, 1, 2
        )


@dataclass
class AgainstPillow:
    """The differences between the file's own pre-processing and Pillow's, over all batches."""

    raw: RawImages
    largest: float = 0.0
    predictions: Differences = field(default_factory=Differences)
    _total: float = 0.0
    _values: int = 0

    def add(self, batch: RawBatch, outputs: Sequence[Tensor], pillow: Sequence[Tensor]) -> None:
        """Add a batch: the file's outputs, and PyTorch's for the same images scaled by Pillow."""
        std = torch.tensor(self.raw.data.std).view(1, -1, 1, 1) * 255
        levels = ((batch.inputs - batch.pillow) * std).abs().double()
        self.largest = max(self.largest, float(levels.max()))
        self._total, self._values = self._total + float(levels.sum()), self._values + levels.numel()
        self.predictions.add(outputs, pillow)

    def report(self) -> PreprocessReport:
        """The entry for verify.json, to which latencies are added later."""
        own = self.raw.preprocessing
        return PreprocessReport(
            input_size=own.size,
            resized_by=own.how,
            scaled_first=self.raw.scaled_first,
            pixel_error=round(self.largest, 4),
            pixel_error_mean=round(self._total / max(1, self._values), 5),
            agreement=self.predictions.agreement,
        )
