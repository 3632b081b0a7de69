"""Training, validation and test data, and batches of them. In: parts of a dataset. Out: (inputs, targets).

The validation part scores candidates; the test part is never used for decisions.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.data import default_collate

from bcnet.data.augment import item_draws
from bcnet.data.loader import Loader
from bcnet.data.pictures import pixels_of
from bcnet.data.pixels import content_of
from bcnet.data.presets import Preset, preset
from bcnet.data.splits import Item, Items, Split, pair
from bcnet.data.stored import Found
from bcnet.errors import DataError, one_line
from bcnet.plain import counted
from bcnet.seeds import seeded
from bcnet.space.inputs import to_device
from bcnet.user_code import UserFunction, code_of

Transforms = Callable[[Any, Any], Item]

# Maximum number of items that are scored at once, on a CPU and on a GPU, and of values in their inputs.
EVALUATED = 256
EVALUATED_CUDA = 2048
PIXELS = 2**25
DIGESTED = 256  # number of items of a Dataset whose digest shows whether it has changed


@dataclass(frozen=True)
class ImageData:
    """A dataset. `mean` and `std` are per channel, of pixels scaled to 0..1; final inputs have none.

    `stated`: whether they were given, rather than computed from the training images. `colour`: "RGB" or
    "grey" if known. `transforms(input, target)` changes each training item, `eval_transforms` each other one;
    `collate(items)` makes (inputs, targets). `augment` names what augments training images with class indices
    or masks: a preset, or "light", `flip` and `shift` (in pixels). `stored` describes what stores the images.
    `workers` processes read what is not in memory.
    """

    train: Split | Items
    val: Split | Items
    test: Split | Items
    classes: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    transforms: Transforms | None = None
    eval_transforms: Transforms | None = None
    collate: Callable[[list[Item]], Item] | None = None
    stored: Found | None = None
    colour: str | None = None
    stated: bool = False
    augment: str = "light"
    flip: bool = False
    shift: int = 0
    workers: int = 0

    def __str__(self) -> str:
        """For people: how many images or items there are, and what was found where they are stored."""
        parts = ((self.train, "training"), (self.val, "validation"), (self.test, "test"))
        what = "images" if isinstance(self.train, Split) else "items"
        counts = ", ".join(f"{len(part):,} {name}" for part, name in parts)
        classes = f"; {counted(len(self.classes), 'class', 'classes')}" if self.classes else ""
        return f"{counts} {what}{classes}" + (f"; {self.stored}" if self.stored else "")

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
        inputs, _ = self.batch(self.train.take(torch.zeros(count, dtype=torch.int64)))
        return tree_map_only(Tensor, lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype), inputs)

    def with_statistics(self, mean: tuple[float, ...], std: tuple[float, ...]) -> "ImageData":
        """The same data, normalised with the statistics that a network was trained with. Raises DataError."""
        if not self.mean:
            raise DataError(
                "data.mean normalises images; a Dataset's inputs are final, except PIL images without "
                "data.collate: remove it"
            )
        if len(mean) != self.input_shape[0]:
            raise DataError(f"data.mean has {len(mean)} channels, the images have {self.input_shape[0]}")
        return replace(self, mean=mean, std=std, stated=True)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> float32, channels-last, with zero mean and unit deviation."""
        mean, std = _of_pixels(self.mean, images.device), _of_pixels(self.std, images.device)
        pixels = images.to(torch.float32, copy=True).sub_(mean).div_(std)  # in place: half the time on a CPU
        return pixels.contiguous(memory_format=torch.channels_last)

    def batch(self, part: Split | Items, numbers: Tensor | None = None, device: str = "cpu") -> Item:
        """(inputs, targets) of a whole part, on `device`: normalised images, or a Dataset's items.

        They are changed by `eval_transforms`, as all that is not for training.

        Random numbers of custom functions depend on an item's number only: `numbers` (N,), by default from 0.
        """
        numbers = torch.arange(len(part)) if numbers is None else numbers
        return self._joined(part, numbers, (), self.eval_transforms, device)

    def items(
        self, part: Split | Items, numbers: Tensor, seeds: tuple[int, ...], transforms: Transforms | None
    ) -> list[Item]:
        """(input, target) of each item of a part, changed by `transforms`, not yet normalised."""
        items = []
        for position, number in enumerate(numbers.tolist()):
            with seeded(*seeds, number):
                item = part.item(position)
                if transforms is not None:
                    evaluated = transforms is self.eval_transforms
                    name = "data.eval_transforms" if evaluated else "data.transforms"
                    item = pair(transforms(*item), name)
            items.append(item)
        return items

    def augmented(
        self, part: Split | Items, numbers: Tensor, seeds: tuple[int, int], device: str = "cpu"
    ) -> Item:
        """A training batch: `batch` of augmented images, with `transforms`.

        Augmentation and the random numbers of custom functions depend on the `seeds`, e.g. the recipe's and
        the epoch, and on an item's number; not on dropout, other items or the process.
        """
        return self.finished(self._prepared(part, numbers, seeds), numbers, seeds, device)

    def read(self, numbers: Tensor, seeds: tuple[int, int]) -> Split | Item:
        """What a worker process does for a training batch: all, or, of plain images, each one's part."""
        return self._prepared(self.train.take(numbers), numbers, seeds)

    def finished(self, read: Split | Item, numbers: Tensor, seeds: tuple[int, int], device: str) -> Item:
        """The training batch of what `read` gave, on a device."""
        if isinstance(read, Split):
            moved = self._moved(read.loaded(device), numbers, seeds)
            return self._mixed(self._joined(moved, numbers, seeds, None, device), numbers, seeds)
        inputs, targets = read
        return to_device(inputs, device), to_device(targets, device)

    def _prepared(self, part: Split | Items, numbers: Tensor, seeds: tuple[int, int]) -> Split | Item:
        if isinstance(part, Split):
            part = self._preset.changed(part, numbers, seeds) if self._preset else part.loaded()
            if self._plain:
                return part
            part = self._moved(part, numbers, seeds)
        return self._mixed(self._joined(part, numbers, seeds, self.transforms, "cpu"), numbers, seeds)

    def _moved(self, part: Split, numbers: Tensor, seeds: tuple[int, int]) -> Split:
        if self.augment != "light" or not (part.movable and (self.flip or self.shift)):
            return part
        return part.moved(self.flip, self.shift, item_draws(*seeds, numbers, 3))

    def _mixed(self, batch: Item, numbers: Tensor, seeds: tuple[int, int]) -> Item:
        return self._preset.mixed(batch, numbers, seeds) if self._preset else batch

    @cached_property
    def _preset(self) -> Preset | None:
        if not isinstance(self.train, Split):
            return None
        return preset(self.augment, self.input_shape, self.mean, len(self.classes))

    @property
    def needs_workers(self) -> bool:
        """Whether making a batch is more than normalising and shifting images in memory."""
        in_memory = isinstance(self.train, Split) and isinstance(self.train.images, Tensor)
        plain = self._plain and self.eval_transforms is None and self._preset is None
        return not (in_memory and plain)

    @property
    def _plain(self) -> bool:
        """Whether no custom function makes batches: such functions get tensors on the CPU."""
        return self.transforms is None and self.collate is None

    def _joined(
        self,
        part: Split | Items,
        numbers: Tensor,
        seeds: tuple[int, ...],
        transforms: Transforms | None,
        device: str,
    ) -> Item:
        in_memory = isinstance(part, Split)
        if isinstance(part, Split):
            plain = transforms is None and self.collate is None
            part = part.loaded(device if plain else "cpu")
            if plain:
                return self.normalise(part.pixels), part.labels
        items = [
            (self._input(own, pixels=in_memory), self._target(target))
            for own, target in self.items(part, numbers, seeds, transforms)
        ]
        if self.collate is not None:
            with seeded(*seeds, int(numbers[0])):
                inputs, targets = pair(self.collate(items), "data.collate")
        else:
            try:
                inputs, targets = (_as_tuple(items[0][i], v) for i, v in enumerate(default_collate(items)))
            except (RuntimeError, TypeError, ValueError, KeyError) as cause:
                where = " in data.transforms and data.eval_transforms" if self.mean else ""
                raise DataError(
                    f"items cannot be joined into a batch ({one_line(cause)}); give tensors of one shape"
                    f"{where}, or set data.collate"
                ) from cause
        return to_device(tree_map_only(Tensor, _channels_last, inputs), device), to_device(targets, device)

    def _input(self, value: Any, *, pixels: bool) -> Any:
        """An input as the network takes it: `pixels` normalised, of a Dataset those of PIL images."""
        if isinstance(value, Image.Image) and self.mean:
            value = pixels_of(value, grey=self.colour == "grey")
        elif not pixels and not (self.mean and isinstance(value, Tensor) and value.dtype == torch.uint8):
            return value
        return self.normalise(value[None])[0]

    def _target(self, value: Any) -> Any:
        """A PIL image as a target is a mask: its pixels' values, (H, W), palette indices as they are."""
        if isinstance(value, Image.Image) and self.collate is None:
            return torch.from_numpy(np.array(value))
        return value

    def batches(self, part: Split | Items, size: int) -> Iterator[Item]:
        """Batches of a part in order, without transforms."""
        numbers = torch.split(torch.arange(len(part)), size)

        def read(own: Tensor) -> Item:
            return self.batch(part.take(own), own)

        with Loader(read, self.workers if len(numbers) > 1 else 0) as load:
            yield from load(numbers)

    def digest(self) -> str:
        """Every image and target, or some items of a Dataset and its code; the classes' names.

        Images on disk count by the digest of their source.
        """
        found = sha256(repr(self.classes).encode())
        if self.eval_transforms is not None:
            function = self.eval_transforms
            found.update(
                code_of(function.function if isinstance(function, UserFunction) else function).encode()
            )
        if self.stated:
            found.update(repr((self.mean, self.std)).encode())
        for part in (self.train, self.val, self.test):
            if isinstance(part, Split):
                found.update(repr(tuple(part.images.shape)).encode())
                found.update(part.labels.contiguous().numpy().tobytes())
                found.update(content_of(part.images))
                continue
            found.update(repr(part.index.tolist()).encode() + code_of(type(part.dataset)).encode())
            some = torch.linspace(0, len(part) - 1, min(len(part), DIGESTED)).round().long()
            chosen = part.take(some)
            with seeded(0):
                items = [chosen.item(position) for position in range(len(chosen))]
            for leaf in tree_leaves(items):
                found.update(_content(leaf))
        return found.hexdigest()[:16]


@lru_cache(maxsize=16)
def _of_pixels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Values per channel for pixels of 0 to 255, (1, C, 1, 1), copied to a GPU only once."""
    return torch.tensor(values, device=device).view(1, -1, 1, 1) * 255


def _content(leaf: object) -> bytes:
    if isinstance(leaf, Image.Image):
        leaf = np.asarray(leaf)
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
