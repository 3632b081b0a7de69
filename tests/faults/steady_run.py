"""A whole run on a device with fixed times, in children that can be killed, and how two runs are compared.

BCNET_FAULT_ROUNDS and BCNET_FAULT_SEED in the environment set the number of faults per kind, and their seed.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CONFIG = """
[model]
name = "net:net"
[data]
image_size = 8
train_limit = 80
test_limit = 40
[space]
bins = 3
min_width = 0.3
channel_multiple = 2
[train]
epochs = 2
batch_size = 32
[search]
latency = "75%"
population = 3
generations = 2
measured = 2
recalibration_images = 32
[slice]
epochs = 1
[export]
latency_tolerance = 5.0
"""
NET = """
from torch import nn

def net():
    def block(entering, leaving, stride):
        return nn.Conv2d(entering, leaving, 3, stride, 1), nn.BatchNorm2d(leaving), nn.ReLU()

    return nn.Sequential(
        *block(1, 16, 1), *block(16, 16, 1), *block(16, 32, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )
"""
PROFILE = """
description = "this machine, of fixed times"
runtime = "onnxruntime"
warmup_ms = 1.0
seconds = 0.01
iterations = 3
table_noise = 20.0
"""
SERVER = Path(__file__).with_name("fork_server.py")
Answer = dict[str, Any]
Commands = Callable[..., Answer]


SEED = int(os.environ.get("BCNET_FAULT_SEED", "0"))


def rounds(few: int) -> int:
    """The number of faults per kind: `few`, unless the environment sets it."""
    return int(os.environ.get("BCNET_FAULT_ROUNDS", few))


def new_folder(path: Path) -> Path:
    """A working folder that holds nothing but its configuration."""
    (path / "hw_profiles").mkdir(parents=True)
    (path / "bcnet.toml").write_text(CONFIG, encoding="utf-8")
    (path / "net.py").write_text(NET, encoding="utf-8")
    (path / "hw_profiles/cpu.toml").write_text(PROFILE, encoding="utf-8")
    return path


@contextmanager
def fork_server(whole: Path) -> Iterator[Commands]:
    """`commands(folder, *arguments, kill=n, room=bytes)`: run one command there; its code and what it said.

    The server itself makes the undisturbed run, in the folder `whole`.
    """
    with subprocess.Popen(
        [sys.executable, SERVER, whole], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        first = json.loads(server.stdout.readline())
        assert first["code"] == 0, first["said"]

        def command(folder: Path, *arguments: str, **order: Any) -> Answer:
            assert server.stdin is not None
            assert server.stdout is not None
            server.stdin.write(json.dumps({"folder": str(folder), "arguments": arguments, **order}) + "\n")
            server.stdin.flush()
            answer: Answer = json.loads(server.stdout.readline())
            assert "Traceback" not in answer["said"], answer["said"]
            return answer

        yield command
        assert server.stdin is not None
        server.stdin.close()


def essence(folder: Path) -> dict[str, Any]:
    """All files of a folder; JSON without how long it took, and without digests of files that hold that.

    Of logs and archives, which hold the time, only that they are there; nothing of what Python has compiled.

    A build of the table reports how many rows and networks it measured itself. A command that continues a
    killed build measures fewer, so both are left out, too.
    """
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts):
        name = str(path.relative_to(folder))
        if path.suffix == ".json" and path.is_file():
            found[name] = _timeless(json.loads(path.read_text(encoding="utf-8")))
            if path.parent.name == "build-lut":
                for own in ("rows_measured", "networks"):
                    found[name].pop(own, None)
        elif path.is_file() and path.suffix != ".pt2" and path.name != "log.jsonl":
            found[name] = path.read_bytes()
        else:
            found[name] = path.is_dir()
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {k: _timeless(v) for k, v in value.items() if not k.endswith("seconds")}
        return {k: v for k, v in kept.items() if k not in ("digest", "outputs", "sizes", "inputs")}
    return [_timeless(part) for part in value] if isinstance(value, list) else value
