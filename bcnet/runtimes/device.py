"""Devices, which execute jobs: this machine, or another one over ssh. In: a job. Out: its answer."""

from collections.abc import Mapping
from typing import Any, Protocol

from bcnet.agent import jobs
from bcnet.agent.errors import JobError
from bcnet.errors import BcnetError, DeviceError, NetworkError
from bcnet.runtimes.answers import checked

Job = Mapping[str, Any]


class Device(Protocol):
    """A machine that executes jobs (see `bcnet.agent.jobs`); their `bytes` are files and arrays."""

    @property
    def workers(self) -> int:
        """The number of jobs that can be executed at once, by `call` from one thread each."""

    def call(self, job: Job, limit_s: float) -> dict[str, Any]:
        """Execute one job with a time limit in seconds. Raises DeviceError or NetworkError if it fails."""


class LocalDevice:
    """This machine, this process."""

    workers = 1

    def call(self, job: Job, limit_s: float) -> dict[str, Any]:
        """Execute one job. The limit is not enforced: the runtime's calls cannot be interrupted."""
        try:
            answer = jobs.run(dict(job))
        except JobError as error:
            raise error_of(error.kind, error.message) from None
        return checked("this machine", job, answer)


def error_of(kind: str, message: str) -> BcnetError:
    """The error for a JobError of that kind."""
    return NetworkError(message) if kind == "network" else DeviceError(message)
