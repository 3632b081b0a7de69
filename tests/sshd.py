"""A real sshd on this machine that serves as a device: its own keys and port, and an `ssh` that knows it."""

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")


@dataclass
class Sshd:
    """A server with throw-away keys. `device` is its host name: the test's own ssh configuration has it."""

    folder: Path
    port: int = 0
    process: "subprocess.Popen[bytes] | None" = None
    extra: list[str] = field(default_factory=list)  # lines of sshd_config
    within: list[str] = field(default_factory=list)  # the command that starts it in another root file system

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        for name in ("host", "user"):
            self.make_key(name)
        shutil.copy(self.folder / "user.pub", self.folder / "authorized")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # for privilege separation
        self.trust("host")
        (self.folder / "config").write_text(
            "Host device other\n"
            "  HostName 127.0.0.1\n"
            f"  Port {self.port}\n"
            f"  IdentityFile {self.folder}/user\n"
            "  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {self.folder}/known\n"
            "  StrictHostKeyChecking yes\n",
            encoding="utf-8",
        )
        # The user's own configuration is that of the account; a test has its own through this one line.
        bin_ = self.folder / "bin"
        bin_.mkdir()
        (bin_ / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {self.folder}/config "$@"\n')
        (bin_ / "ssh").chmod(stat.S_IRWXU)

    @property
    def path(self) -> str:
        """PATH with the test's ssh first."""
        return f"{self.folder / 'bin'}:{os.environ['PATH']}"

    def make_key(self, name: str) -> None:
        """A key pair without a passphrase."""
        for old in (self.folder / name, self.folder / f"{name}.pub"):
            old.unlink(missing_ok=True)
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)]
        subprocess.run(command, check=True)

    def trust(self, name: str) -> None:
        """Let the known host key be that of this pair."""
        public = (self.folder / f"{name}.pub").read_text().split()[:2]
        (self.folder / "known").write_text(f"[127.0.0.1]:{self.port} {' '.join(public)}\n")

    def start(self) -> "Sshd":
        """Serve; returns when connections are taken."""
        assert SSHD is not None
        lines = [
            "ListenAddress 127.0.0.1",
            f"Port {self.port}",
            f"HostKey {self.folder}/host",
            f"AuthorizedKeysFile {self.folder}/authorized",
            f"PidFile {self.folder}/pid",
            "StrictModes no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin yes",
            "UsePAM no",
            *self.extra,
        ]
        (self.folder / "sshd_config").write_text("\n".join([*lines, ""]), encoding="utf-8")
        program = "/usr/sbin/sshd" if self.within else SSHD
        command = [*self.within, program, "-D", "-e", "-f", str(self.folder / "sshd_config")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log, start_new_session=True)
        for _ in range(1000):
            if self.process.poll() is not None:
                break
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            time.sleep(0.02)
        raise RuntimeError((self.folder / "log").read_text())

    def stop(self) -> None:
        """End the server and every connection to it, at once, as a machine that loses its power."""
        self.cut()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def cut(self) -> None:
        """End every connection; the server takes new ones."""
        if self.process is None:
            return
        for pid in children(self.process.pid):
            for grandchild in children(pid):
                if "sshd" in command_of(grandchild):
                    kill(grandchild)
            kill(pid)


def children(pid: int) -> list[int]:
    """The processes that this one has started and that still run."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(line) for line in found.split()]


def command_of(pid: int) -> str:
    """A process's command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def agents(folder: Path) -> list[int]:
    """The agents that run with this folder."""
    found = subprocess.run(
        ["pgrep", "-f", f"agent-.*pyz {folder}$"], capture_output=True, text=True, check=False
    )
    return [int(line) for line in found.stdout.split()]


def kill(pid: int) -> None:
    """SIGKILL, if it still runs."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def meanwhile(action: Callable[[], None], when: Callable[[], object]) -> threading.Thread:
    """Do something as soon as something else is so."""

    def wait() -> None:
        until = time.monotonic() + 20
        while not when() and time.monotonic() < until:
            time.sleep(0.01)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def a_job_runs(folder: Path) -> Callable[[], bool]:
    """Whether an agent holds the lock, and so does a job."""

    def runs() -> bool:
        lock = folder / "lock"
        return lock.exists() and bool(lock.read_text()) and not list((folder / "answers").glob("*"))

    return runs


PYTHON = sys.executable  # what runs on "the device": it has ONNX Runtime
