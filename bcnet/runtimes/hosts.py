"""Several hosts of one kind that share the work. In: a device each. Out: one Device with as many workers."""

import queue
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from bcnet.errors import DeviceError
from bcnet.progress import say
from bcnet.runtimes import Runtime
from bcnet.runtimes.device import Job
from bcnet.runtimes.ssh import SshDevice
from bcnet.runtimes.ssh_line import HostLost

READINGS = 9
ALIKE = 0.05  # how far the probes of two hosts may be apart


class Hosts:
    """Each job goes to a host that is idle. One that is lost is left out, the others go on."""

    def __init__(self, devices: Sequence[SshDevice]) -> None:
        self._idle: queue.Queue[SshDevice | None] = queue.Queue()
        self._left = len(devices)
        self._counting = threading.Lock()
        for device in devices:
            self._idle.put(device)

    @property
    def workers(self) -> int:
        """How many hosts are left."""
        return self._left

    def call(self, job: Job, limit_s: float) -> dict[str, Any]:
        """Do one job on any host. Raises HostLost when none is left, else what the job raises."""
        while True:
            device = self._idle.get()
            if device is None:
                self._idle.put(None)  # for others that wait
                raise HostLost("no host is left")
            try:
                answer = device.call(job, limit_s)
            except HostLost as cause:
                with self._counting:
                    self._left -= 1
                    if not self._left:
                        self._idle.put(None)
                        raise
                say(f"{cause}; the other hosts go on")
                continue
            except BaseException:
                self._idle.put(device)
                raise
            self._idle.put(device)
            return answer


def check_alike(runtimes: Mapping[str, Runtime]) -> None:
    """Refuse hosts that are not of one kind: other versions, or a probe that is more than 5 % slower.

    Probes are read in turn; of each part the fastest reading counts, since other work only adds time. Raises
    DeviceError that names the host.
    """
    prints = {host: runtime.fingerprint() for host, runtime in runtimes.items()}
    first = next(iter(prints))
    for host, found in prints.items():
        for key in {**prints[first], **found}:
            if found.get(key) != prints[first].get(key):
                raise DeviceError(
                    f"{host} is not like {first}: {key} is {found.get(key)} there and "
                    f"{prints[first].get(key)} on {first}; leave one of them out"
                )
    readings = [{host: runtime.probe() for host, runtime in runtimes.items()} for _ in range(READINGS)]
    check_probes({host: [reading[host] for reading in readings] for host in runtimes})


def check_probes(readings: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Compare the fastest readings (ms) of each part of the probe. Raises DeviceError that names a host."""
    for part in next(iter(readings.values()))[0]:
        fastest = {host: min(reading[part] for reading in own) for host, own in readings.items()}
        best, worst = min(fastest, key=fastest.__getitem__), max(fastest, key=fastest.__getitem__)
        if fastest[worst] > (1 + ALIKE) * fastest[best]:
            raise DeviceError(
                f"{worst} is not like {best}: its probe ({part}) takes {fastest[worst]:.4g} ms, there "
                f"{fastest[best]:.4g} ms, and 5 % is allowed; set both to one power mode, or leave one out"
            )
