"""A part of a dataset: images in memory or on disk, or items of a custom Dataset, read when needed."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from bcnet.data.augment import moved, sent
from bcnet.data.pixels import ImagesOnDisk
from bcnet.errors import FOREIGN, DataError, one_line

if TYPE_CHECKING:
    from bcnet.data.stored import Part

IGNORED = 255  # the class of a mask's ignored pixels, including those that shifts uncover
Item = tuple[Any, Any]  # input, target


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) as uint8 and their targets: class indices (N,) as int64, or any tensor (N, ...).

    `images` are in memory, or on disk and read when needed. `names` are their file names, if there are any,
    and `originals` the images as they are stored; only `divided` keeps these. Images with the same number in
    `sources` (N,) were made from the same source, so they are not independent; without `sources`, all images
    are.
    """

    images: Tensor | ImagesOnDisk
    labels: Tensor
    names: tuple[str, ...] = ()
    sources: Tensor | None = None
    originals: "Part | None" = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def pixels(self) -> Tensor:
        """The images in memory, read now if they are on disk."""
        return self.images if isinstance(self.images, Tensor) else self.images.read()

    def take(self, index: Tensor) -> "Split":
        """The images at `index`."""
        sources = None if self.sources is None else self.sources[index]
        return Split(self.images[index], self.labels[index], sources=sources)

    def loaded(self, device: str = "cpu") -> "Split":
        """The same with the images in memory, on a device."""
        return Split(sent(self.pixels, device), sent(self.labels, device))

    @property
    def classified(self) -> bool:
        """Whether the targets are one class index per image."""
        return self.labels.ndim == 1 and self.labels.dtype == torch.int64

    @property
    def masked(self) -> bool:
        """Whether the targets are one class index per pixel."""
        whole = not (self.labels.is_floating_point() or self.labels.is_complex())
        return whole and self.labels.shape[1:] == self.images.shape[2:]

    @property
    def movable(self) -> bool:
        """Whether flip and shift can change the targets with the images."""
        return self.classified or self.masked

    def moved(self, flip: bool, shift: int, draws: Tensor) -> "Split":
        """Images, randomly mirrored and shifted (see `augment.moved`), and masks in the same way."""
        images = moved(self.pixels, flip, shift, draws)
        if not self.masked:
            return Split(images, self.labels)
        return Split(images, moved(self.labels[:, None], flip, shift, draws, fill=IGNORED)[:, 0])

    def item(self, position: int) -> Item:
        """One image (C, H, W), in memory already, with its target."""
        return self.pixels[position], self.labels[position]


@dataclass(frozen=True)
class Items:
    """The items at `index` of a custom Dataset, which are read when needed; `name` is for messages."""

    dataset: "Dataset[Any]"
    index: Tensor
    name: str

    def __len__(self) -> int:
        return len(self.index)

    def take(self, index: Tensor) -> "Items":
        """The subset of these items at `index`."""
        return replace(self, index=self.index[index])

    def item(self, position: int) -> Item:
        """(input, target), read now. Raises DataError with the number of an item that fails."""
        number = int(self.index[position])
        try:
            item = self.dataset[number]
        except FOREIGN as cause:
            raise DataError(f"item {number} of '{self.name}' cannot be read: {one_line(cause)}") from cause
        return pair(item, f"'{self.name}'")


def pair(value: Any, what: str) -> Item:
    """`value` as (input, target). Raises DataError, which names its source `what`."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise DataError(f"{what} must give (input, target), not {type(value).__name__}")
    return value[0], value[1]


def stratified(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random indices in two parts, the first of `count`, stratified by the classes (N,)."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    _, of, counts = torch.unique(labels[shuffled], return_inverse=True, return_counts=True)
    by_class = of.argsort(stable=True)
    # The relative position of each image within its class: taking the lowest ones takes the same fraction of
    # every class.
    position = torch.arange(len(of)) - (counts.cumsum(0) - counts)[of[by_class]]
    rank = torch.empty(len(of), dtype=torch.float64)
    rank[by_class] = (position.double() + 0.5) / counts[of[by_class]]
    order = shuffled[rank.argsort(stable=True)]
    return order[:count], order[count:]


def divided(part: Split | Items, count: int, seed: int) -> tuple[Split | Items, Split | Items]:
    """Two random parts, the first of `count`, stratified by class indices."""
    if isinstance(part, Split) and part.classified:
        first, rest = stratified(part.labels, count, seed)
    else:
        shuffled = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))
        first, rest = shuffled[:count], shuffled[count:]
    return _taken(part, first), _taken(part, rest)


def _taken(part: Split | Items, index: Tensor) -> Split | Items:
    taken = part.take(index)
    if not isinstance(part, Split) or not isinstance(taken, Split) or not part.names:
        return taken
    originals = None if part.originals is None else part.originals.take(index)
    return replace(taken, names=tuple(part.names[i] for i in index.tolist()), originals=originals)


def shared_out(part: Split | Items, count: int) -> list[Split | Items]:
    """Divide into `count` random parts of equal size, up to one image, stratified by class indices.

    Taking every nth image would not work: splits are sorted by classes in turn, so a part could miss classes.
    """
    parts = []
    for left in range(count, 1, -1):
        own, part = divided(part, len(part) // left, 0)
        parts.append(own)
    return [*parts, part]
