"""Run programs on the device. In: a command and a time limit. Out: its output, or why it failed."""

import ctypes
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import List

from .errors import JobError, one_line

PR_SET_PDEATHSIG = 1  # an option of prctl
ASKING_S = 60.0  # time limit of a program that prints its version
# Error messages without information, which surround the one with the reason.
UNINFORMATIVE = re.compile(
    r"--- (Begin|End) node|^\S+:\d+: (input|output|name|op_type): |While parsing node|Failed to parse|"
    r"Parsing model failed|[Ee]ngine (set up|creation) failed|Building engine failed|"
    r"^Failed to create engine|could not be created from network|Inference set up failed|"
    r"Error occurred during inference"
)
NO_DEVICE = re.compile(
    r"cuda ?(error|failure|init)|no CUDA-capable|driver version|Unknown option|Cannot find|shared librar",
    re.IGNORECASE,
)


def run_program(command: List[str], limit_s: float, folder: str) -> str:
    """Run a program in a folder and return its output. Raises JobError with its error message if it fails."""
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
    except OSError as cause:
        raise JobError("device", "%s cannot be run: %s" % (command[0], one_line(cause)))
    try:
        output, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise JobError("device", "%s did not finish within %d s" % (Path(command[0]).name, limit_s))
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    text = output.decode("utf-8", "replace")
    if process.returncode:
        reason = reason_of(text) or "no reason given"
        if process.returncode < 0:
            reason = "killed by signal %d (is the memory full?)" % -process.returncode
        kind = "device" if NO_DEVICE.search(reason) else "network"
        raise JobError(kind, "%s failed: %s" % (Path(command[0]).name, reason))
    return text


def _end_with_parent() -> None:
    """Let the kernel kill this process with its parent: a killed agent leaves no process measuring."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def reason_of(output: str) -> str:
    """The line of an output with the reason of a failure, without its time stamp."""
    lines = output.splitlines()
    errors = []
    for number, line in enumerate(lines):
        marked = re.match(r"(\[[^\]]*\] )?\[E\] (\[TRT\] )?(.*)", line)
        if marked:
            text = marked.group(3).strip()
            if text.endswith(":") and number + 1 < len(lines) and "ERROR:" in text:
                text += " " + lines[number + 1].strip()  # the parser's reason is on the next line
            errors.append(text)
    reasons = [text for text in errors if "ERROR:" in text]
    reasons = reasons or [text for text in errors if not UNINFORMATIVE.search(text)]
    others = [line.strip() for line in lines if line.strip() and not line.startswith("&&&&")]
    return (reasons or errors or others[-1:] or [""])[0]
