"""Whether a change leaves runs as they were, to the last bit. In: two checkouts. Out: the files that differ.

    python benchmarks/same_run.py make ../before /tmp/before [CASE ...]
    python benchmarks/same_run.py make . /tmp/after [CASE ...]
    python benchmarks/same_run.py compare /tmp/before /tmp/after

Each case runs the built-in example with small settings, on a device whose times depend on the network alone.
Compared are all files (weights, widths, losses, ONNX, JSON with the order of its keys) but for seconds and
digests of what holds them; of the manifests, the digests of settings.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FAULTS = ROOT / "tests/faults"
sys.path.insert(0, str(FAULTS))
from steady_run import PROFILE  # noqa: E402

CONFIG = """
[data]
image_size = 16
train_limit = 120
test_limit = 60
[space]
bins = 3
min_width = 0.3
[train]
epochs = 1
batch_size = 32
[search]
{search}
population = 4
generations = 1
measured = 2
recalibration_images = 64
[slice]
epochs = 1
[export]
latency_tolerance = 5.0
"""
RUN = [["run"]]
CASES = {
    "evolution": ('latency = "75%"', RUN),
    "front": (
        "pareto = true\nmax_size_mb = 6.0",
        [["train"], ["build-lut"], ["search"], ["slice", "--latency", "80%"], ["export"]],
    ),
    "soft": ('fitness = "soft"\nover_budget = true\nlatency_ms = 20.0\nmax_macs = 50000000', RUN),
    "accuracy": ("min_accuracy = 0.05", RUN),
    "latency-milp": ('method = "latency-milp"\nlatency = "70%"', RUN),
    "group-fisher": ('method = "group-fisher"\nlatency = "70%"\nprune_epochs = 1', RUN),
}
COMMAND = """
import sys
sys.path.insert(0, {faults!r})
from fork_server import steady_device
from bcnet.cli import main
steady_device()
sys.exit(main(sys.argv[1:]))
"""
OF_FILES = {
    "supernet",
    "search",
    "slice",
    "export",
    "table",
    "latency table",
}  # digests of files with times


def make(code: Path, folder: Path, names: list[str]) -> int:
    """Run the cases with the code of a checkout, each in a folder of its own."""
    environment = {**os.environ, "PYTHONPATH": str(code.resolve()), "OMP_NUM_THREADS": "1"}
    for name in names:
        search, commands = CASES[name]
        own = folder / name
        (own / "hw_profiles").mkdir(parents=True)
        (own / "bcnet.toml").write_text(CONFIG.format(search=search), encoding="utf-8")
        (own / "hw_profiles/cpu.toml").write_text(PROFILE, encoding="utf-8")
        for command in commands:
            line = [sys.executable, "-c", COMMAND.format(faults=str(FAULTS)), *command, "--json"]
            done = subprocess.run(line, cwd=own, env=environment, capture_output=True, text=True)
            print(f"{name}: bcnet {' '.join(command)}: exit code {done.returncode}", flush=True)
            if done.returncode:
                print(done.stderr.strip().splitlines()[-1])
                return 1
    return 0


def compare(before: Path, after: Path) -> int:
    """Print what differs in the cases of `after`; the exit code."""
    sys.path.insert(0, str(FAULTS))
    from steady_run import essence

    differing = []
    for case in sorted(path.name for path in after.iterdir()):
        first, second = essence(before / case), essence(after / case)
        for file in sorted({*first, *second}):
            pair = [folder / case / file for folder in (before, after)]
            if file.endswith("manifest.json") and all(path.exists() for path in pair):
                same = _settings(pair[0]) == _settings(pair[1])
            else:
                same = file in first and file in second and _ordered(first[file]) == _ordered(second[file])
            if not same:
                differing.append(f"{case}/{file}")
    print("\n".join(differing) or "all files are the same")
    return 1 if differing else 0


def _settings(manifest: Path) -> dict[str, str]:
    inputs = json.loads(manifest.read_text(encoding="utf-8"))["inputs"]
    return {key: value for key, value in inputs.items() if key not in OF_FILES}


def _ordered(value: Any) -> Any:
    """A value that also differs where the order of keys does."""
    return json.dumps(value) if isinstance(value, dict | list) else value


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(required=True, dest="action")
    making = actions.add_parser("make", help="run the cases with the code of a checkout")
    making.add_argument("code", type=Path)
    making.add_argument("folder", type=Path)
    making.add_argument("cases", nargs="*", default=list(CASES))
    comparing = actions.add_parser("compare", help="list the files that differ")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    given = parser.parse_args()
    if given.action == "compare":
        return compare(given.before, given.after)
    return make(given.code, given.folder, given.cases)


if __name__ == "__main__":
    sys.exit(main())
