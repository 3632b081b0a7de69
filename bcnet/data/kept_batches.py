"""Batches that are read once and kept for repeated scoring. In: a part of the data. Out: its batches."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from bcnet.data.image_data import ImageData
from bcnet.data.splits import Item, Items, Split
from bcnet.space.inputs import to_device

KEPT_BYTES = 2**30  # maximum size of batches that are kept


class KeptBatches:
    """`ImageData.batches` of a part, equal in size, read once and kept for repeated iteration.

    With `augmented`, they are training batches, the same in each iteration. Inputs are kept on `device`,
    targets on the CPU. Batches that do not fit into `room` bytes, or that a custom metric has changed, are
    read again.
    """

    def __init__(
        self,
        data: ImageData,
        part: Split | Items,
        room: int = KEPT_BYTES,
        device: str = "cpu",
        *,
        augmented: bool = False,
    ) -> None:
        self._data, self._part, self._room, self._device = data, part, room, device
        self._augmented = augmented
        count = math.ceil(len(part) / data.evaluated_on(device))
        self._size = math.ceil(len(part) / max(count, 1))
        self._kept: dict[int, tuple[Item, list[int]]] = {}

    def __iter__(self) -> Iterator[Item]:
        for start in range(0, len(self._part), self._size):
            batch, versions = self._kept.get(start, (None, []))
            if batch is None or versions != _versions(batch):
                inputs, targets = self._read(start)
                batch = inputs, to_device(targets, "cpu")
                size_bytes = sum(leaf.nbytes for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))
                if start in self._kept or size_bytes <= self._room:
                    self._room -= 0 if start in self._kept else size_bytes
                    self._kept[start] = batch, _versions(batch)
            yield batch

    def _read(self, start: int) -> Item:
        numbers = torch.arange(start, min(start + self._size, len(self._part)))
        part = self._part.take(numbers)
        if self._augmented:
            return self._data.augmented(part, numbers, (0, 0), self._device)
        return self._data.batch(part, numbers, self._device)


def _versions(tree: Any) -> list[int]:
    """How often each tensor was changed in place."""
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]
