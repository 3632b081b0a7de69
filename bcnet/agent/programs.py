"""Programs of the device: started as argument lists, ended in time. Out: what they said, or why they fail."""

import re
import subprocess
from pathlib import Path
from typing import List

from .errors import JobError, one_line

ASKING_S = 60.0  # what a program may take to tell about itself
# What says only that something was wrong, after or around the line that says what.
HOLLOW = re.compile(
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
    """Run the program in a folder; what it said. Raises JobError with its own line where it fails."""
    try:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError as cause:
        raise JobError("device", "%s cannot be run: %s" % (command[0], one_line(cause)))
    try:
        output, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise JobError("device", "%s did not end within %d s" % (Path(command[0]).name, limit_s))
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    said = output.decode("utf-8", "replace")
    if process.returncode:
        reason = reason_of(said) or "no reason given"
        if process.returncode < 0:
            reason = "killed by signal %d (is the memory full?)" % -process.returncode
        kind = "device" if NO_DEVICE.search(reason) else "network"
        raise JobError(kind, "%s failed: %s" % (Path(command[0]).name, reason))
    return said


def reason_of(said: str) -> str:
    """The line of an output that says what went wrong, without its time stamp."""
    lines = said.splitlines()
    errors = []
    for number, line in enumerate(lines):
        marked = re.match(r"(\[[^\]]*\] )?\[E\] (\[TRT\] )?(.*)", line)
        if marked:
            text = marked.group(3).strip()
            if text.endswith(":") and number + 1 < len(lines) and "ERROR:" in text:
                text += " " + lines[number + 1].strip()  # the parser's reason is on a line of its own
            errors.append(text)
    telling = [text for text in errors if "ERROR:" in text] or [t for t in errors if not HOLLOW.search(t)]
    others = [line.strip() for line in lines if line.strip() and not line.startswith("&&&&")]
    return (telling or errors or others[-1:] or [""])[0]
