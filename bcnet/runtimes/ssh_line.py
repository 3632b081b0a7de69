"""A connection to the agent on a host: OpenSSH as subprocesses, with a time limit for each step.

In: a host, then requests to the agent (`bcnet.agent.serve`). Out: its answers, or why the connection ended.
Data from the host is bounded: an answer is one line of at most `MAX_LINE` bytes, and only the end of other
output is kept.
"""

import contextlib
import hashlib
import io
import json
import os
import queue
import re
import select
import shlex
import subprocess
import tempfile
import threading
import time
import zipfile
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

from bcnet.errors import DeviceError
from bcnet.plain import plain, shown
from bcnet.progress import say
from bcnet.runtimes.answers import BadAnswer, checked
from bcnet.runtimes.device import error_of

CONNECT_S = 10  # time limit of one attempt to connect
WAITING_S = 4 * 3600.0  # maximum time to wait for other agents' jobs on the same machine
LIMIT_S = 60.0  # time limit of each step other than a job: copy the agent, "hello", one chunk of a file
MAX_LINE = 32 * 1024**2  # bytes of one answer; larger contents are sent as files
SLOWEST = 10_000  # the slowest supported connection, bytes per second, for the time limit of sending
AHEAD = 4  # maximum number of lines that are read ahead
WAITING_RATE = 4.0  # maximum number of "waiting" messages per second; an agent sends one
KEPT = 8192  # bytes of output that are kept, apart from answers
OPTIONS = (
    *("-o", "BatchMode=yes"),
    *("-o", f"ConnectTimeout={CONNECT_S}"),
    *("-o", "ServerAliveInterval=5"),
    *("-o", "ServerAliveCountMax=3"),
)


class HostLost(DeviceError):
    """A host cannot be reached, or the connection to it was lost."""


class Dropped(Exception):
    """The connection or the agent ended during a request, which may be sent again."""


class Overdue(Exception):
    """No answer within the limit."""


class Gone(Exception):
    """A file that was sent no longer exists on the host."""


class Tail:
    """The end of a pipe's output, read by a thread."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._kept = b""
        self.thread = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        self.thread.start()

    def _read(self, pipe: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):  # closed meanwhile
            while chunk := os.read(pipe.fileno(), 65536):
                self._kept = (self._kept + chunk)[-KEPT:]

    def text(self, wait_s: float = 2.0) -> str:
        """The end of the output, once the pipe is closed or the given seconds have passed."""
        self.thread.join(wait_s)
        return self._kept.decode(errors="replace")


class Connection:
    """A connection to the agent on a host."""

    def __init__(self, host: str) -> None:
        """Connect. Raises HostLost with ssh's message."""
        self.host = host
        # In a temporary folder, because a socket's path is limited to about a hundred characters.
        self._folder = tempfile.TemporaryDirectory(prefix="bcnet-")
        self._socket = str(Path(self._folder.name) / "s")
        self._agent: subprocess.Popen[bytes] | None = None
        self._answers: queue.Queue[bytes | None] = queue.Queue(AHEAD)
        self._tail: Tail | None = None
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()
        self._count = 0
        # The remote command ends with its input, so that no connection outlives this process, however it
        # ends.
        shared = ("-M", "-S", self._socket, "-o", "ControlPersist=no")
        self._master = subprocess.Popen(
            ("ssh", *shared, "-T", *OPTIONS, "--", host, "exec cat"),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert self._master.stderr is not None
        errors = Tail(self._master.stderr)
        self._threads.append(errors.thread)
        # The time limit ends attempts that would wait forever (an unresponsive host, a proxy that prompts).
        until = time.monotonic() + 3 * CONNECT_S
        while not self.alive():
            if self._master.poll() is not None:
                reason = last_message(errors.text())
                self.close()
                raise HostLost(reason or f"ssh ended with code {self._master.returncode}")
            if time.monotonic() > until:
                self.close()
                raise HostLost(f"Connection timed out: not open after {3 * CONNECT_S} s")
            time.sleep(0.05)

    def alive(self) -> bool:
        """Whether the connection is open, independent of the agent."""
        if self._master.poll() is not None or not Path(self._socket).exists():
            return False
        check = ("ssh", "-S", self._socket, "-O", "check", "--", self.host)
        try:
            return subprocess.run(check, capture_output=True, timeout=CONNECT_S, check=False).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def shell(self, command: str, content: bytes = b"", limit_s: float = LIMIT_S) -> tuple[int, str]:
        """Run a command in the host's POSIX shell; its exit code and output. Raises Dropped."""
        with (Path(self._folder.name) / "content").open("w+b") as given:
            given.write(content)
            given.seek(0)
            process = subprocess.Popen(
                self._remote(command), stdin=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        assert process.stdout is not None
        with process.stdout:
            tail = Tail(process.stdout)
            try:
                code = process.wait(limit_s)
            except subprocess.TimeoutExpired:
                raise Dropped(f"no answer after {limit_s:g} s") from None
            finally:
                process.kill()
                process.wait()
                output = tail.text().strip()
        if code == 255:
            raise Dropped(last_message(output) or "ssh ended with code 255")
        return code, output

    def start_agent(self, python: str, folder: str, limit_s: float = LIMIT_S) -> None:
        """Start the agent, after copying it if needed. Raises DeviceError if that fails."""
        content = agent_file()
        name = f"agent-{hashlib.sha256(content).hexdigest()[:16]}.pyz"
        where, file = quoted(folder), f"{quoted(folder)}/{name}"
        # The size is checked, because a copy may be truncated by a lost connection or a power failure.
        complete = f'test "$(wc -c < {file})" -eq {len(content)}'
        part = complete.replace(file, f"{file}.$$")
        present = f"{complete} || (mkdir -p {where} && cat > {file}.$$ && {part} && mv {file}.$$ {file})"
        code, output = self.shell(present, content, limit_s)
        if code:
            raise DeviceError(
                f"{self.host}: cannot write the agent into {folder}: {last_message(output)}; free some space "
                "there, or set host_folder in the hardware profile"
            )
        command = f"exec {quoted(python)} {file} {where}"
        self._agent = subprocess.Popen(
            self._remote(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self._agent.stderr is not None
        self._tail = Tail(self._agent.stderr)
        listener = threading.Thread(target=self._listen, args=(self._agent,), daemon=True)
        listener.start()
        self._threads += [self._tail.thread, listener]

    def ask(self, request: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """Send a request, return its answer. Raises Dropped, Overdue, Gone, BadAnswer, the agent's errors.

        A job's answer is still packed (`bcnet.agent.parcels`); answers to other requests are checked.
        """
        self._count += 1
        self._send(json.dumps({"id": self._count, **request}).encode() + b"\n", limit_s)
        begun = time.monotonic()
        until, waits = begun + limit_s, 0
        latest = until + WAITING_S
        while True:
            try:
                line = self._answers.get(timeout=max(min(until, latest) - time.monotonic(), 0.0))
            except queue.Empty:
                raise Overdue(f"no answer after {limit_s:g} s") from None
            if line is None:
                raise Dropped(self._why())
            message = self._message(line)
            if "waiting" in message:  # the time limit of the request starts when it is executed
                if not waits:
                    say(f"{self.host}: waiting, {plain(str(message['waiting']))}")
                waits += 1
                if waits > 10 + WAITING_RATE * (time.monotonic() - begun):
                    raise BadAnswer(f"{self.host} sent {waits} waiting messages within a short time")
                until = time.monotonic() + limit_s
                continue
            if "error" in message:
                kind, text = self._error(message["error"])
                if kind == "gone":
                    raise Gone
                raise error_of(kind, f"{self.host}: {text}")
            answer = message.get("answer")
            if request["do"] == "job":
                if not isinstance(answer, dict):
                    raise BadAnswer(
                        f"{self.host}: its answer to a job is {shown(answer)}, expected an object"
                    )
                return answer
            return checked(self.host, request, answer)

    def _message(self, line: bytes) -> dict[str, Any]:
        """A message of the agent with the id of the last request. Raises BadAnswer."""
        if len(line) > MAX_LINE:
            raise BadAnswer(
                f"{self.host} sent a line of more than {MAX_LINE} bytes ({shown(line[:40])}...), "
                "which is not an answer of bcnet's agent"
            )
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            hint = "; its shell must print nothing at a login without a terminal" if self._count == 1 else ""
            raise BadAnswer(
                f"{self.host} sent {shown(line.strip())}, which is not an answer of bcnet's agent{hint}"
            )
        number = message.get("id")
        # If the agent fails to start, there is no request yet.
        if type(number) is not int or number != (0 if "error" in message and number == 0 else self._count):
            raise BadAnswer(f"{self.host} answered request {shown(number)} instead of {self._count}")
        return message

    def _error(self, error: object) -> tuple[str, str]:
        """The kind and text of an agent's error. Raises BadAnswer."""
        if isinstance(error, dict):
            kind, text = error.get("kind"), error.get("message")
            if kind in ("network", "device", "gone") and isinstance(text, str):
                return str(kind), plain(text)
        raise BadAnswer(f"{self.host} sent an error without a kind and a message: {shown(error)}")

    def _send(self, content: bytes, limit_s: float) -> None:
        """Write to the agent, even if it does not read. Raises Dropped, Overdue."""
        assert self._agent is not None
        assert self._agent.stdin is not None
        pipe = self._agent.stdin.fileno()
        os.set_blocking(pipe, False)
        room = select.poll()
        room.register(pipe, select.POLLOUT)
        rest = memoryview(content)
        until = time.monotonic() + limit_s + len(content) / SLOWEST
        while rest:
            left = until - time.monotonic()
            if left <= 0 or not room.poll(1000 * left):
                raise Overdue(f"it did not accept a request within {limit_s:g} s")
            try:
                rest = rest[os.write(pipe, rest) :]
            except BlockingIOError:
                continue
            except OSError:
                raise Dropped(self._why()) from None

    def close(self) -> None:
        """End the agent and the connection, without waiting for the host."""
        self._closing.set()
        for process in (self._agent, self._master):
            if process is not None and process.poll() is None:
                process.terminate()
                try:
                    process.wait(2)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        for thread in self._threads:
            thread.join(2)
        for process in (self._agent, self._master):
            for pipe in (process.stdin, process.stdout, process.stderr) if process is not None else ():
                if pipe is not None:
                    with contextlib.suppress(OSError):  # data that was not sent yet
                        pipe.close()
        self._folder.cleanup()

    def _remote(self, command: str) -> list[str]:
        """The ssh command for the open connection. The login shell may be any, so it starts a POSIX shell."""
        there = f"exec sh -c {shlex.quote(command)}"
        shared = ("-S", self._socket, "-o", "ControlMaster=no")
        return ["ssh", *shared, "-T", *OPTIONS, "--", self.host, there]

    def _listen(self, agent: "subprocess.Popen[bytes]") -> None:
        """Queue the agent's lines, and None at the end, instead of an incomplete last line."""
        assert agent.stdout is not None
        line: bytes | None = b""
        while line is not None and len(line) <= MAX_LINE:
            line = agent.stdout.readline(MAX_LINE + 1)
            if len(line) <= MAX_LINE and not line.endswith(b"\n"):
                line = None
            while not self._closing.is_set():
                with contextlib.suppress(queue.Full):
                    self._answers.put(line, timeout=0.1)
                    break
            else:
                return

    def _why(self) -> str:
        """Why the agent's input or output ended."""
        assert self._agent is not None
        assert self._tail is not None
        try:
            code = self._agent.wait(2)
        except subprocess.TimeoutExpired:
            return "it closed the connection"
        return last_message(self._tail.text()) or f"it ended with code {code}"


def check_host(host: str) -> None:
    """Raises DeviceError for a host that ssh would parse as an option or as two arguments."""
    if not re.fullmatch(r"[A-Za-z0-9_\[][^\s\x00-\x1f]*", host):
        raise DeviceError(f"a host is written as user@name, as for ssh, not {host!r}")
    port = re.fullmatch(r"(?:(?P<user>[^@]+)@)?(?P<name>[^@:/]+|\[[^]]*\]):(?P<port>\d+)", host)
    if port is not None:
        user = f" and `User {port['user']}`" if port["user"] else ""
        raise DeviceError(
            f"{host}: a port belongs in ~/.ssh/config: write an entry `Host NAME` with "
            f"`HostName {port['name'].strip('[]')}`, `Port {port['port']}`{user}, and give NAME as the host"
        )


@cache
def agent_file() -> bytes:
    """`bcnet.agent` as one file that Python can run; the same code gives the same bytes."""
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
    """A path quoted for the host's shell; a leading `~/` is the home folder."""
    if path == "~" or path.startswith("~/"):
        return '"$HOME"' + shlex.quote(path[1:]) if path[1:] else '"$HOME"'
    return shlex.quote(path)


def last_message(text: str) -> str:
    """The last informative line of an output of ssh or the host."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    chosen = [line for line in lines if not line.startswith(("Warning: Permanently", "**", "mux_client"))]
    return plain(chosen[-1]) if chosen else ""
