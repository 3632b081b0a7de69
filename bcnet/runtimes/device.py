"""Devices, which execute jobs: this machine, or another one over ssh. In: a job. Out: its answer."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from bcnet.agent import jobs
from bcnet.agent.arrays import pack, unpack
from bcnet.agent.errors import JobError
from bcnet.errors import BcnetError, DeviceError, NetworkError
from bcnet.runtimes.answers import checked

Job = Mapping[str, Any]


def timing_job(warmup_ms: float, seconds: float, iterations: int, application: bool) -> dict[str, Any]:
    """The arguments of a "time" job; jobs of recordings, which have no application mode, stay the same."""
    limits = {"warmup_ms": warmup_ms, "seconds": seconds, "iterations": iterations}
    return {**limits, "application": True} if application else limits


def predictor(
    call: Callable[..., Mapping[str, Any]], model: bytes, loading_s: float
) -> Callable[..., list[np.ndarray]]:
    """A function that runs a network by "infer" jobs on any number of images; see `Runtime.predictor`.

    `call` makes a runtime's job from its kind, a time limit in seconds and its arguments; `loading_s` is the
    limit besides the inferences.
    """

    def predict(*inputs: np.ndarray) -> list[np.ndarray]:
        limit_s = loading_s + 10.0 * len(inputs[0])
        answer = call("infer", limit_s, model=model, inputs=[pack(array) for array in inputs])
        return [unpack(packed) for packed in answer["outputs"]]

    return predict


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
