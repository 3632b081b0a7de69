"""The processes that a command runs in, by torchrun or Slurm. In: environment variables. Out: `Processes`.

Every process calls the same command. The first one leads, measures and writes; the others train and score
with it, and what they write goes into copies of the run.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from bcnet.errors import UsageError
from bcnet.locks import Locked, locked
from bcnet.runs import Run

COPIES = "bcnet-run-"  # the beginning of the names of temporary folders for copies of runs
# The commands that spend their time training and scoring.
SEVERAL = "train", "search", "slice", "run", "bench"


@dataclass(frozen=True)
class Processes:
    """How many processes there are; which one this is, from 0, and which one on its machine."""

    size: int = 1
    rank: int = 0
    local_rank: int = 0

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Processes":
        """Those of torchrun's variables, else those of a Slurm step (`srun`). Raises UsageError."""
        slurm = {"WORLD_SIZE": "SLURM_STEP_NUM_TASKS", "RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID"}
        names = [name if "WORLD_SIZE" in environment else slurm[name] for name in slurm]
        if names[0] not in environment:
            return cls()
        try:
            size, rank, local_rank = (int(environment[name]) for name in names)
        except (KeyError, ValueError) as cause:
            raise UsageError(
                f"{cause.args[0]}: {', '.join(names)} must be set to integers, as by torchrun or srun"
            ) from None
        return cls(size, rank, local_rank)

    def __str__(self) -> str:
        """For messages."""
        return f"process {self.rank} of {self.size}"

    @property
    def first(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    @contextmanager
    def own_run(self, run: Run) -> Iterator[Run]:
        """The run itself in the first process; in the others a copy, which is removed after the block."""
        if self.first:
            yield run
            return
        with _copies_folder() as folder:
            copy = folder / run.folder.name
            if run.folder.exists():
                shutil.copytree(run.folder, copy)
            yield replace(run, folder=copy)


@contextmanager
def _copies_folder() -> Iterator[Path]:
    """A temporary folder, locked while it is in use; those that killed processes left are removed."""
    with ExitStack() as held:
        with locked(Path(tempfile.gettempdir()) / COPIES, wait=True):
            for left in Path(tempfile.gettempdir()).glob(f"{COPIES}*"):
                with suppress(Locked, OSError), locked(left):
                    shutil.rmtree(left)
            folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix=COPIES)))
            held.enter_context(locked(folder))
        yield folder


def these() -> Processes:
    """Those of this command."""
    return Processes.of(os.environ)


def cores() -> int:
    """How many cores of the processor this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def refuse_several(command: str) -> None:
    """Raise UsageError where several processes were started for a command that needs one."""
    if command not in SEVERAL and these().size > 1:
        *others, last = (f"`bcnet {name}`" for name in SEVERAL)
        raise UsageError(
            f"`bcnet {command}` runs in one process: start it without torchrun or srun; {', '.join(others)} "
            f"and {last} may run in several"
        )
