"""A device over ssh: the agent is copied to it, and executes jobs one at a time.

In: a host, as for OpenSSH. Out: a Device. The system's OpenSSH is used with the user's own configuration,
without prompts, over one shared connection. A lost connection is opened again, and the current job sent
again: the agent stores its answers, so nothing is measured twice.
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
from bcnet.runtimes.ssh_line import LIMIT_S, Connection, Dropped, Gone, HostLost, Overdue, check_host

PATIENCE_S = 300.0  # how long a lost connection is retried: a Jetson needs two minutes to boot
DEATHS, DROPS = 3, 6  # maximum numbers of agents that died, and of lost connections in all, in one job
MAX_FILES = 4 * 1024**3  # maximum bytes in the files of one answer: an engine, or arrays
RESTARTS = 3  # maximum number of times that a file is sent again because it arrived incomplete
# ssh's messages for temporary errors. Others, e.g. a wrong key, are not retried.
TEMPORARY = re.compile(
    r"Connection (refused|timed out|reset|closed)|No route to host|Network is unreachable|Broken pipe"
    r"|kex_exchange_identification|not responding|lost connection|Connection to .* (timed out|closed)"
)
ADVICE = (
    ("Host key verification failed", "its key is unknown or has changed: `ssh {host}` shows which"),
    ("Permission denied", "it must accept a login without a password: `ssh-copy-id {host}`"),
    ("Could not resolve", "is the name right?"),
    ("Connection refused", "is sshd running there?"),
    ("timed out", "is it switched on and in this network?"),
)


class SshDevice:
    """One host; the connection is opened on first use, and again if it was lost."""

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
        """`python` and `folder` are the interpreter and the agent's folder on the host. Raises DeviceError.

        `patience_s` is how long a dropped connection is retried, `step_s` the time limit of each step other
        than a job, in seconds.
        """
        check_host(host)
        self.step_s = step_s
        self.host, self.python, self.folder, self.patience_s = host, python, folder, patience_s
        self._session, self._jobs = uuid.uuid4().hex, 0
        self._connection: Connection | None = None
        self._machine: dict[str, Any] = {}  # the agent's description of the machine
        self._busy = threading.Lock()

    def call(self, job: Job, limit_s: float) -> dict[str, Any]:
        """Execute one job. Raises HostLost; DeviceError or NetworkError if the job itself fails."""
        with self._busy:
            self._jobs += 1
            sent: dict[str, bytes] = {}
            parcel = packed(dict(job), sent.__setitem__)
            content = json.dumps([self._session, self._jobs, parcel], sort_keys=True)
            request = {"do": "job", "key": hashlib.sha256(content.encode()).hexdigest(), "job": parcel}
            answer = self._persist(lambda connection: self._ask(connection, request, sent, limit_s))
            return checked(self.host, job, answer)

    def hello(self) -> dict[str, Any]:
        """Connect; the agent's description of its machine: Python, kind of processor, folder, power mode."""
        with self._busy:
            self._persist(lambda connection: {})
            return self._machine

    def close(self) -> None:
        """End the agent and the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _persist(self, ask: Callable[[Connection], dict[str, Any]]) -> dict[str, Any]:
        """Ask until there is an answer, connecting again after failures. Raises HostLost in the end."""
        deaths = drops = 0
        while True:
            connection = self._connected()
            try:
                return ask(connection)
            except Overdue as cause:
                self.close()
                self._connected(stop=True)
                raise DeviceError(f"{self.host}: {cause}; the job was stopped") from None
            except BadAnswer:  # further data on this connection cannot be interpreted
                self.close()
                raise
            except Dropped as cause:
                died = connection.alive()
                self.close()
                deaths, drops = deaths + died, drops + 1
                if drops == DROPS:
                    raise NetworkError(
                        f"{self.host}: the connection was lost {DROPS} times in one job ({cause}): does this "
                        "network crash the machine?"
                    ) from None
                if deaths == DEATHS:
                    raise NetworkError(
                        f"{self.host}: the agent died {DEATHS} times in one job ({cause}): is its memory "
                        "too small for this network?"
                    ) from None
                what = "the agent died" if died else "the connection was lost"
                say(f"{self.host}: {what} ({cause}); trying again")

    def _connected(self, stop: bool = False) -> Connection:
        """The connection, opened if there is none: with one attempt the first time, later with retries."""
        until = time.monotonic() + (self.patience_s if self._machine else 0.0)
        pause = 1.0
        while self._connection is None:
            try:
                connection = Connection(self.host)
                try:
                    connection.start_agent(self.python, self.folder, self.step_s)
                    hello = {"do": "hello", "session": self._session, "stop": stop}
                    self._check_same(connection.ask(hello, self.step_s))
                except BaseException:
                    connection.close()
                    raise
                self._connection = connection
            except (HostLost, Dropped, Overdue) as cause:
                temporary = not isinstance(cause, HostLost) or TEMPORARY.search(str(cause))
                if not temporary or time.monotonic() + pause > until:
                    raise HostLost(_explained(self.host, str(cause))) from None
                time.sleep(pause)
                pause = min(2 * pause, 10.0)
        return self._connection

    def _check_same(self, machine: dict[str, Any]) -> None:
        """Raises DeviceError if the machine has changed, e.g. its power mode after a reboot."""
        before = self._machine
        for key in ("machine", "power_mode"):
            if before and before[key] != machine[key]:
                raise DeviceError(
                    f"{self.host}: its {key.replace('_', ' ')} was {before[key]} and is {machine[key]} now; "
                    "restore it, and run the same command again"
                )
        self._machine = machine

    def _ask(
        self, connection: Connection, request: dict[str, Any], sent: Mapping[str, bytes], limit_s: float
    ) -> dict[str, Any]:
        for attempt in (1, 2):
            try:
                for name, content in sent.items():
                    self._send_file(connection, name, content)
                return self._unpacked(connection, connection.ask(request, limit_s))
            except Gone:
                if attempt == 2:
                    raise DeviceError(f"{self.host}: its disk is too small for the files of a job") from None
        raise AssertionError

    def _send_file(self, connection: Connection, name: str, content: bytes) -> None:
        size = len(content)
        have = connection.ask({"do": "have", "file": name, "size": size}, self.step_s)["have"]
        restarts = 0
        while have >= 0:
            part = content[have : have + CHUNK]
            data = base64.b64encode(part).decode()
            put = {"do": "put", "file": name, "size": size, "offset": have, "data": data}
            before, have = have, connection.ask(put, self.step_s)["have"]
            restarts += have >= 0 and (have <= before or have != before + len(part))
            if restarts > RESTARTS:
                raise BadAnswer(
                    f"{self.host} has {have} of {size} bytes of a file that was sent {restarts} times; "
                    "check its disk and its memory"
                )

    def _unpacked(self, connection: Connection, parcel: dict[str, Any]) -> dict[str, Any]:
        """A job's answer with its files. Raises BadAnswer if it cannot be unpacked."""
        left = MAX_FILES

        def fetched(name: object, size: object) -> bytes:
            nonlocal left
            if not (isinstance(name, str) and re.fullmatch(r"[0-9a-f]{64}", name)):
                raise BadAnswer(f"{self.host} names a file {shown(name)}, expected a SHA-256")
            if type(size) is not int or not 0 <= size <= left:
                raise BadAnswer(f"{self.host} has a file of {shown(size)} bytes, expected 0 to {left}")
            left -= size
            return self._fetched(connection, name, size)

        try:
            return dict(unpacked(parcel, fetched))
        except (ValueError, TypeError, KeyError, RecursionError):
            raise BadAnswer(f"{self.host}: an answer cannot be unpacked: {shown(str(parcel)[:80])}") from None

    def _fetched(self, connection: Connection, name: str, size: int) -> bytes:
        content = bytearray()
        while len(content) < size:
            get = {"do": "get", "file": name, "offset": len(content)}
            part = base64.b64decode(connection.ask(get, self.step_s)["data"])
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
