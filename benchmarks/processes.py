"""How much faster several processes train and score, against one process on one core.

    python benchmarks/processes.py --folder runs/processes

Trains a supernet of the digits for some epochs with `bcnet train`, and scores candidates in it as a search
does, by one process and by several, alternately, one core for each process. The time of a training is what
the command reports; that of the scoring begins when each process has scored some. What the machine itself
allows is measured, too: the same training by one process while others, not connected to it, do the same.
Prints one JSON object; `--json` also writes it to a file.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from recorded import how_made

CONFIG = """
[model]
name = "digits"
[data]
name = "digits"
[train]
batch_size = {batch}
amp = false
"""
SCORED = "--scored"  # the option by which this file is started again, in one process or in several


def main() -> None:
    """Parse, train and score alternately, print."""
    parser = argparse.ArgumentParser(description="how much faster several processes train and score")
    parser.add_argument("--folder", type=Path, required=True, help="where the runs are made, and removed")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=128, help="images of a training step")
    parser.add_argument("--candidates", type=int, default=100, help="scored in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the result there")
    parser.add_argument(SCORED, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.scored:
        score(options.candidates)
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG.format(batch=options.batch)
    (options.folder / "bcnet.toml").write_text(config)
    training: dict[int, list[float]] = {1: [], options.processes: []}
    scoring: dict[int, list[float]] = {1: [], options.processes: []}
    beside: list[float] = []
    for _ in range(options.rounds):
        for count in training:
            training[count].append(trained(options.folder, count, options.epochs))
            scoring[count].append(scored(options.folder, count, options.candidates))
        beside.append(side_by_side(options.folder, config, options.processes, options.epochs))
    found = {
        **how_made(),
        "training": compared(training),
        "unconnected trainings side by side": possible(training[1], beside, options.processes),
        "scoring": compared(scoring),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
    }
    text = json.dumps(found, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


def compared(seconds: dict[int, list[float]]) -> dict[str, Any]:
    """The seconds of all rounds, and how many times as fast several processes are: the median, each round."""
    ratios = [one / several for one, several in zip(*seconds.values(), strict=True)]
    return {
        "seconds": {str(count): [round(value, 2) for value in own] for count, own in seconds.items()},
        "times_as_fast": round(statistics.median(ratios), 3),
        "rounds": [round(ratio, 3) for ratio in ratios],
    }


def possible(alone: list[float], beside: list[float], processes: int) -> dict[str, Any]:
    """How many times as fast processes would be that need not wait for each other: the median, each round."""
    ratios = [processes * one / own for one, own in zip(alone, beside, strict=True)]
    return {
        "seconds": [round(value, 2) for value in beside],
        "times_as_fast": round(statistics.median(ratios), 3),
        "rounds": [round(ratio, 3) for ratio in ratios],
    }


def side_by_side(folder: Path, config: str, processes: int, epochs: int) -> float:
    """Seconds of one training while others do the same: the mean of all, each in a folder of its own."""
    folders = [folder / f"beside-{number}" for number in range(processes)]
    for own in folders:
        own.mkdir(exist_ok=True)
        (own / "bcnet.toml").write_text(config)
    with ThreadPoolExecutor(processes) as pool:
        return statistics.mean(pool.map(lambda own: trained(own, 1, epochs), folders))


def trained(folder: Path, processes: int, epochs: int) -> float:
    """Seconds of one training from the start."""
    shutil.rmtree(folder / "runs", ignore_errors=True)
    command = ["-m", "bcnet", "train", "--json", "--epochs", str(epochs), "--processes", str(processes)]
    return float(last_line(folder, command)["seconds"])


def scored(folder: Path, processes: int, candidates: int) -> float:
    """Seconds of scoring so many candidates in the supernet that was trained last."""
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    this = [str(Path(__file__).resolve()), "--folder", ".", SCORED, "--candidates", str(candidates)]
    return float(last_line(folder, [*(several if processes > 1 else []), *this])["seconds"])


def last_line(folder: Path, command: list[str]) -> dict[str, Any]:
    """The JSON object that a command prints last, one thread for each of its processes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *command]
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def rank_of(scorer: Any, widths: Any) -> int:
    """Which process has scored a candidate."""
    from bcnet.processes import these

    scorer(widths)
    return these().rank


def score(candidates: int) -> None:
    """Score random candidates in this process, or in those that torchrun has started; print the seconds."""
    from bcnet.config import load_config
    from bcnet.pipeline.open_problem import open_problem
    from bcnet.pipeline.problem import Problem
    from bcnet.pipeline.search_ways import scorer_of_run
    from bcnet.processes import these
    from bcnet.runs import Run
    from bcnet.training.distributed import connected, together
    from bcnet.training.shared_work import Shared, lead
    from bcnet.width_search.scorer import Scorer

    def timed(run: Run, problem: Problem) -> float:
        rng = np.random.default_rng(0)
        networks = [problem.space.random(rng) for _ in range(candidates)]
        score_of = Shared(scorer_of_run, Scorer.__call__, scorer_of_run(run, problem))
        ready: set[int] = set()
        while len(ready) < connected().size:
            ready |= set(replace(score_of, method=rank_of).each(networks[: 2 * connected().size]))
        start = time.perf_counter()
        list(score_of.each(networks))
        return time.perf_counter() - start

    with together(these()):
        seconds = lead(timed, Run.named("default"), open_problem(load_config(None)))
    if seconds is not None:
        print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
