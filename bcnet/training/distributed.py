"""Several processes, connected. Where they train together, each has its share of every batch.

In: gradients and losses of a share. Out: their means over all processes, the same in each. Widths, batches
and random numbers of augmentation are drawn from seeds, so nothing else has to be sent.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from bcnet.errors import ProcessEnded, TrainingError
from bcnet.processes import Processes

T = TypeVar("T")

PORT = 29_000  # of the first process under Slurm, plus a number of the job
CONNECTING, STEP = timedelta(minutes=10), timedelta(minutes=10)  # waits for others: to come, for a result
ENDED = "another process of this command ended; run the same command again to continue"

_store: Any = None  # of the connected processes
_sharing = True  # whether connected processes train together


@contextmanager
def together(processes: Processes) -> Iterator[None]:
    """Connect the processes for the block. Raises TrainingError if one of them does not come."""
    global _store
    if processes.size == 1:
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(processes.local_rank)
    if "MASTER_ADDR" not in os.environ:
        os.environ |= _slurm_address(os.environ.get("SLURM_STEP_NODELIST", "localhost"))
    try:
        _store, *_ = next(rendezvous("env://", processes.rank, processes.size, timeout=CONNECTING))
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(
            backend, store=_store, rank=processes.rank, world_size=processes.size, timeout=STEP
        )
    except (RuntimeError, ValueError) as cause:
        raise TrainingError(f"the {processes.size} processes could not connect ({cause})") from cause
    try:
        yield
    finally:
        dist.destroy_process_group()
        _store = None


def connected() -> Processes:
    """The connected processes; one where none are connected."""
    return Processes(dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else Processes()


def world() -> Processes:
    """The processes that train together now."""
    return connected() if _sharing else Processes()


@contextmanager
def sharing_batches(shared: bool) -> Iterator[None]:
    """In the block, connected processes train together, or each trains alone."""
    global _sharing
    before, _sharing = _sharing, shared
    try:
        yield
    finally:
        _sharing = before


class Board:
    """Values by key that all connected processes read and write. Raises ProcessEnded if the first ended."""

    def __init__(self) -> None:
        assert _store is not None
        self._store = _store

    def put(self, key: str, value: bytes) -> None:
        """Write a value."""
        with _or_ended():
            self._store.set(key, value)

    def has(self, key: str) -> bool:
        """Whether there is a value."""
        with _or_ended():
            return bool(self._store.check([key]))

    def take(self, key: str) -> bytes:
        """Read a value that is there, and remove it."""
        with _or_ended():
            value = bytes(self._store.get(key))
            self._store.delete_key(key)
            return value

    def read(self, key: str) -> bytes:
        """Read a value that is there."""
        with _or_ended():
            return bytes(self._store.get(key))

    def add(self, key: str, count: int) -> int:
        """Add to a number, 0 at first, and return the sum: no two processes get the same."""
        with _or_ended():
            return int(self._store.add(key, count))


def average(tensors: Sequence[Tensor]) -> None:
    """Replace floating-point tensors by their means over all processes, sent as one buffer of each type.

    Raises ProcessEnded if another process has.
    """
    size = world().size
    if size == 1:
        return
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        own = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.detach().flatten() for tensor in own])
        with _or_ended():
            dist.all_reduce(flat)
        flat /= size
        start = 0
        for tensor in own:
            tensor.detach().copy_(flat[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()


def same_as_first(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by those of the first process."""
    if world().size == 1:
        return
    for tensor in tensors:
        with _or_ended():
            dist.broadcast(tensor.detach(), 0)


def gathered(value: T) -> list[T]:
    """The values that all processes passed, by rank, the same list in each. They are sent as pickles."""
    size = world().size
    if size == 1:
        return [value]
    found: list[Any] = [None] * size
    with _or_ended():
        dist.all_gather_object(found, value)
    return found


def wait_for_all() -> None:
    """Return when all processes have called this: asleep, on a GPU, too."""
    if connected().size > 1:
        with _or_ended():
            dist.all_reduce(torch.zeros(1))


@contextmanager
def _or_ended() -> Iterator[None]:
    try:
        yield
    except RuntimeError as cause:  # gloo's, and torch.distributed.DistBackendError of NCCL
        raise ProcessEnded(ENDED) from cause


def _slurm_address(nodes: str) -> dict[str, str]:
    """Where the first process of a Slurm step is, e.g. of the nodes "gpu[03-05,9]": gpu03."""
    prefix, _, numbers = nodes.split(",")[0].partition("[")
    first = prefix + numbers.split("-")[0].rstrip("]")
    port = PORT + int(os.environ.get("SLURM_JOB_ID", 0)) % 1000
    return {"MASTER_ADDR": first, "MASTER_PORT": str(port)}
