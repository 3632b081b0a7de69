"""Width spaces of the networks in docs/reference/models.md: dump them, and compare two dumps.

Run it before and after a change of `bcnet.space`, which must leave every space as it is:

    python benchmarks/spaces.py before.jsonl
    python benchmarks/spaces.py after.jsonl
    python benchmarks/spaces.py --compare before.jsonl after.jsonl

A dump has one line a network, sorted by library and name: the whole space as JSON (groups with their choices,
frozen layers with their reasons, dimensions, layers, module attributes), or why the network is refused.
Weights are random, with a fixed seed, and nothing is downloaded. Libraries that are not installed are left
out, with a note. `--compare` exits with 1 where the dumps differ.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from models import HEADINGS
from torch import nn

from bcnet.errors import SpaceError
from bcnet.space.discover import discover_space

Build = Callable[[str], tuple[nn.Module, Any, int]]
Dump = dict[str, dict[str, Any]]  # by library and name


def space_line(library: str, name: str, build: Build) -> str:
    """One network's line. Raises ImportError where its library is not installed."""
    torch.manual_seed(0)
    model, inputs, _ = build(name)
    found: dict[str, Any] = {"network": f"{library}: {name}"}
    try:
        found["space"] = json.loads(discover_space(model, inputs).to_json())
    except SpaceError as refused:
        found["refused"] = str(refused)
    return json.dumps(found, sort_keys=True)


def dump(path: Path, chosen: list[str]) -> None:
    """Write the lines of these networks, or of all, as they come."""
    with path.open("w", encoding="utf-8") as file:
        for library, (names, build) in sorted(HEADINGS.items()):
            for name in sorted(names):
                if chosen and name not in chosen:
                    continue
                try:
                    line = space_line(library, name, build)
                except ImportError as cause:
                    print(f"{library} is left out: {cause}")
                    break
                file.write(line + "\n")
                file.flush()
                print(f"{library}: {name}", flush=True)


def load(path: Path) -> Dump:
    """A dump's spaces by network, or the reason why it is refused."""
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {line["network"]: line.get("space", line) for line in lines}


def differences(first: Dump, second: Dump) -> list[str]:
    """One line for each network that is in one dump only, or that differs, with the parts that do."""
    found = []
    for name in sorted(first.keys() | second.keys()):
        if name not in first or name not in second:
            found.append(f"{name}: only in the {'first' if name in first else 'second'} dump")
            continue
        one, other = first[name], second[name]
        parts = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
        if parts:
            found.append(f"{name}: {', '.join(parts)}")
    return found


def compare(first: Path, second: Path) -> int:
    """Print how two dumps differ; the exit code."""
    one, other = load(first), load(second)
    found = differences(one, other)
    print("\n".join(found) or f"identical: {len(one)} networks")
    return 1 if found else 0


def main() -> None:
    """Parse, dump or compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"), help="compare two dumps")
    add("output", nargs="?", type=Path, help="file for the dump, one JSON line a network")
    add("networks", nargs="*", metavar="NETWORK", help="default: all of them")
    add("--threads", type=int, default=1, help="threads of PyTorch (default: 1)")
    options = parser.parse_args()
    if options.compare:
        sys.exit(compare(*options.compare))
    if options.output is None:
        parser.error("name a file for the dump, or use --compare")
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # those of the libraries' constructors
    dump(options.output, options.networks)


if __name__ == "__main__":
    main()
