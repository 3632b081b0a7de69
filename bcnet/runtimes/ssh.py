"""A device that is reached over ssh: the agent is copied there, and does jobs one after the other.

In: a host as OpenSSH names it. Out: a Device. The system's OpenSSH runs with the user's own configuration,
never asks for anything, and shares one connection. A line that drops is opened again and the job in hand sent
again: the agent keeps its answers, so what it has measured meanwhile is not measured twice.
"""

import base64
import contextlib
import hashlib
import io
import json
import queue
import re
import shlex
import subprocess
import tempfile
import threading
import time
import uuid
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from bcnet.agent.serve import CHUNK, INLINE
from bcnet.errors import DeviceError, NetworkError
from bcnet.progress import say
from bcnet.runtimes.device import Job, error_of

CONNECT_S = 10  # for one attempt to connect
LIMIT_S = 60.0  # for each step beside a job: copying the agent, its answer to a hello, one chunk of a file
PATIENCE_S = 300.0  # a dropped line is tried again for so long: a Jetson is up again after two minutes
DEATHS = 3  # of the agent in one job
OPTIONS = (
    *("-o", "BatchMode=yes"),
    *("-o", f"ConnectTimeout={CONNECT_S}"),
    *("-o", "ServerAliveInterval=5"),
    *("-o", "ServerAliveCountMax=3"),
)
# What ssh says of a host that may come back. Others (a wrong key, no password) do not mend themselves.
PASSING = re.compile(
    r"Connection (refused|timed out|reset|closed)|No route to host|Network is unreachable|Broken pipe"
    r"|kex_exchange_identification|not responding|lost connection|Connection to .* (timed out|closed)"
)
ADVICE = (
    ("Host key verification failed", "its key is unknown or has changed: connect once by hand, `ssh {host}`"),
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", "its key has changed: `ssh-keygen -R`, if that is right"),
    ("Permission denied", "it must let you in without a password: `ssh-copy-id {host}`"),
    ("Could not resolve", "is the name right?"),
    ("Connection refused", "is sshd running there?"),
    ("timed out", "is it switched on and in this network?"),
)


class HostLost(DeviceError):
    """A host cannot be reached, or not any more."""


class _Dropped(Exception):
    """The line or the agent ended in the middle; what was asked may be asked again."""


class _Overdue(Exception):
    """No answer within the limit."""


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
    ) -> None:
        """`python` and `folder` are the interpreter and the agent's folder there. Raises DeviceError."""
        check_host(host)
        self.host, self.python, self.folder, self.patience_s = host, python, folder, patience_s
        self._session, self._jobs = uuid.uuid4().hex, 0
        self._line: _Line | None = None
        self._told: dict[str, Any] = {}  # what the agent said of the machine
        self._busy = threading.Lock()

    def call(self, job: Job, limit_s: float) -> dict[str, Any]:
        """Do one job there. Raises HostLost, and DeviceError or NetworkError as the job itself fails."""
        with self._busy:
            self._jobs += 1
            sent: dict[str, bytes] = {}
            packed = _packed(job, sent)
            content = json.dumps([self._session, self._jobs, packed], sort_keys=True)
            request = {"do": "job", "key": hashlib.sha256(content.encode()).hexdigest(), "job": packed}
            return self._persist(lambda line: self._ask(line, request, sent, limit_s))

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

    def _persist(self, ask: Callable[["_Line"], dict[str, Any]]) -> dict[str, Any]:
        """Ask until there is an answer, over as many lines as it takes. Raises HostLost at the end."""
        deaths = 0
        while True:
            line = self._connected()
            try:
                return ask(line)
            except _Overdue as cause:
                self.close()
                self._connected(stop=True)
                raise DeviceError(f"{self.host}: {cause}; the job was ended there") from None
            except _Dropped as cause:
                died = line.alive()
                self.close()
                deaths += died
                if deaths == DEATHS:
                    raise NetworkError(
                        f"{self.host}: the agent died {DEATHS} times in one job ({cause}): is its memory "
                        "too small for this network?"
                    ) from None
                say(
                    f"{self.host}: {'the agent died' if died else 'the line dropped'} ({cause}); trying again"
                )

    def _connected(self, stop: bool = False) -> "_Line":
        """The line, opened if there is none: at once or not at all the first time, later with patience."""
        until = time.monotonic() + (self.patience_s if self._told else 0.0)
        pause = 1.0
        while self._line is None:
            try:
                line = _Line(self.host)
                try:
                    line.start_agent(self.python, self.folder)
                    self._check_same(
                        line.ask({"do": "hello", "session": self._session, "stop": stop}, LIMIT_S)
                    )
                except BaseException:
                    line.close()
                    raise
                self._line = line
            except (HostLost, _Dropped, _Overdue) as cause:
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
        self, line: "_Line", request: dict[str, Any], sent: Mapping[str, bytes], limit_s: float
    ) -> dict[str, Any]:
        for attempt in (1, 2):
            for name, content in sent.items():
                self._send_file(line, name, content)
            try:
                return dict(self._unpacked(line, line.ask(request, limit_s)))
            except _Gone:
                if attempt == 2:
                    raise DeviceError(f"{self.host}: its disk is too small for the files of a job") from None
        raise AssertionError

    def _send_file(self, line: "_Line", name: str, content: bytes) -> None:
        have = line.ask({"do": "have", "file": name}, LIMIT_S)["have"]
        while have >= 0:
            data = base64.b64encode(content[have : have + CHUNK]).decode()
            put = {"do": "put", "file": name, "size": len(content), "offset": have, "data": data}
            have = line.ask(put, LIMIT_S)["have"]

    def _unpacked(self, line: "_Line", value: Any) -> Any:
        if isinstance(value, list):
            return [self._unpacked(line, item) for item in value]
        if not isinstance(value, dict):
            return value
        if "$base64" in value:
            return base64.b64decode(value["$base64"])
        if "$file" in value:
            content = b""
            while len(content) < value["size"]:
                get = {"do": "get", "file": value["$file"], "offset": len(content)}
                content += base64.b64decode(line.ask(get, LIMIT_S)["data"])
            return content
        return {key: self._unpacked(line, item) for key, item in value.items()}


class _Gone(Exception):
    """A file that was sent is not there any more."""


class _Line:
    """One connection to a host, with an agent at its end."""

    def __init__(self, host: str) -> None:
        """Connect. Raises HostLost with what ssh says."""
        self.host = host
        # A socket's path may have some hundred characters, wherever the working folder is.
        self._folder = tempfile.TemporaryDirectory(prefix="bcnet-")
        self._socket = str(Path(self._folder.name) / "s")
        self._agent: subprocess.Popen[bytes] | None = None
        self._answers: queue.Queue[bytes | None] = queue.Queue()
        self._said: list[str] = []
        self._threads: list[threading.Thread] = []
        self._count = 0
        master = (
            "ssh",
            "-M",
            "-S",
            self._socket,
            "-o",
            "ControlPersist=no",
            "-N",
            "-T",
            *OPTIONS,
            "--",
            host,
        )
        self._master = subprocess.Popen(
            master, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        # What waits for ever (a host that answers nothing, a proxy that asks) ends here.
        until = time.monotonic() + 3 * CONNECT_S
        while not self.alive():
            if self._master.poll() is not None:
                said = self._master.communicate()[1].decode(errors="replace")
                self.close()
                raise HostLost(_last_words(said) or f"ssh ended with code {self._master.returncode}")
            if time.monotonic() > until:
                self.close()
                raise HostLost(f"Connection timed out: not open after {3 * CONNECT_S} s")
            time.sleep(0.05)

    def alive(self) -> bool:
        """Whether the connection stands, whatever the agent does."""
        if self._master.poll() is not None or not Path(self._socket).exists():
            return False
        check = ("ssh", "-S", self._socket, "-O", "check", "--", self.host)
        try:
            return subprocess.run(check, capture_output=True, timeout=CONNECT_S, check=False).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def shell(self, command: str, content: bytes = b"", limit_s: float = LIMIT_S) -> tuple[int, str]:
        """Run a command of the POSIX shell there; its exit code and what it printed. Raises _Dropped."""
        try:
            done = subprocess.run(
                self._remote(command), input=content, capture_output=True, timeout=limit_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise _Dropped(f"no answer after {limit_s:g} s") from None
        said = (done.stdout + done.stderr).decode(errors="replace").strip()
        if done.returncode == 255:
            raise _Dropped(_last_words(said) or "ssh ended with code 255")
        return done.returncode, said

    def start_agent(self, python: str, folder: str) -> None:
        """Copy the agent unless it is there, and start it. Raises DeviceError where that cannot be."""
        content = agent_file()
        name = f"agent-{hashlib.sha256(content).hexdigest()[:16]}.pyz"
        where, file = quoted(folder), f"{quoted(folder)}/{name}"
        present = f"test -f {file} || (mkdir -p {where} && cat > {file}.$$ && mv {file}.$$ {file})"
        code, said = self.shell(present, content)
        if code:
            raise DeviceError(
                f"{self.host}: cannot write the agent into {folder}: {_last_words(said)}; free some space "
                "there, or set host_folder in the hardware profile"
            )
        command = f"exec {quoted(python)} {file} {where}"
        self._agent = subprocess.Popen(
            self._remote(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for read in (self._listen, self._overhear):
            self._threads.append(threading.Thread(target=read, args=(self._agent,), daemon=True))
            self._threads[-1].start()

    def ask(self, request: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """One request, one answer. Raises _Dropped, _Overdue, _Gone, and what the agent raised."""
        assert self._agent is not None
        assert self._agent.stdin is not None
        self._count += 1
        try:
            self._agent.stdin.write(json.dumps({"id": self._count, **request}).encode() + b"\n")
            self._agent.stdin.flush()
        except OSError:
            raise _Dropped(self._why()) from None
        until = time.monotonic() + limit_s
        while True:
            try:
                line = self._answers.get(timeout=max(until - time.monotonic(), 0.0))
            except queue.Empty:
                raise _Overdue(f"no answer after {limit_s:g} s") from None
            if line is None:
                raise _Dropped(self._why())
            try:
                message = json.loads(line)
            except ValueError:
                raise _Dropped(f"no answer of an agent: {line[:80]!r}") from None
            if "waiting" in message:
                say(f"{self.host}: waiting, {message['waiting']}")
                continue
            if "error" in message:
                kind, text = message["error"]["kind"], message["error"]["message"]
                if kind == "gone":
                    raise _Gone
                raise error_of(kind, f"{self.host}: {text}")
            return dict(message["answer"])

    def close(self) -> None:
        """End it all; nothing here waits for the other side."""
        for process in (self._agent, self._master):
            if process is not None and process.poll() is None:
                process.terminate()
                try:
                    process.wait(2)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        for thread in self._threads:
            thread.join()
        for process in (self._agent, self._master):
            for pipe in (process.stdin, process.stdout, process.stderr) if process is not None else ():
                if pipe is not None:
                    with contextlib.suppress(OSError):  # what was not sent yet
                        pipe.close()
        self._folder.cleanup()

    def _remote(self, command: str) -> list[str]:
        """Through the open connection; the other side's own shell may be any, so it starts a POSIX one."""
        there = f"exec sh -c {shlex.quote(command)}"
        shared = ("-S", self._socket, "-o", "ControlMaster=no")
        return ["ssh", *shared, "-T", *OPTIONS, "--", self.host, there]

    def _listen(self, agent: "subprocess.Popen[bytes]") -> None:
        assert agent.stdout is not None
        for line in agent.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _overhear(self, agent: "subprocess.Popen[bytes]") -> None:
        assert agent.stderr is not None
        for line in agent.stderr:
            self._said = [*self._said[-9:], line.decode(errors="replace")]

    def _why(self) -> str:
        """Why the agent's input or output ended."""
        assert self._agent is not None
        try:
            code = self._agent.wait(2)
        except subprocess.TimeoutExpired:
            return "it hung up"
        return _last_words("".join(self._said)) or f"it ended with code {code}"


def check_host(host: str) -> None:
    """Refuse what ssh would take for an option or for two arguments. Raises DeviceError."""
    if not re.fullmatch(r"[A-Za-z0-9_\[][^\s\x00-\x1f]*", host):
        raise DeviceError(f"a host is written as user@name, as ssh takes it, not {host!r}")


@cache
def agent_file() -> bytes:
    """`bcnet.agent` as one file that Python runs; the same bytes for the same code."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        sources = {
            f"agent/{entry.name}": entry.read_bytes()
            for entry in files("bcnet.agent").iterdir()
            if entry.name.endswith(".py")
        }
        sources["__main__.py"] = b"from agent.serve import main\n\nmain()\n"
        for name in sorted(sources):
            archive.writestr(zipfile.ZipInfo(name), sources[name])
    return content.getvalue()


def quoted(path: str) -> str:
    """A path for the shell there; a `~/` at its beginning is the home folder."""
    if path == "~" or path.startswith("~/"):
        return '"$HOME"' + shlex.quote(path[1:]) if path[1:] else '"$HOME"'
    return shlex.quote(path)


def _packed(value: Any, sent: dict[str, bytes]) -> Any:
    """A job as JSON values; `sent` gets the bytes that travel as files, by name."""
    if isinstance(value, Mapping):
        return {key: _packed(item, sent) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_packed(item, sent) for item in value]
    if not isinstance(value, bytes):
        return value
    if len(value) <= INLINE:
        return {"$base64": base64.b64encode(value).decode()}
    name = hashlib.sha256(value).hexdigest()
    sent[name] = value
    return {"$file": name}


def _last_words(text: str) -> str:
    """The last line of what ssh or the other side said that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Warning: Permanently", "**", "mux_client"))]
    return telling[-1] if telling else ""


def _explained(host: str, reason: str) -> str:
    advice = next((text for sign, text in ADVICE if sign in reason), "")
    hint = f"; {advice.format(host=host)}" if advice else ""
    return f"{host} cannot be reached: {reason.rstrip('.')}{hint}"
