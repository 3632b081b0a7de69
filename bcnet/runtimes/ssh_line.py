"""One connection to a host, an agent at its end: OpenSSH as subprocesses, each step with a limit of time.

In: a host, then requests of the agent (`bcnet.agent.serve`). Out: its answers, or what ended the line.
What the other side sends is bounded: an answer is one line of at most `MOST_LINE` bytes, and of all other
output only the end is kept.
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

CONNECT_S = 10  # for one attempt to connect
WAITING_S = 4 * 3600.0  # at most, for other agents' jobs on the same machine
LIMIT_S = 60.0  # for each step beside a job: copying the agent, its answer to a hello, one chunk of a file
MOST_LINE = 32 * 1024**2  # bytes of one answer; larger contents travel as files
SLOWEST = 10_000  # bytes per second of a connection: sending may take that much longer
AHEAD = 4  # lines that are read before they are requested
WAITING_SAID = 4.0  # the most messages per second in which an agent says that it waits; it sends one
KEPT = 8192  # bytes of the output beside answers
OPTIONS = (
    *("-o", "BatchMode=yes"),
    *("-o", f"ConnectTimeout={CONNECT_S}"),
    *("-o", "ServerAliveInterval=5"),
    *("-o", "ServerAliveCountMax=3"),
)


class HostLost(DeviceError):
    """A host cannot be reached, or not any more."""


class Dropped(Exception):
    """The line or the agent ended in the middle; what was asked may be asked again."""


class Overdue(Exception):
    """No answer within the limit."""


class Gone(Exception):
    """A file that was sent is not there any more."""


class Tail:
    """The end of a pipe's output, however long that is; read by a thread of its own."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._kept = b""
        self.thread = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        self.thread.start()

    def _read(self, pipe: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):  # closed meanwhile
            while chunk := os.read(pipe.fileno(), 65536):
                self._kept = (self._kept + chunk)[-KEPT:]

    def text(self, wait_s: float = 2.0) -> str:
        """All that is kept, once the pipe has ended or that many seconds have passed."""
        self.thread.join(wait_s)
        return self._kept.decode(errors="replace")


class Line:
    """One connection to a host, with an agent at its end."""

    def __init__(self, host: str) -> None:
        """Connect. Raises HostLost with what ssh says."""
        self.host = host
        # A socket's path may have some hundred characters, wherever the working folder is.
        self._folder = tempfile.TemporaryDirectory(prefix="bcnet-")
        self._socket = str(Path(self._folder.name) / "s")
        self._agent: subprocess.Popen[bytes] | None = None
        self._answers: queue.Queue[bytes | None] = queue.Queue(AHEAD)
        self._tail: Tail | None = None
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()
        self._count = 0
        # What it runs ends with its input, so that no connection outlives this process, however it ends.
        shared = ("-M", "-S", self._socket, "-o", "ControlPersist=no")
        self._master = subprocess.Popen(
            ("ssh", *shared, "-T", *OPTIONS, "--", host, "exec cat"),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert self._master.stderr is not None
        said = Tail(self._master.stderr)
        self._threads.append(said.thread)
        # What waits for ever (a host that answers nothing, a proxy that asks) ends here.
        until = time.monotonic() + 3 * CONNECT_S
        while not self.alive():
            if self._master.poll() is not None:
                words = last_words(said.text())
                self.close()
                raise HostLost(words or f"ssh ended with code {self._master.returncode}")
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
        """Run a command of the POSIX shell there; its exit code and what it printed. Raises Dropped."""
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
                said = tail.text().strip()
        if code == 255:
            raise Dropped(last_words(said) or "ssh ended with code 255")
        return code, said

    def start_agent(self, python: str, folder: str, limit_s: float = LIMIT_S) -> None:
        """Copy the agent unless it is there, and start it. Raises DeviceError where that cannot be."""
        content = agent_file()
        name = f"agent-{hashlib.sha256(content).hexdigest()[:16]}.pyz"
        where, file = quoted(folder), f"{quoted(folder)}/{name}"
        # A copy that was cut short, by the line or by a power cut, is no copy.
        whole = f'test "$(wc -c < {file})" -eq {len(content)}'
        part = whole.replace(file, f"{file}.$$")
        present = f"{whole} || (mkdir -p {where} && cat > {file}.$$ && {part} && mv {file}.$$ {file})"
        code, said = self.shell(present, content, limit_s)
        if code:
            raise DeviceError(
                f"{self.host}: cannot write the agent into {folder}: {last_words(said)}; free some space "
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
        """Send one request, return its answer. Raises Dropped, Overdue, Gone, BadAnswer, and agent errors.

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
            if "waiting" in message:  # its own time begins when it begins
                if not waits:
                    say(f"{self.host}: waiting, {plain(str(message['waiting']))}")
                waits += 1
                if waits > 10 + WAITING_SAID * (time.monotonic() - begun):
                    raise BadAnswer(f"{self.host} said {waits} times within a short time that it waits")
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
        """A line of the agent whose id is that of the last request. Raises BadAnswer."""
        if len(line) > MOST_LINE:
            raise BadAnswer(
                f"{self.host} sent a line of more than {MOST_LINE} bytes ({shown(line[:40])}...), "
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
        """Kind and text of an error of the agent. Raises BadAnswer."""
        if isinstance(error, dict):
            kind, text = error.get("kind"), error.get("message")
            if kind in ("network", "device", "gone") and isinstance(text, str):
                return str(kind), plain(text)
        raise BadAnswer(f"{self.host} sent an error without a kind and a message: {shown(error)}")

    def _send(self, content: bytes, limit_s: float) -> None:
        """Write to the agent, which may not be reading. Raises Dropped, Overdue."""
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
        """End it all; nothing here waits for the other side."""
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
                    with contextlib.suppress(OSError):  # what was not sent yet
                        pipe.close()
        self._folder.cleanup()

    def _remote(self, command: str) -> list[str]:
        """Through the open connection; the other side's own shell may be any, so it starts a POSIX one."""
        there = f"exec sh -c {shlex.quote(command)}"
        shared = ("-S", self._socket, "-o", "ControlMaster=no")
        return ["ssh", *shared, "-T", *OPTIONS, "--", self.host, there]

    def _listen(self, agent: "subprocess.Popen[bytes]") -> None:
        """Pass on the agent's lines; None after the last one, which may be incomplete."""
        assert agent.stdout is not None
        line: bytes | None = b""
        while line is not None and len(line) <= MOST_LINE:
            line = agent.stdout.readline(MOST_LINE + 1)
            if len(line) <= MOST_LINE and not line.endswith(b"\n"):
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
            return "it hung up"
        return last_words(self._tail.text()) or f"it ended with code {code}"


def check_host(host: str) -> None:
    """Refuse what ssh would take for an option or for two arguments. Raises DeviceError."""
    if not re.fullmatch(r"[A-Za-z0-9_\[][^\s\x00-\x1f]*", host):
        raise DeviceError(f"a host is written as user@name, as ssh takes it, not {host!r}")
    port = re.fullmatch(r"(?:(?P<user>[^@]+)@)?(?P<name>[^@:/]+|\[[^]]*\]):(?P<port>\d+)", host)
    if port is not None:
        user = f" and `User {port['user']}`" if port["user"] else ""
        raise DeviceError(
            f"{host}: a port belongs in ~/.ssh/config: write an entry `Host NAME` with "
            f"`HostName {port['name'].strip('[]')}`, `Port {port['port']}`{user}, and give NAME as the host"
        )


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


def last_words(text: str) -> str:
    """The last line of what ssh or the other side said that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Warning: Permanently", "**", "mux_client"))]
    return plain(telling[-1]) if telling else ""
