"""Time and memory needed to load a latency table with many rows.

    python benchmarks/table_size.py --rows 1000000 --folder runs/table_size

The table is synthetic: convolutions of distinct channel counts at one setting, in one session, sealed. It is
written once and loaded in a process of its own, whose peak memory is that of Python, NumPy and the table.
Prints one JSON object; `--json` also writes it to a file.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from bcnet.latency_tables.rows import LatencyStat, LayerSpec, Row, Session, Setting
from bcnet.latency_tables.table import LatencyTable

SETTING = Setting("onnxruntime", "fp32", 1, 1, "default")
# Loads a table and prints the cost, without the start of Python and its imports.
LOADING = """
import json, re, sys, time
from pathlib import Path
from bcnet.latency_tables.table import LatencyTable
wall, cpu = time.perf_counter(), time.process_time()
table = LatencyTable.load(sys.argv[1])
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
# Not resource.getrusage: its peak includes that of the process which started this one.
peak = re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())
print(json.dumps({
    "rows": len(table.rows),
    "seconds": round(wall, 2),
    "cpu_seconds": round(cpu, 2),
    "peak_mb": round(int(peak[1]) * 1.024e-3, 1),
}))
"""


def main() -> None:
    """Parse, write the table where it is missing, load it, print."""
    parser = argparse.ArgumentParser(description="time and memory needed to load a latency table")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, required=True, help="where the table is kept")
    parser.add_argument("--json", type=Path, help="also write the result there")
    options = parser.parse_args()
    path = options.folder / f"{options.rows}.json"
    found: dict[str, object] = {"command": f"python benchmarks/table_size.py --rows {options.rows}"}
    if not path.exists():
        options.folder.mkdir(parents=True, exist_ok=True)
        begun = time.perf_counter()
        table_of(options.rows).save(path)
        found["write_seconds"] = round(time.perf_counter() - begun, 2)
    command = [sys.executable, "-c", LOADING, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found |= json.loads(done.stdout)
    found |= {"file_mb": round(path.stat().st_size / 1e6, 1), "load_average": os.getloadavg()[0]}
    found["machine"] = f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    text = json.dumps(found)
    print(text)
    if options.json:
        options.json.write_text(f"{text}\n", encoding="utf-8")


def table_of(rows: int) -> LatencyTable:
    """That many synthetic rows."""
    session = Session("2026-01-01", {"runtime": "onnxruntime", "cache_mb": "33.6"}, {"matmul_ms": 0.2})
    table = LatencyTable("cpu", [session])
    for number in range(rows):
        kernel = 1 + 2 * (number % 2)
        layer = LayerSpec(
            "Conv",
            1 + number // 2 % 1000,
            1 + number // 2000,
            (kernel, kernel),
            (1, 1),
            (kernel // 2,) * 4,
            (1, 1),
            activation="Relu",
            in_height=56,
            in_width=56,
        )
        ms = round(0.01 + number * 1e-5, 5)
        table.rows[layer, SETTING] = Row(layer, SETTING, LatencyStat(ms, 1.1 * ms, 0.0123, 240), 0, 0.25)
    return table


def processor() -> str:
    """The processor's name, as Linux reports it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
