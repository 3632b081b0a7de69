"""Training in several processes: each computes the gradients of its share of every batch.

In: gradients and losses of a share. Out: their means over all processes, the same in each. Widths, batches
and random numbers of augmentation are drawn from seeds, so nothing else has to be sent.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from bcnet.errors import TrainingError
from bcnet.processes import Processes

PORT = 29_000  # of the first process under Slurm, plus a number of the job


@contextmanager
def together(processes: Processes) -> Iterator[None]:
    """Connect the processes for the block. Raises TrainingError if one of them does not come."""
    if processes.size == 1:
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(processes.local_rank)
    if "MASTER_ADDR" not in os.environ:
        os.environ |= _slurm_address(os.environ.get("SLURM_STEP_NODELIST", "localhost"))
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            rank=processes.rank,
            world_size=processes.size,
            timeout=timedelta(minutes=10),
        )
    except (RuntimeError, ValueError) as cause:
        raise TrainingError(f"the {processes.size} processes could not connect ({cause})") from cause
    try:
        yield
    finally:
        dist.destroy_process_group()


def world() -> Processes:
    """The connected processes; one where none are connected."""
    return Processes(dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else Processes()


def average(tensors: Sequence[Tensor]) -> None:
    """Replace floating-point tensors by their means over all processes, sent as one buffer of each type.

    Raises TrainingError if another process has ended.
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


def wait_for_all() -> None:
    """Return when all processes have called this."""
    if world().size > 1:
        with _or_ended():
            dist.barrier()


@contextmanager
def _or_ended() -> Iterator[None]:
    try:
        yield
    except RuntimeError as cause:  # gloo's, and torch.distributed.DistBackendError of NCCL
        raise TrainingError(
            "another process of this training ended; run the same command again to continue"
        ) from cause


def _slurm_address(nodes: str) -> dict[str, str]:
    """Where the first process of a Slurm step is, e.g. of the nodes "gpu[03-05,9]": gpu03."""
    prefix, _, numbers = nodes.split(",")[0].partition("[")
    first = prefix + numbers.split("-")[0].rstrip("]")
    port = PORT + int(os.environ.get("SLURM_JOB_ID", 0)) % 1000
    return {"MASTER_ADDR": first, "MASTER_PORT": str(port)}
