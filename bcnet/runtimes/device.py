"""Where jobs are done: this machine, or one that is reached over ssh. In: a job. Out: its answer."""

from collections.abc import Mapping
from typing import Any, Protocol

from bcnet.agent import jobs
from bcnet.agent.errors import JobError
from bcnet.errors import BcnetError, DeviceError, NetworkError
from bcnet.runtimes.answers import checked

Job = Mapping[str, Any]


class Device(Protocol):
    """A machine that does jobs (see `bcnet.agent.jobs`); `bytes` in jobs and answers are files and arrays."""

    @property
    def workers(self) -> int:
        """How many jobs can be done at once; `call` may be used from as many threads."""

    def call(self, job: Job, limit_s: float) -> dict[str, Any]:
        """Do one job, in at most so many seconds. Raises DeviceError, NetworkError where it fails."""


class LocalDevice:
    """This machine, this process."""

    workers = 1

    def call(self, job: Job, limit_s: float) -> dict[str, Any]:
        """Do one job. The limit is not held: the runtime's calls do not come back before they end."""
        try:
            answer = jobs.run(dict(job))
        except JobError as error:
            raise error_of(error.kind, error.message) from None
        return checked("this machine", job, answer)


def error_of(kind: str, message: str) -> BcnetError:
    """The error that a JobError of that kind is, here."""
    return NetworkError(message) if kind == "network" else DeviceError(message)
