"""Square images of one size from image files. In: paths, a side in pixels. Out: pixels, and what was done."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bcnet.data.pictures import is_thin, read_picture, squared
from bcnet.errors import DataError
from bcnet.progress import progress_bar

DECODING = 1  # raised when the same file gives other pixels than before
AHEAD = 256  # images that are decoded before the first of them is used


class Decoded(NamedTuple):
    """An image as it is used, uint8 (3, side, side), its width and height in the file, its conversions."""

    pixels: Tensor
    size: tuple[int, int]
    converted: tuple[str, ...]


def decode(path: Path, side: int) -> Decoded:
    """The image of a file (see `read_picture`, `squared`). Raises DataError with the reason."""
    picture = read_picture(path)
    pixels = np.array(squared(picture.image, side))
    return Decoded(torch.from_numpy(pixels).permute(2, 0, 1), picture.image.size, picture.converted)


def decode_all(paths: Sequence[Path], side: int) -> Iterator[Decoded | str]:
    """Each file's image in order, or the reason why it cannot be read; decoded on all cores."""

    def attempt(path: Path) -> Decoded | str:
        try:
            return decode(path, side)
        except DataError as cause:
            return str(cause)

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), AHEAD):
            yield from pool.map(attempt, paths[start : start + AHEAD])


@dataclass
class Outcome:
    """What was found while files were decoded, by their number: unreadable, converted, very thin."""

    unreadable: dict[int, str] = field(default_factory=dict)  # with the reason
    converted: Counter[str] = field(default_factory=Counter)
    thin: dict[int, tuple[int, int]] = field(default_factory=dict)  # with width and height

    def add(self, number: int, found: Decoded | str, side: int) -> None:
        """What was found in one file."""
        if isinstance(found, str):
            self.unreadable[number] = found
            return
        self.converted.update(found.converted)
        if is_thin(found.size, side):
            self.thin[number] = found.size

    def include(self, other: "Outcome") -> None:
        """The same for what was found in other files."""
        self.unreadable |= other.unreadable
        self.converted.update(other.converted)
        self.thin |= other.thin


def decoded_in_memory(paths: Sequence[Path], side: int) -> tuple[Tensor, list[int], Outcome]:
    """The images that can be read, uint8 (N, 3, side, side), their files' numbers, and what was found."""
    images = torch.empty((len(paths), 3, side, side), dtype=torch.uint8)
    outcome = Outcome()
    rows: list[int] = []
    with progress_bar("reading images", len(paths)) as advance:
        for number, found in enumerate(decode_all(paths, side)):
            outcome.add(number, found, side)
            if not isinstance(found, str):
                images[len(rows)] = found.pixels
                rows.append(number)
            advance("")
    return images[: len(rows)], rows, outcome
