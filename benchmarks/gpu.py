"""What is to be measured on a GPU in at most twelve minutes: recorded paths, a supernet, tables by PyTorch.

    python benchmarks/gpu.py --table Results_MobileNet.json --data imagefolder:PATH --folder runs/gpu

Each step is a command with a time limit; what is left of a step's time goes to the next ones. A step that
fails or is stopped does not end the script, and a repeated call continues what can be continued. The output
of each step is written to the folder, and gpu.json has its command, exit code and seconds. `--dry-run` runs
the same commands at tiny sizes on the processor: it tries the script, and measures nothing.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
MINUTES = 12
STOPPED = 124  # the exit code of a step that took longer than its limit


@dataclass(frozen=True)
class Step:
    """A command, the most seconds that it may take, and what is changed in a dry run."""

    name: str
    command: tuple[str, ...]
    seconds: float
    dry: tuple[str, ...] = ()


def steps(table: Path, data: str, folder: Path) -> list[Step]:
    """All steps, the most important first."""
    python = sys.executable
    ranking = (python, "-m", "bcnet", "bench", "channel-bench-macro", "--table", str(table), "--data", data)
    tables = (python, str(HERE / "torch_cuda.py"), "--precision", "fp16", "--folder", str(folder / "tables"))
    tiny = ("--preset", "tiny")
    return [
        Step(
            "recorded paths",
            (python, "-m", "pytest", "-q", str(HERE.parent / "tests/training/test_cuda_graph.py")),
            90,
        ),
        Step(
            "supernet, recorded",
            (*ranking, "--method", "bcnet", "--cuda-graph", "--run", "gpu-recorded"),
            300,
            tiny,
        ),
        Step(
            "tables and searches",
            (*tables, "--networks", "mobilenet_v2-224", "efficientnet_b0-224"),
            180,
            ("--profile", "cpu", "--precision", "fp32", "--networks", "mobilenet_v2-96", "--choices", "2"),
        ),
        Step(
            "supernet, batches of 256",
            (*ranking, "--method", "bcnet", "--batch-size", "256", "--cuda-graph", "--run", "gpu-256"),
            150,
            (*tiny, "--batch-size", "16"),
        ),
    ]


def run(step: Step, folder: Path, limit: float, *, dry: bool) -> dict[str, object]:
    """Run a step for at most `limit` seconds; what came of it."""
    command = [*step.command, *(step.dry if dry else ())]
    print(f"{step.name}: {' '.join(command)} (at most {limit:.0f} s)", flush=True)
    start = time.perf_counter()
    with (folder / f"{step.name.replace(' ', '-').replace(',', '')}.log").open("w", encoding="utf-8") as log:
        try:
            code = subprocess.run(command, stdout=log, stderr=log, timeout=limit, check=False).returncode
        except subprocess.TimeoutExpired:
            code = STOPPED
    seconds = round(time.perf_counter() - start, 1)
    print(f"{step.name}: exit code {code} after {seconds:.0f} s", flush=True)
    return {**asdict(step), "command": command, "exit_code": code, "took": seconds}


def machine() -> dict[str, str]:
    """What was measured on."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "gpu": gpu,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main() -> int:
    """Run all steps; 0 where each of them ended well."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--table", type=Path, required=True, help="Channel-Bench-Macro's Results_MobileNet.json"
    )
    parser.add_argument("--data", required=True, help="its images: cifar10, or imagefolder:PATH")
    parser.add_argument("--folder", type=Path, required=True, help="where logs and gpu.json go")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"for all steps (default: {MINUTES})")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on the processor")
    options = parser.parse_args()
    if not options.table.is_file():
        parser.error(f"{options.table} does not exist")
    options.folder.mkdir(parents=True, exist_ok=True)
    end, found = time.perf_counter() + 60 * options.minutes, list[dict[str, object]]()
    planned = steps(options.table, options.data, options.folder)
    for number, step in enumerate(planned):
        later = sum(other.seconds for other in planned[number + 1 :])
        limit = max(step.seconds, end - time.perf_counter() - later)
        if time.perf_counter() + limit > end + 1:
            print(f"{step.name}: left out, no time is left")
            continue
        found.append(run(step, options.folder, limit, dry=options.dry_run))
        record = {"dry_run": options.dry_run, "machine": machine(), "steps": found}
        (options.folder / "gpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0 if len(found) == len(planned) and all(step["exit_code"] == 0 for step in found) else 1


if __name__ == "__main__":
    sys.exit(main())
