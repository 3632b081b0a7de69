"""Several identical hosts that share the work. In: a device per host. Out: a Device with as many workers."""

import queue
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from bcnet.errors import DeviceError
from bcnet.plain import milliseconds
from bcnet.progress import say
from bcnet.runtimes import Runtime
from bcnet.runtimes.device import Job
from bcnet.runtimes.ssh import SshDevice
from bcnet.runtimes.ssh_line import HostLost

READINGS = 9
ALIKE = 0.05  # accepted relative difference between the reference microbenchmarks of two hosts


class Hosts:
    """Each job is sent to an idle host. A host that is lost is no longer used; the others continue."""

    def __init__(self, devices: Sequence[SshDevice]) -> None:
        self._idle: queue.Queue[SshDevice | None] = queue.Queue()
        self._left = len(devices)
        self._counting = threading.Lock()
        for device in devices:
            self._idle.put(device)

    @property
    def workers(self) -> int:
        """The number of hosts that are left."""
        return self._left

    def call(self, job: Job, limit_s: float) -> dict[str, Any]:
        """Execute one job on any host. Raises HostLost if none is left, and the errors of the job."""
        while True:
            device = self._idle.get()
            if device is None:
                self._idle.put(None)  # for other waiting threads
                raise HostLost("no host is left")
            try:
                answer = device.call(job, limit_s)
            except HostLost as cause:
                with self._counting:
                    self._left -= 1
                    if not self._left:
                        self._idle.put(None)
                        raise
                say(f"{cause}; continuing with the other hosts")
                continue
            except BaseException:
                self._idle.put(device)
                raise
            self._idle.put(device)
            return answer


def check_alike(runtimes: Mapping[str, Runtime]) -> None:
    """Check that all hosts are alike: the same versions, reference microbenchmarks within 5 %.

    Readings of the hosts alternate; the fastest reading of each part counts, since other work only adds time.
    Raises DeviceError, which names the host that differs.
    """
    prints = {host: runtime.fingerprint() for host, runtime in runtimes.items()}
    first = next(iter(prints))
    for host, found in prints.items():
        for key in {**prints[first], **found}:
            if found.get(key) != prints[first].get(key):
                raise DeviceError(
                    f"{host} differs from {first}: {key} is {found.get(key)} on {host} and "
                    f"{prints[first].get(key)} on {first}; remove one of them from the list of hosts"
                )
    readings = [{host: runtime.probe() for host, runtime in runtimes.items()} for _ in range(READINGS)]
    check_probes({host: [reading[host] for reading in readings] for host in runtimes})


def check_probes(readings: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Compare the hosts' fastest readings (ms) of each part. Raises DeviceError, which names a slow host."""
    for part in next(iter(readings.values()))[0]:
        fastest = {host: min(reading[part] for reading in own) for host, own in readings.items()}
        best, worst = min(fastest, key=fastest.__getitem__), max(fastest, key=fastest.__getitem__)
        if fastest[worst] > (1 + ALIKE) * fastest[best]:
            raise DeviceError(
                f"{worst} is slower than {best}: its reference microbenchmark ({part}) takes "
                f"{milliseconds(fastest[worst])} ms, that of {best} {milliseconds(fastest[best])} ms; 5 % is "
                "allowed; set both to the same power mode, or remove one from the list of hosts"
            )
