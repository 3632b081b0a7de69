"""Properties of a device, for `bcnet doctor` and for the provenance of measurements."""

import contextlib
import importlib
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Dict, List, Optional

TRTEXEC = "/usr/src/tensorrt/bin/trtexec"  # where JetPack installs it
DEVICE_TREE = Path("/proc/device-tree/model")
L4T_RELEASE = Path("/etc/nv_tegra_release")
BOARDS = ("NVIDIA", "Jetson", "quill")  # the latter two with JetPack 4: "Jetson-AGX", and a TX2
LIMIT_S = 10.0


def look(folder: str) -> Dict[str, Any]:
    """Python, packages, trtexec, free bytes at `folder`, power mode, governors; None for what is missing."""
    disk = os.statvfs(folder)
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.platform(),
        "numpy": _version("numpy"),
        "onnxruntime": _version("onnxruntime"),
        "openvino": _version("openvino"),
        "tensorrt": _version("tensorrt"),
        "tensorrt_rtx": _version("tensorrt_rtx"),
        "torch": _version("torch"),
        "trtexec": trtexec(),
        "free_bytes": disk.f_bavail * disk.f_frsize,
        "power_mode": power_mode(),
        "governors": governors(),
        "load": os.getloadavg()[0],
        "cores": os.cpu_count(),
    }


def trtexec() -> Optional[str]:
    """The path of trtexec; None if it is not found."""
    return shutil.which("trtexec") or (TRTEXEC if os.access(TRTEXEC, os.X_OK) else None)


def power_mode() -> Optional[str]:
    """The name of a Jetson's power mode; None on other machines."""
    for line in output(["nvpmodel", "-q"]).splitlines():
        if "NV Power Mode" in line:
            return line.split(":", 1)[-1].strip()
    return None


def board() -> str:
    """The name of a Jetson's board; "" on other machines."""
    named = text(DEVICE_TREE).strip("\0 \n")
    return named if named.startswith(BOARDS) else ""


def jetson() -> Dict[str, str]:
    """A Jetson's "power_mode" and its release of Linux, "l4t" ("36.4.3"), each if it is known."""
    found = {}
    mode = power_mode()
    if mode:
        found["power_mode"] = mode
    release = re.search(r"R(\d+).*?REVISION:\s*([\d.]+)", text(L4T_RELEASE))
    if release:
        found["l4t"] = "%s.%s" % release.groups()
    return found


def text(path: Path) -> str:
    """The content of a small system file; "" if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def governors() -> List[str]:
    """The distinct frequency governors of the processor."""
    found = set()
    for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor"):
        with contextlib.suppress(OSError):
            found.add(path.read_text().strip())
    return sorted(found)


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def last_level_cache() -> Dict[str, str]:
    """{"cache_mb": its size in 10^6 bytes}; {} if the system does not report it."""
    sizes = []
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            level, size = (index / "level").read_text().strip(), (index / "size").read_text().strip()
        except OSError:
            continue
        if size.endswith("K"):
            sizes.append((int(level), int(size[:-1]) * 1024 / 1e6))
    return {"cache_mb": "%.4g" % max(sizes)[1]} if sizes else {}


def _version(module: str) -> Optional[str]:
    try:
        return str(importlib.import_module(module).__version__)
    except Exception:  # a broken package counts as missing
        return None


def output(command: List[str]) -> str:
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            timeout=LIMIT_S,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace")
