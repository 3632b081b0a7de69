"""Runs commands of bcnet in children of one process that has loaded everything, on a device of fixed times.

In: lines of JSON on stdin: a command, its folder, and the fault. Out: a line of JSON for each: exit code,
output, file operations. A child dies before the n-th operation, or before the first that matches a pattern
(`kill`), as by SIGKILL, or can write only that many more bytes to its disk (`room`). Before it removes a file
whose path matches a pattern (`keep`), that is copied into another folder (`kept`). A command may also run in
several processes (`processes`), as by torchrun; one of them may be killed after some seconds, or before the
first one's n-th operation (`victim`).
"""

import contextlib
import errno
import io
import json
import math
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import onnx

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as a command in several processes does
sys.path.append(str(Path(__file__).parents[1]))
from remembered import remembered

KILLED = 137
NOTICED = 60.0  # seconds that processes wait for each other: many, since the machine may be busy
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
EVENTS = frozenset(("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"))


def count_operations(folder: Path, before: Callable[[str], None]) -> None:
    """Call `before(operation)` ahead of each change of a file under `folder`, for the rest of the process.

    What Python itself keeps of the modules there does not count.
    """
    inside = str(folder.resolve()) + os.sep

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, int) or not flags & WRITING:
                return
        elif event in EVENTS:
            path = arguments[0]
            if event == "os.mkdir" and os.path.exists(path):
                return
            # A path relative to an open folder belongs to a temporary folder that is removed.
            if isinstance(path, int) or (event in ("os.remove", "os.rmdir") and arguments[1] != -1):
                return
        else:
            return
        full = os.path.abspath(os.fsdecode(path))
        if full.startswith(inside) and "__pycache__" not in full:
            before(f"{event} {os.path.relpath(os.fsdecode(path))}")

    sys.addaudithook(hook)
    for name in ("fsync", "ftruncate", "pwrite"):  # which raise no audit events
        real = getattr(os, name)

        def counted(handle: int, *rest: Any, _real: Any = real, _name: str = name) -> Any:
            target = os.readlink(f"/proc/self/fd/{handle}")
            if target.startswith(inside):
                before(f"{_name} {os.path.relpath(target)}")
            return _real(handle, *rest)

        setattr(os, name, counted)


def limit_room(room: int) -> None:
    """From now on only that many bytes can be written: a longer write stores what fits, then ENOSPC."""
    left = room
    real = os.pwrite

    def take(handle: int, data: Any, write: Callable[[Any], int]) -> int:
        nonlocal left
        if len(data) and not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = write(memoryview(data)[:left])
        left -= done
        return done

    class Full(io.FileIO):
        def write(self, data: Any) -> int:  # type: ignore[override]
            return take(self.fileno(), data, super().write)

    def opened(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **kwargs: Any) -> Any:
        if "b" in mode and ("w" in mode or "a" in mode or "+" in mode):
            raw = Full(file, mode.replace("b", ""))
            return raw if buffering == 0 else io.BufferedWriter(raw)
        return real_open(file, mode, buffering, *args, **kwargs)

    import builtins

    real_open = builtins.open
    builtins.open = opened  # type: ignore[assignment]
    os.pwrite = lambda handle, data, at: take(handle, data, lambda part: real(handle, part, at))  # type: ignore[assignment]


def steady_device() -> None:
    """This machine, but with times that depend only on the network, so that two runs measure the same."""
    from bcnet.runtimes.device import LocalDevice

    call = LocalDevice.call

    def sizes(model: bytes) -> dict[str, float]:
        graph = onnx.load_from_string(model).graph
        weights = {entry.name: float(math.prod(entry.dims)) for entry in graph.initializer}
        own = {node.name: sum(weights.get(name, 0.0) for name in node.input) for node in graph.node}
        makers = {name: node.name for node in graph.node for name in node.output}
        for node in graph.node:
            if node.op_type == "Relu":  # a convolution is fused with it, under its name
                own[node.name], own[makers[node.input[0]]] = own[makers[node.input[0]]], 0.0
        return own

    def ms(size: float) -> float:
        return 0.002 + size / 20_000

    def steady(self: LocalDevice, job: dict[str, Any], limit_s: float) -> dict[str, Any]:
        if job["do"] == "time":
            return {"ms": [0.01 + sum(map(ms, sizes(job["model"]).values()))] * 10}
        if job["do"] == "profile":
            found = call(self, {**job, "runs": 1}, limit_s)
            own = sizes(job["model"])
            # A fused node has the name of a part, with an ending.
            row = [ms(own.get(re.sub(r"(_nchwc|_token_\d+|/.*)$", "", name), 0.0)) for name in found["names"]]
            count = job["runs"]
            return {"names": found["names"], "ms": [row] * count, "walls_ms": [sum(row) + 0.01] * count}
        answer = call(self, job, limit_s)
        return {"probe": dict.fromkeys(answer["probe"], 1.0)} if job["do"] == "probe" else answer

    LocalDevice.call = steady  # type: ignore[assignment, method-assign]


def child(order: dict[str, Any], report: Path, others: dict[int, int]) -> None:
    """Run one command; its report is written however it ends. `others` are process ids of other ranks."""
    from bcnet.cli import main
    from bcnet.training import distributed, shared_work

    folder, said, operations = Path(order["folder"]), io.StringIO(), list[str]()
    os.chdir(folder)
    if "tmpdir" in order:
        tempfile.tempdir = order["tmpdir"]

    def end(code: int) -> None:
        with os.fdopen(os.open(report, os.O_WRONLY | os.O_CREAT), "w") as file:
            json.dump({"code": code, "said": said.getvalue(), "operations": operations}, file)
        os._exit(0)

    def before(operation: str) -> None:
        operations.append(operation)
        keep = re.fullmatch(rf"os\.remove (.*{order['keep']}.*)", operation) if "keep" in order else None
        if keep and Path(keep[1]).exists():
            shutil.copy(keep[1], Path(order["kept"]) / keep[1].replace("/", " "))
        kill = order.get("kill", 0)
        if re.search(kill, operation) if isinstance(kill, str) else len(operations) == kill:
            end(KILLED)
        if others and len(operations) == order.get("victim", {}).get("operation"):
            os.kill(others.get(order["victim"]["rank"], os.getpid()), signal.SIGKILL)

    count_operations(folder, before)
    shared_work.SILENT = NOTICED
    distributed.CONNECTING = distributed.STEP = timedelta(seconds=NOTICED)
    if "room" in order:
        limit_room(order["room"])
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = main(order["arguments"])
    except BaseException:
        said.write(traceback.format_exc())
        code = -1
    end(code)


def answer(order: dict[str, Any]) -> str:
    """Do one command in a child, or in several: its report, a line of JSON, with all codes in `codes`."""
    count, folder = order.get("processes", 1), Path(tempfile.mkdtemp())
    reports = [folder / f"{rank}.json" for rank in range(count)]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    children: dict[int, int] = {}
    for rank in reversed(range(count)):
        process = os.fork()
        if not process:
            if count > 1:
                own = {"WORLD_SIZE": count, "RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
                os.environ |= {
                    "MASTER_ADDR": "localhost",
                    **{name: str(value) for name, value in own.items()},
                }
            child(order, reports[rank], children)
        children[rank] = process
    start, victim = time.monotonic(), order.get("victim", {})
    while children:
        passed = time.monotonic() - start
        late = passed > order.get("limit_s", 300)
        for rank, process in list(children.items()):
            if late or (victim.get("rank") == rank and passed > victim.get("seconds", math.inf)):
                os.kill(process, signal.SIGKILL)
            if os.waitpid(process, os.WNOHANG) != (0, 0):
                del children[rank]
        time.sleep(0.01)
    unfinished = {"code": -2 if late else KILLED, "said": "no end" if late else "", "operations": []}
    found = [json.loads(path.read_text()) if path.exists() else unfinished for path in reports]
    said = "".join(own["said"] for own in found)
    return json.dumps({**found[0], "said": said, "codes": [own["code"] for own in found]})


def serve() -> None:
    """Make the undisturbed run, then execute the requests, line by line."""
    import torch

    from bcnet.agent import probe
    from bcnet.config import load_config
    from bcnet.pipeline import compare, search, slice, train  # noqa: F401
    from bcnet.pipeline.open_problem import open_problem
    from bcnet.training import durations, gradient_importance, iterative

    steady_device()
    iterative.ROUNDS, iterative.BATCHES = 2, 1  # how good the winners are is not tested here
    gradient_importance.measured_importances.__defaults__ = (4,)  # batches
    probe.REPEATS, durations.TRIAL_S = 1, 0.0  # the times that are stated are not tested, either
    with tempfile.TemporaryDirectory() as folder, remembered(Path(folder)):
        with contextlib.redirect_stdout(sys.stderr), contextlib.chdir(sys.argv[1]):
            # PyTorch imports and sets up exports once here, and exports the network of all folders, not in
            # each child. Nothing is trained here: a process whose autograd has begun cannot be forked.
            assert open_problem(load_config(None)).not_deliverable() is None
            slice.program_bytes(torch.nn.ReLU(), torch.zeros(2, 1, 8, 8))
        print(answer({"folder": sys.argv[1], "arguments": ["run"]}), flush=True)
        for line in sys.stdin:
            print(answer(json.loads(line)), flush=True)


if __name__ == "__main__":
    serve()
