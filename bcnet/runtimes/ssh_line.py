"""One connection to a host, an agent at its end: OpenSSH as subprocesses, each step with a limit of time.

In: a host, then requests of the agent (`bcnet.agent.serve`). Out: its answers, or what ended the line.
"""

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
import zipfile
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from bcnet.errors import DeviceError
from bcnet.progress import say
from bcnet.runtimes.device import error_of

CONNECT_S = 10  # for one attempt to connect
WAITING_S = 4 * 3600.0  # at most, for other agents' jobs on the same machine
LIMIT_S = 60.0  # for each step beside a job: copying the agent, its answer to a hello, one chunk of a file
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


class Line:
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
        # What it runs ends with its input, so that no connection outlives this process, however it ends.
        shared = ("-M", "-S", self._socket, "-o", "ControlPersist=no")
        with (Path(self._folder.name) / "said").open("wb") as said:  # a pipe that nobody reads would fill up
            self._master = subprocess.Popen(
                ("ssh", *shared, "-T", *OPTIONS, "--", host, "exec cat"),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=said,
            )
        # What waits for ever (a host that answers nothing, a proxy that asks) ends here.
        until = time.monotonic() + 3 * CONNECT_S
        while not self.alive():
            if self._master.poll() is not None:
                words = (Path(self._folder.name) / "said").read_text(errors="replace")
                self.close()
                raise HostLost(last_words(words) or f"ssh ended with code {self._master.returncode}")
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
        try:
            done = subprocess.run(
                self._remote(command), input=content, capture_output=True, timeout=limit_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise Dropped(f"no answer after {limit_s:g} s") from None
        said = (done.stdout + done.stderr).decode(errors="replace").strip()
        if done.returncode == 255:
            raise Dropped(last_words(said) or "ssh ended with code 255")
        return done.returncode, said

    def start_agent(self, python: str, folder: str) -> None:
        """Copy the agent unless it is there, and start it. Raises DeviceError where that cannot be."""
        content = agent_file()
        name = f"agent-{hashlib.sha256(content).hexdigest()[:16]}.pyz"
        where, file = quoted(folder), f"{quoted(folder)}/{name}"
        # A copy that was cut short, by the line or by a power cut, is no copy.
        whole = f'test "$(wc -c < {file})" -eq {len(content)}'
        part = whole.replace(file, f"{file}.$$")
        present = f"{whole} || (mkdir -p {where} && cat > {file}.$$ && {part} && mv {file}.$$ {file})"
        code, said = self.shell(present, content)
        if code:
            raise DeviceError(
                f"{self.host}: cannot write the agent into {folder}: {last_words(said)}; free some space "
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
        """One request, one answer. Raises Dropped, Overdue, Gone, and what the agent raised."""
        assert self._agent is not None
        assert self._agent.stdin is not None
        self._count += 1
        try:
            self._agent.stdin.write(json.dumps({"id": self._count, **request}).encode() + b"\n")
            self._agent.stdin.flush()
        except OSError:
            raise Dropped(self._why()) from None
        until, waited = time.monotonic() + limit_s, False
        latest = until + WAITING_S
        while True:
            try:
                line = self._answers.get(timeout=max(min(until, latest) - time.monotonic(), 0.0))
            except queue.Empty:
                raise Overdue(f"no answer after {limit_s:g} s") from None
            if line is None:
                raise Dropped(self._why())
            try:
                message = json.loads(line)
            except ValueError:
                raise Dropped(f"no answer of an agent: {line[:80]!r}") from None
            if "waiting" in message:  # its own time begins when it begins
                if not waited:
                    say(f"{self.host}: waiting, {message['waiting']}")
                until, waited = time.monotonic() + limit_s, True
                continue
            if "error" in message:
                kind, text = message["error"]["kind"], message["error"]["message"]
                if kind == "gone":
                    raise Gone
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
        return last_words("".join(self._said)) or f"it ended with code {code}"


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


def last_words(text: str) -> str:
    """The last line of what ssh or the other side said that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Warning: Permanently", "**", "mux_client"))]
    return telling[-1] if telling else ""
