"""Training batches in shuffled order. In: data. Out: (inputs, targets) of each epoch, on a device."""

from collections.abc import Iterator

import torch
from torch import Tensor

from bcnet.data.image_data import ImageData
from bcnet.data.loader import Loader
from bcnet.data.splits import Item, Split
from bcnet.errors import DataError

Key = tuple[Tensor, tuple[int, int]]  # numbers of items; seed and epoch


class TrainingBatches:
    """The training batches of each epoch, augmented, in shuffled order, on the training device.

    Processes that read end with the block. `share` is (which, of how many): of each batch, only one of so
    many equal parts is read.
    """

    def __init__(
        self, data: ImageData, batch_size: int, seed: int, device: str, share: tuple[int, int] = (0, 1)
    ) -> None:
        self._data, self._batch_size, self._seed, self._device = data, batch_size, seed, device
        self._share = share
        self._loader = Loader[Key, Split | Item](lambda key: data.read(*key), data.workers)

    def __enter__(self) -> "TrainingBatches":
        return self

    def __exit__(self, *_: object) -> None:
        self._loader.__exit__()

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Item]:
        """(inputs, targets) of each batch from number `first` on; those before it are not read.

        A small last one would disturb batch norm: it is left out.
        Raises DataError where a batch cannot be divided into so many equal parts.
        """
        generator = torch.Generator().manual_seed(self._seed * 100_003 + epoch)
        count = len(self._data.train)
        size = min(self._batch_size, count)
        which, parts = self._share
        if size % parts:
            raise DataError(f"a batch of {size} images has no {parts} equal parts: set train.batch_size")
        order = torch.randperm(count, generator=generator)[: count // size * size]
        order = order.view(-1, parts, size // parts)[first:, which]
        seeds = self._seed, epoch
        read = self._loader((numbers, seeds) for numbers in order)
        for numbers, batch in zip(order, read, strict=True):
            yield self._data.finished(batch, numbers, seeds, self._device)
