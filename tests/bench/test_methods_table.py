"""The table of all methods holds what the records hold, and every method."""

import re
import runpy
from pathlib import Path

import pytest

from bcnet.registry import SUPERNETS, own_methods

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PROGRAM = runpy.run_path(str(BENCHMARKS / "methods.py"))


def test_the_table_is_what_its_program_writes() -> None:
    written = PROGRAM["PAGE"].read_text(encoding="utf-8")
    assert written == PROGRAM["page"](written), "run: python benchmarks/methods.py"


def test_every_method_has_a_row() -> None:
    rows = {row["method"] for row in PROGRAM["read"]("methods.json")}
    assert {*SUPERNETS.own(), *(own.name for own in own_methods())} <= rows


def test_figures_are_those_of_the_records() -> None:
    passes, tau, regret = PROGRAM["ranking"](["calibrated/unilateral-plain", "calibrated/unilateral-plain-1"])
    assert (passes, tau) == ("24", "0.58 to 0.72 (2 seeds)")  # as docs/benchmarks/supernets.md has them
    assert regret == "0.12 / 0.05 / 0.13 / 0.05"
    assert PROGRAM["accuracy"]("cifar10-residual", "auto") == "80.01 %"


def test_a_network_that_misses_half_the_latency_shows_its_share() -> None:
    accuracy = PROGRAM["accuracy"]
    assert accuracy("cifar10-residual-all", "iterative-taylor") == "70.90 % (0.39)"
    assert accuracy("clothing10-lite0-in-rounds", "iterative-taylor", " (f)") == "86.42 % (0.55) (f)"


def test_marks_are_explained_in_the_order_of_the_table() -> None:
    before, after = PROGRAM["PAGE"].read_text(encoding="utf-8").split(PROGRAM["END"])
    marks = list(dict.fromkeys(re.findall(r" \(([a-z])\)", before)))
    assert marks == sorted(marks) == re.findall(r"^- \(([a-z])\) ", after, re.MULTILINE)


def test_a_figure_without_its_record_is_an_error() -> None:
    with pytest.raises(OSError, match="never"):
        PROGRAM["ranking"](["never"])
    with pytest.raises(ValueError, match="not enough values"):
        PROGRAM["accuracy"]("cifar10-residual", "group-fisher")
