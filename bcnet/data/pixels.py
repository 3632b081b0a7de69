"""Images that stay on disk until they are used: in one file of decoded pixels, or as stored.

In: a source and rows of it. Out: their pixels, uint8 (N, C, H, W).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from bcnet.errors import DataError


class PixelSource(Protocol):
    """Where images lie."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of each."""

    @property
    def digest(self) -> str:
        """A hash that tells whether the images have changed."""

    def read(self, rows: Sequence[int]) -> Tensor:
        """The images at `rows`, uint8 (N, C, H, W). Raises DataError if one cannot be read."""


@dataclass(frozen=True)
class DecodedFile:
    """A file of decoded images, one after the other (see `data/image_cache.py`).

    It is read, not mapped: mapped pages would count as the process's memory. The file stays open, so that
    removing it does not disturb a process that uses it.
    """

    path: Path
    shape: tuple[int, int, int]
    digest: str

    def read(self, rows: Sequence[int]) -> Tensor:
        """The images at `rows`. Raises DataError."""
        images = torch.empty((len(rows), *self.shape), dtype=torch.uint8)
        size = images[0].numel() if len(rows) else 0
        for image, row in zip(images, rows, strict=True):
            try:
                count = os.preadv(self._file, [memoryview(image.numpy()).cast("B")], row * size)
            except OSError as cause:
                raise DataError(f"{self.path} cannot be read ({cause.strerror})") from None
            if count < size:
                raise DataError(f"{self.path} is cut short: remove its folder, and it is made again")
        return images

    @cached_property
    def _file(self) -> int:
        return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: it opens the file itself."""
        return {name: value for name, value in self.__dict__.items() if name != "_file"}


@dataclass(frozen=True, eq=False)
class ImagesOnDisk:
    """Images of a source at `rows`, int64 (N,), which are read when needed."""

    source: PixelSource
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor | slice) -> "ImagesOnDisk":
        return ImagesOnDisk(self.source, self.rows[index])

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, channels, height, width)."""
        return len(self.rows), *self.source.shape

    def read(self) -> Tensor:
        """All of them, uint8 (N, C, H, W). Raises DataError if one cannot be read."""
        return self.source.read(self.rows.tolist())


def content_of(images: Tensor | ImagesOnDisk) -> bytes | memoryview:
    """What images are identified by: their pixels, or their source and rows."""
    if isinstance(images, Tensor):
        return images.contiguous().numpy().data
    return images.source.digest.encode() + images.rows.numpy().tobytes()
