"""`--processes N` or `--gpus N`: start a command in several processes here, by PyTorch's launcher.

In: what was typed. Out: the exit code of the processes; where one was killed, one line that says which.
"""

import logging
import os
import signal
import sys
from typing import Annotated

import typer

from bcnet.commands.options import Given
from bcnet.errors import TrainingError, UsageError
from bcnet.plain import counted
from bcnet.processes import cores, these

InProcesses = Annotated[
    int | None,
    typer.Option(
        "--processes",
        "--gpus",
        metavar="N",
        min=1,
        help="Run in N processes on this machine, each with a GPU of its own, or on a machine without GPUs "
        "with a share of the processor's cores.",
    ),
]


def start_processes(context: typer.Context, given: Given, count: int | None) -> None:
    """Start the command that was typed in `count` processes, and end with their exit code.

    Returns in each of them, and where none are asked for. Raises ConfigError for the file, UsageError where
    there are fewer GPUs, TrainingError where one of the processes was killed.
    """
    own = these()
    if own.size > 1 and count not in (None, own.size):
        raise UsageError(f"--processes {count}: {own.size} were started already, by torchrun or srun")
    if count in (None, 1, own.size):
        return
    given.config()  # an error is reported once, and not by each process
    import torch  # here, since help needs no torch

    gpus = torch.cuda.device_count()
    if gpus and count > gpus:
        raise UsageError(
            f"--processes {count}: this machine has {counted(gpus, 'GPU')}, one for each "
            "process; CUDA_VISIBLE_DEVICES= uses the processor's cores"
        )
    raise typer.Exit(_run(count, context.find_root().obj))


def _run(count: int, arguments: list[str]) -> int:
    """Run `bcnet` with these arguments in so many processes; their exit code."""
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // count)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=f"bcnet-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )
    logging.disable()  # its reports, of many lines: every process says itself what went wrong
    try:
        elastic_launch(config, sys.executable)("-m", "bcnet", *arguments)
    except ChildFailedError as failed:
        rank, first = failed.get_first_failure()
        if first.exitcode >= 0:
            return first.exitcode
        how = f"process {rank} of {count} was ended by {signal.Signals(-first.exitcode).name}"
        raise TrainingError(f"{how}; finished work is kept, run the same command again") from None
    except SignalException as received:
        if received.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        return 128 + received.sigval
    finally:
        logging.disable(logging.NOTSET)
    return 0
