"""The comparison at the end of a run: which networks, and what it says of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from bcnet.cli import main
from bcnet.latency_tables.rows import LatencyStat
from bcnet.pipeline.compare import Entry, better_anew
from bcnet.show import show_comparison
from bcnet.supernet.space import Widths

RUN = Path("runs/default")


def entry(name: str, low: float | None, high: float | None) -> Entry:
    return Entry(name, Widths((8,)), 0.5, low, high, LatencyStat(1.0, 1.1, 0.0, 10), 1, 1, 1, 3)


@pytest.mark.parametrize(
    ("low", "high", "better"), [(0.61, 0.7, True), (0.59, 0.7, False), (0.4, 0.5, False), (None, None, False)]
)
def test_widths_are_better_from_scratch_where_intervals_do_not_touch(
    low: float | None, high: float | None, better: bool
) -> None:
    searched = entry("searched", 0.5, 0.6)
    assert better_anew((searched, entry("from scratch", low, high))) is better
    assert not better_anew((searched,))


def test_where_they_are_the_table_ends_with_the_commands_that_hand_them_over(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = json.loads((RUN / "compare/result.json").read_text(encoding="utf-8"))
    show_comparison({**summary, "better": None})
    assert "from scratch; " not in capsys.readouterr().out
    show_comparison({**summary, "better": "bcnet slice --from-scratch --epochs 3, then bcnet export"})
    assert capsys.readouterr().out.endswith(
        "its widths are better when trained from scratch; to have that: "
        "bcnet slice --from-scratch --epochs 3, then bcnet export\n"
    )


def test_a_winner_that_was_trained_from_scratch_is_not_trained_so_twice(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = Path("bcnet.toml").read_text(encoding="utf-8")
    Path("bcnet.toml").write_text(text.replace("[slice]", "[slice]\nfrom_scratch = true"), encoding="utf-8")
    capsys.readouterr()
    assert main(["run", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert [network["name"] for network in found["networks"]] == ["full", "uniform", "searched"]
    assert found["better"] is None
