"""How much faster several processes train, against one process on one core.

    python benchmarks/processes.py --folder runs/processes

Trains a supernet of the digits for some epochs with `bcnet train`, by one process and by torchrun with
several, alternately, one core for each process; the time is that of the training, which the command reports.
Prints one JSON object; `--json` also writes it to a file.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

CONFIG = """
[model]
name = "digits"
[data]
name = "digits"
[train]
batch_size = 128
amp = false
"""


def main() -> None:
    """Parse, train alternately, print."""
    parser = argparse.ArgumentParser(description="how much faster several processes train")
    parser.add_argument("--folder", type=Path, required=True, help="where the runs are made, and removed")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the result there")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "bcnet.toml").write_text(CONFIG)
    seconds: dict[int, list[float]] = {1: [], options.processes: []}
    for _ in range(options.rounds):
        for count, own in seconds.items():
            own.append(trained(options.folder, count, options.epochs))
    ratios = [one / several for one, several in zip(*seconds.values(), strict=True)]
    found = {
        "command": "python benchmarks/processes.py " + " ".join(sys.argv[1:]),
        "seconds": {str(count): [round(value, 2) for value in own] for count, own in seconds.items()},
        "times_as_fast": round(statistics.median(ratios), 3),
        "rounds": [round(ratio, 3) for ratio in ratios],
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
    }
    text = json.dumps(found, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


def trained(folder: Path, processes: int, epochs: int) -> float:
    """Seconds of one training from the start."""
    shutil.rmtree(folder / "runs", ignore_errors=True)
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(several if processes > 1 else []), "-m", "bcnet", "train", "--json"]
    command += ["--epochs", str(epochs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


if __name__ == "__main__":
    main()
