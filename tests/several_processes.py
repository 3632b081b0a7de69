"""Several processes as torchrun starts them, forked from one server that has loaded everything."""

import multiprocessing
import os
import pickle
import signal
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from bcnet.errors import BcnetError
from bcnet.processes import these
from bcnet.training.distributed import together


def as_by_torchrun(count: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(rank, *arguments)` returns in each process, or the BcnetError that it raises.

    None of a killed process. They are forked from a server, since autograd may have been used here.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bcnet.pipeline.stage"])
    pipes, processes = [], []
    for rank in range(count):
        reading, writing = context.Pipe(duplex=False)
        own = address | {"WORLD_SIZE": str(count), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(context.Process(target=_process, args=(own, writing, work, arguments)))
        processes[-1].start()
        writing.close()
        pipes.append(reading)
    found = []
    for reading, process in zip(pipes, processes, strict=True):
        try:
            found.append(pickle.loads(reading.recv_bytes()))
        except EOFError:
            found.append(None)
        process.join()
    return found


def in_processes(count: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """The same, where the processes are connected already."""
    return as_by_torchrun(count, _connected, work, *arguments)


def _connected(rank: int, work: Callable[..., Any], *arguments: Any) -> Any:
    with together(these()):
        return work(rank, *arguments)


def _process(environment: dict[str, str], pipe: Connection, work: Callable[..., Any], arguments: Any) -> None:
    os.environ |= environment
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by the server
    torch.set_num_threads(1)
    found: Any
    try:
        found = work(these().rank, *arguments)
    except BcnetError as error:
        found = error
    pipe.send_bytes(pickle.dumps(found))
