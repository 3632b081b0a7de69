"""Square images of one size from stored ones. In: a part, a side. Out: pixels, and what was done."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bcnet.data.pictures import Picture, Stored, is_thin, read_picture, shorter_side, squared, upright_size
from bcnet.data.stored import Part
from bcnet.errors import FOREIGN, DataError, one_line
from bcnet.progress import progress_bar

DECODING = 1  # raised when the same file gives other pixels than before
AHEAD = 256  # images that are decoded before the first of them is used


class Decoded(NamedTuple):
    """An image as it is used, uint8 (3, side, side), its width and height in the file, its conversions."""

    pixels: Tensor
    size: tuple[int, int]
    converted: tuple[str, ...]


def decode(part: Part, position: int, side: int) -> Decoded:
    """One image of a part (see `read_picture`, `squared`). Raises DataError with the reason."""
    picture = picture_of(part, position)
    pixels = np.array(squared(picture.image, side))
    return Decoded(torch.from_numpy(pixels).permute(2, 0, 1), picture.image.size, picture.converted)


def picture_of(part: Part, position: int) -> Picture:
    """One image of a part in its original size. Raises DataError with the reason."""
    return read_picture(_stored(part, position))


def size_of(part: Part, position: int) -> tuple[int, int]:
    """Width and height of an image, from its header. Raises DataError if it cannot be read."""
    return upright_size(_stored(part, position))


def shorter_side_of(part: Part, position: int) -> int | None:
    """The shorter side of an image in pixels, None if it cannot be read."""
    try:
        return shorter_side(_stored(part, position))
    except DataError:
        return None  # reported when it is decoded


def _stored(part: Part, position: int) -> Stored:
    try:
        return part.image(position)
    except DataError:
        raise
    except FOREIGN as cause:
        raise DataError(one_line(cause)) from cause


def decode_all(part: Part, side: int) -> Iterator[Decoded | str]:
    """Each image in order, or the reason why it cannot be read; decoded on all cores."""

    def attempt(position: int) -> Decoded | str:
        try:
            return decode(part, position, side)
        except DataError as cause:
            return str(cause)

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(part), AHEAD):
            yield from pool.map(attempt, range(start, min(start + AHEAD, len(part))))


@dataclass(frozen=True)
class Streamed:
    """The images of a part, decoded each time they are used, to `shape`'s height and width (equal)."""

    part: Part
    shape: tuple[int, int, int]
    digest: str

    def read(self, rows: Sequence[int]) -> Tensor:
        """The images at `rows`. Raises DataError with the name of one that cannot be read."""
        images = torch.empty((len(rows), *self.shape), dtype=torch.uint8)
        for image, row in zip(images, rows, strict=True):
            try:
                image.copy_(decode(self.part, row, self.shape[-1]).pixels)
            except DataError as reason:
                raise DataError(
                    f"{self.part.place(row)} cannot be read as an image ({reason}); remove it"
                ) from None
        return images


@dataclass
class Outcome:
    """What was found while images were decoded, by their number: unreadable, converted, very thin."""

    unreadable: dict[int, str] = field(default_factory=dict)  # with the reason
    converted: Counter[str] = field(default_factory=Counter)
    thin: dict[int, tuple[int, int]] = field(default_factory=dict)  # with width and height

    def add(self, number: int, found: Decoded | str, side: int) -> None:
        """What was found in one image."""
        if isinstance(found, str):
            self.unreadable[number] = found
            return
        self.converted.update(found.converted)
        if is_thin(found.size, side):
            self.thin[number] = found.size

    def include(self, other: "Outcome") -> None:
        """The same for what was found in other images."""
        self.unreadable |= other.unreadable
        self.converted.update(other.converted)
        self.thin |= other.thin


def decoded_in_memory(part: Part, side: int) -> tuple[Tensor, list[int], Outcome]:
    """The images that can be read, uint8 (N, 3, side, side), their positions, and what was found."""
    images = torch.empty((len(part), 3, side, side), dtype=torch.uint8)
    outcome = Outcome()
    rows: list[int] = []
    with progress_bar("reading images", len(part)) as advance:
        for number, found in enumerate(decode_all(part, side)):
            outcome.add(number, found, side)
            if not isinstance(found, str):
                images[len(rows)] = found.pixels
                rows.append(number)
            advance("")
    return images[: len(rows)], rows, outcome
