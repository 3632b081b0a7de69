"""The benchmarks on one's own network: their configuration in its smallest form, and how a test runs them."""

import runpy
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

CONFIG = """
[model]
name = "cbm-resnet"
args = {widths = [4, 4, 4, 4, 4, 4, 4]}
[data]
image_size = 16
train_limit = 80
test_limit = 40
[space]
bins = 4
channel_multiple = 1
min_width = 0.25
[train]
batch_size = 20
[search]
recalibration_images = 20
"""


def run_benchmark(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> None:
    """Run a program of `benchmarks/` in this process, as its command line would."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr("sys.argv", [name, *arguments])
    runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
