"""Read one image as 8-bit RGB, as viewers show it, and scale it. Pillow alone can reproduce both.

In: a file. Out: an image, and descriptions of its conversions. 16-bit grey values are scaled by their depth,
the EXIF orientation is applied, and transparent images are put on white.
"""

import re
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from bcnet.errors import DataError, one_line

ORIENTATION = 0x0112  # EXIF's tag; 1 is upright
QUARTER_TURNS = (5, 6, 7, 8)
LONGEST_SIDE = 16  # times the shorter side; predict.py, which is exported, has the same number
THIN = 8
PLAIN = ("RGB", "L", "1", "P")  # modes that convert to RGB without loss


Stored = Path | BinaryIO | Image.Image  # how a source holds an image: a file, an open one, or already read


class Picture(NamedTuple):
    """An RGB image, and its conversions, e.g. "16-bit grey"."""

    image: Image.Image
    converted: tuple[str, ...]


def read_picture(stored: Stored) -> Picture:
    """The image of a file. Raises DataError with the reason if it cannot be read."""
    try:
        with _opened(stored) as file:
            file.load()
            upright = _upright(file)
            turned = () if upright is file else ("turned by EXIF",)
            found = as_rgb(upright)
            return Picture(found.image, turned + found.converted)
    except DataError:
        raise
    except Exception as cause:  # Pillow raises SyntaxError, among others, for damaged files
        raise DataError(_reason(cause, stored)) from None


def as_rgb(given: Image.Image) -> Picture:
    """An image of any mode as 8-bit RGB, in the orientation that it has. Raises DataError."""
    converted = []
    image = _eight_bits(given)
    if image is not given:
        converted.append("float grey" if given.mode == "F" else "16-bit grey")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            converted.append("transparent (on white)")
    elif image.mode not in PLAIN:
        converted.append(image.mode)
    return Picture(image.convert("RGB"), tuple(converted))


def is_grey(image: Image.Image) -> bool:
    """Whether an image has one channel without colours."""
    return image.mode in ("1", "L", "F", "I") or image.mode.startswith("I;16")


def pixels_of(image: Image.Image, *, grey: bool) -> Tensor:
    """The pixels of an image of any mode, uint8 (C, H, W): one channel if `grey`, else RGB."""
    try:
        rgb = as_rgb(image).image
    except DataError as reason:
        raise DataError(f"a PIL image cannot be used: {reason}") from None
    pixels = np.array(rgb.convert("L") if grey else rgb)
    return torch.from_numpy(pixels[None] if grey else pixels.transpose(2, 0, 1).copy())


def shorter_side(stored: Stored) -> int:
    """The shorter side of an image in pixels, from its header. Raises DataError if it cannot be read."""
    try:
        with _opened(stored) as file:
            return min(file.size)
    except Exception as cause:
        raise DataError(_reason(cause, stored)) from None


def upright_size(stored: Stored) -> tuple[int, int]:
    """Width and height of an image in its EXIF orientation. Raises DataError if it cannot be read."""
    try:
        with _opened(stored) as file:
            width, height = file.size
            turned = file.getexif().get(ORIENTATION, 1) in QUARTER_TURNS
            return (height, width) if turned else (width, height)
    except Exception as cause:
        raise DataError(_reason(cause, stored)) from None


def squared(image: Image.Image, side: int) -> Image.Image:
    """The image with its shorter side scaled to `side` pixels (bilinear), cropped to the centre square.

    If the longer side exceeds `LONGEST_SIDE` times the shorter, only its centre is scaled, to bound the
    memory.
    """
    short = min(image.size)
    width, height = (min(length, LONGEST_SIDE * short) for length in image.size)
    if (width, height) != image.size:
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    scaled, (left, top) = scaled_and_cropped(image.size, side)
    if image.size != scaled:
        image = image.resize(scaled, Image.Resampling.BILINEAR)
    return image if image.size == (side, side) else image.crop((left, top, left + side, top + side))


def scaled_and_cropped(size: tuple[int, int], side: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The (width, height) to which an image of this size is scaled, and the corner of its centre square."""
    short = min(size)
    width, height = (length if short == side else int(side * length / short) for length in size)
    return (width, height), (round((width - side) / 2), round((height - side) / 2))


def is_thin(size: tuple[int, int], side: int) -> bool:
    """Whether `squared` keeps less than an eighth of an image's length, or enlarges it over eight times."""
    return max(size) > THIN * min(size) or side > THIN * min(size)


def _upright(image: Image.Image) -> Image.Image:
    """The image in its EXIF orientation; unchanged if that cannot be read, as in viewers."""
    try:
        if image.getexif().get(ORIENTATION, 1) in (1, None):
            return image
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of another depth, scaled to 0..255. Raises DataError if its range is not known."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    pixels = np.asarray(image).astype(np.float64)
    highest = 1.0 if image.mode == "F" else 65535.0  # the range of floats, and of 16 bits
    if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= highest):
        raise DataError(
            f"its values of {pixels.min():g} to {pixels.max():g} are not in 0 to {highest:g}: save it with "
            "8 or 16 bits"
        )
    return Image.fromarray((pixels / highest * 255).round().astype(np.uint8))


def _opened(stored: Stored) -> Image.Image:
    return stored if isinstance(stored, Image.Image) else Image.open(stored)


def _reason(cause: Exception, stored: Stored) -> str:
    """The reason without the path, which is already in the message, or the address of an open file."""
    reason = re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>", "", one_line(cause))
    path = repr(str(stored))
    return reason.replace(f": {path}", "").replace(f" {path}", "")
