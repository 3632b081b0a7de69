"""Batches that are read ahead of their use, by PyTorch's DataLoader and its worker processes.

In: a function that reads a batch, and what it is called with. Out: the batches, in that order. What is read
depends neither on the number of workers nor on which of them reads it.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from bcnet.errors import BcnetError, DataError
from bcnet.processes import cores

Key = TypeVar("Key")
Batch = TypeVar("Batch")
MOST_WORKERS = 8


def worker_count() -> int:
    """How many processes read, if nothing is configured: one core is left for the training itself."""
    return min(cores() - 1, MOST_WORKERS)


class Loader(Generic[Key, Batch]):
    """Reads batches with `read(key)`, in so many processes, which stay for all calls; in this one if 0.

    The processes end with the block: left to the garbage collector, they would end while an interruption is
    lost, or inside of another loader's process.
    """

    def __init__(self, read: Callable[[Key], Batch], workers: int) -> None:
        self._keys = _Keys[Key]()
        with _any_number_of_workers():
            self._loader = DataLoader(
                _Batches(read),
                batch_size=None,
                sampler=self._keys,
                collate_fn=_unchanged,
                num_workers=workers,
                persistent_workers=workers > 0,
                generator=torch.Generator(),  # the default one would be advanced
            )

    def __call__(self, keys: Iterable[Key]) -> Iterator[Batch]:
        """The batch of each key. Raises what `read` raises; DataError if a worker process ends."""
        self._keys.keys = keys
        with _any_number_of_workers():
            batches = iter(self._loader)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as cause:
                if "DataLoader worker" not in str(cause):
                    raise
                raise DataError(
                    "a process that reads data ended; if memory or shared memory is short, lower data.workers"
                ) from cause
            if isinstance(batch, _Failed):
                raise batch.error
            yield batch

    def __enter__(self) -> "Loader[Key, Batch]":
        return self

    def __exit__(self, *_: object) -> None:
        iterator, self._loader._iterator = self._loader._iterator, None
        if iterator is not None and self._loader.num_workers:
            iterator._shutdown_workers()  # type: ignore[attr-defined]


@contextmanager
def _any_number_of_workers() -> Iterator[None]:
    """Without DataLoader's warning where more processes than cores are configured."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        yield


class _Keys(Sampler[Key]):
    keys: Iterable[Key] = ()

    def __iter__(self) -> Iterator[Key]:
        return iter(self.keys)


class _Failed:
    """An error of a worker process: raised there, its message would hold a traceback."""

    def __init__(self, error: BcnetError) -> None:
        self.error = error


class _Batches(Dataset[Any]):
    def __init__(self, read: Callable[[Any], Any]) -> None:
        self._read = read

    def __getitem__(self, key: Any) -> Any:
        try:
            return self._read(key)
        except BcnetError as error:
            return _Failed(error)


def _unchanged(batch: Any) -> Any:
    return batch
