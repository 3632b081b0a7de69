"""A device that is reached over ssh: the agent is copied there, and does jobs one after the other.

In: a host as OpenSSH names it. Out: a Device. The system's OpenSSH runs with the user's own configuration,
never asks for anything, and shares one connection. A line that drops is opened again and the job in hand sent
again: the agent keeps its answers, so what it has measured meanwhile is not measured twice.
"""

import base64
import hashlib
import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from bcnet.agent.parcels import packed, unpacked
from bcnet.agent.serve import CHUNK
from bcnet.errors import DeviceError, NetworkError
from bcnet.plain import shown
from bcnet.progress import say
from bcnet.runtimes.answers import BadAnswer, checked
from bcnet.runtimes.device import Job
from bcnet.runtimes.ssh_line import LIMIT_S, Dropped, Gone, HostLost, Line, Overdue, check_host

PATIENCE_S = 300.0  # a dropped line is tried again for so long: a Jetson is up again after two minutes
DEATHS, DROPS = 3, 6  # of the agent, and of the line for any reason, in one job
MOST_FILES = 4 * 1024**3  # bytes in the files of one answer: those of an engine, or of arrays
RESTARTS = 3  # of sending a file that did not arrive complete
# What ssh says of a host that may come back. Others (a wrong key, no password) do not mend themselves.
PASSING = re.compile(
    r"Connection (refused|timed out|reset|closed)|No route to host|Network is unreachable|Broken pipe"
    r"|kex_exchange_identification|not responding|lost connection|Connection to .* (timed out|closed)"
)
ADVICE = (
    ("Host key verification failed", "its key is unknown or has changed: `ssh {host}` by hand says which"),
    ("Permission denied", "it must let you in without a password: `ssh-copy-id {host}`"),
    ("Could not resolve", "is the name right?"),
    ("Connection refused", "is sshd running there?"),
    ("timed out", "is it switched on and in this network?"),
)


class SshDevice:
    """One host; the connection is opened on first use and again when it was lost."""

    workers = 1

    def __init__(
        self,
        host: str,
        *,
        python: str = "python3",
        folder: str = "~/.cache/bcnet",
        patience_s: float = PATIENCE_S,
        step_s: float = LIMIT_S,
    ) -> None:
        """`python` and `folder` are the interpreter and the agent's folder there. Raises DeviceError.

        `patience_s` is how long a dropped connection is retried, `step_s` the time limit of each step other
        than a job, in seconds.
        """
        check_host(host)
        self.step_s = step_s
        self.host, self.python, self.folder, self.patience_s = host, python, folder, patience_s
        self._session, self._jobs = uuid.uuid4().hex, 0
        self._line: Line | None = None
        self._told: dict[str, Any] = {}  # what the agent said of the machine
        self._busy = threading.Lock()

    def call(self, job: Job, limit_s: float) -> dict[str, Any]:
        """Do one job there. Raises HostLost, and DeviceError or NetworkError as the job itself fails."""
        with self._busy:
            self._jobs += 1
            sent: dict[str, bytes] = {}
            parcel = packed(dict(job), sent.__setitem__)
            content = json.dumps([self._session, self._jobs, parcel], sort_keys=True)
            request = {"do": "job", "key": hashlib.sha256(content.encode()).hexdigest(), "job": parcel}
            answer = self._persist(lambda line: self._ask(line, request, sent, limit_s))
            return checked(self.host, job, answer)

    def hello(self) -> dict[str, Any]:
        """Connect, and what the agent says of its machine: Python, kind of processor, folder, power mode."""
        with self._busy:
            self._persist(lambda line: {})
            return self._told

    def close(self) -> None:
        """End the agent and the connection."""
        if self._line is not None:
            self._line.close()
            self._line = None

    def _persist(self, ask: Callable[["Line"], dict[str, Any]]) -> dict[str, Any]:
        """Ask until there is an answer, over as many lines as it takes. Raises HostLost at the end."""
        deaths = drops = 0
        while True:
            line = self._connected()
            try:
                return ask(line)
            except Overdue as cause:
                self.close()
                self._connected(stop=True)
                raise DeviceError(f"{self.host}: {cause}; the job was ended there") from None
            except BadAnswer:  # what follows on this connection could be anything
                self.close()
                raise
            except Dropped as cause:
                died = line.alive()
                self.close()
                deaths, drops = deaths + died, drops + 1
                if drops == DROPS:
                    raise NetworkError(
                        f"{self.host}: the line dropped {DROPS} times in one job ({cause}): does this "
                        "network bring the machine down?"
                    ) from None
                if deaths == DEATHS:
                    raise NetworkError(
                        f"{self.host}: the agent died {DEATHS} times in one job ({cause}): is its memory "
                        "too small for this network?"
                    ) from None
                say(
                    f"{self.host}: {'the agent died' if died else 'the line dropped'} ({cause}); trying again"
                )

    def _connected(self, stop: bool = False) -> "Line":
        """The line, opened if there is none: at once or not at all the first time, later with patience."""
        until = time.monotonic() + (self.patience_s if self._told else 0.0)
        pause = 1.0
        while self._line is None:
            try:
                line = Line(self.host)
                try:
                    line.start_agent(self.python, self.folder, self.step_s)
                    hello = {"do": "hello", "session": self._session, "stop": stop}
                    self._check_same(line.ask(hello, self.step_s))
                except BaseException:
                    line.close()
                    raise
                self._line = line
            except (HostLost, Dropped, Overdue) as cause:
                passing = not isinstance(cause, HostLost) or PASSING.search(str(cause))
                if not passing or time.monotonic() + pause > until:
                    raise HostLost(_explained(self.host, str(cause))) from None
                time.sleep(pause)
                pause = min(2 * pause, 10.0)
        return self._line

    def _check_same(self, told: dict[str, Any]) -> None:
        """After a reboot a machine may not be what it was. Raises DeviceError."""
        for key in ("machine", "power_mode"):
            if self._told and self._told[key] != told[key]:
                raise DeviceError(
                    f"{self.host}: its {key.replace('_', ' ')} was {self._told[key]} and is {told[key]} now; "
                    "set it as it was, and run the same command again"
                )
        self._told = told

    def _ask(
        self, line: "Line", request: dict[str, Any], sent: Mapping[str, bytes], limit_s: float
    ) -> dict[str, Any]:
        for attempt in (1, 2):
            try:
                for name, content in sent.items():
                    self._send_file(line, name, content)
                return self._unpacked(line, line.ask(request, limit_s))
            except Gone:
                if attempt == 2:
                    raise DeviceError(f"{self.host}: its disk is too small for the files of a job") from None
        raise AssertionError

    def _send_file(self, line: "Line", name: str, content: bytes) -> None:
        size = len(content)
        have = line.ask({"do": "have", "file": name, "size": size}, self.step_s)["have"]
        restarts = 0
        while have >= 0:
            part = content[have : have + CHUNK]
            data = base64.b64encode(part).decode()
            put = {"do": "put", "file": name, "size": size, "offset": have, "data": data}
            before, have = have, line.ask(put, self.step_s)["have"]
            restarts += have >= 0 and (have <= before or have != before + len(part))
            if restarts > RESTARTS:
                raise BadAnswer(
                    f"{self.host} has {have} of {size} bytes of a file that was sent {restarts} times: "
                    "check its disk and its memory"
                )

    def _unpacked(self, line: "Line", parcel: dict[str, Any]) -> dict[str, Any]:
        """A job's answer with its files. Raises BadAnswer where it cannot be unpacked."""
        left = MOST_FILES

        def fetched(name: object, size: object) -> bytes:
            nonlocal left
            if not (isinstance(name, str) and re.fullmatch(r"[0-9a-f]{64}", name)):
                raise BadAnswer(f"{self.host} names a file {shown(name)}, expected a SHA-256")
            if type(size) is not int or not 0 <= size <= left:
                raise BadAnswer(f"{self.host} has a file of {shown(size)} bytes, expected 0 to {left}")
            left -= size
            return self._fetched(line, name, size)

        try:
            return dict(unpacked(parcel, fetched))
        except (ValueError, TypeError, KeyError, RecursionError):
            raise BadAnswer(f"{self.host}: an answer cannot be unpacked: {shown(str(parcel)[:80])}") from None

    def _fetched(self, line: "Line", name: str, size: int) -> bytes:
        content = bytearray()
        while len(content) < size:
            get = {"do": "get", "file": name, "offset": len(content)}
            part = base64.b64decode(line.ask(get, self.step_s)["data"])
            wanted = min(CHUNK, size - len(content))
            if len(part) != wanted:
                raise BadAnswer(f"{self.host} sent {len(part)} bytes of a file, expected {wanted}")
            content += part
        if hashlib.sha256(content).hexdigest() != name:
            raise BadAnswer(f"{self.host} sent a file of {size} bytes whose content does not match its name")
        return bytes(content)


def _explained(host: str, reason: str) -> str:
    advice = next((text for sign, text in ADVICE if sign in reason), "")
    hint = f"; {advice.format(host=host)}" if advice else ""
    return f"{host} cannot be reached: {reason.rstrip('.')}{hint}"
