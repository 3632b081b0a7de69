"""Runs from a trained network, with copies of the files that stopped commands would continue from.

The weights have a head for other classes, so that the first stage trains the network, too.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from steady_run import CONFIG, NET, new_folder

WEIGHTS = 'name = "net:net"\nweights = "trained.pt"'
ROWS = "uniform, l1", "group-fisher", "unilateral"
ARENA = "bench", "arena", "--budgets", "75%", *(word for row in ROWS for word in ("--row", row))
CONTINUED = r"/(checkpoint|scores|uniform|pruned|state)[^/]*\.(safetensors|jsonl)"


@dataclass(frozen=True)
class TrainedRun:
    """A folder with a finished run, and copies of the files that its commands would have continued from.

    `kept` has them by their path in the folder's `runs/`.
    """

    folder: Path
    kept: Mapping[str, Path]


def trained_folder(path: Path, whole: Path, method: str, classes: int) -> Path:
    """A working folder with weights of a head for so many classes, and the table of the same network."""
    new_folder(path)
    shutil.copytree(whole / "latency_tables", path / "latency_tables")
    config = CONFIG.replace('name = "net:net"', WEIGHTS)
    config = config.replace("[search]", f'[search]\nmethod = "{method}"\nprune_epochs = 1')
    (path / "bcnet.toml").write_text(config, encoding="utf-8")
    names: dict[str, Any] = {}
    with torch.random.fork_rng():
        torch.manual_seed(7)
        exec(NET, names)
        state = names["net"]().state_dict()
    head = [name for name, tensor in state.items() if tensor.shape[:1] == (10,)]
    torch.save(state | {name: state[name][:classes].clone() for name in head}, path / "trained.pt")
    return path
