"""The table of all methods holds what the records hold, and every method."""

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
    assert PROGRAM["accuracy"]("cifar10-residual", "uniform") == "78.96 %"


def test_a_figure_without_its_record_is_an_error() -> None:
    with pytest.raises(OSError, match="never"):
        PROGRAM["ranking"](["never"])
    with pytest.raises(ValueError, match="not enough values"):
        PROGRAM["accuracy"]("cifar10-residual", "group-fisher")
