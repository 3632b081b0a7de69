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


def test_where_they_are_the_table_ends_with_the_settings_that_hand_them_over(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = json.loads((RUN / "compare/result.json").read_text(encoding="utf-8"))
    show_comparison({**summary, "better": None})
    assert "from scratch: " not in capsys.readouterr().out
    show_comparison({**summary, "better": {"from_scratch": True, "epochs": 3}})
    assert capsys.readouterr().out.endswith(
        "its widths are better when trained from scratch: set from_scratch = true, epochs = 3 under [slice], "
        "and run again\n"
    )


def test_with_those_settings_the_winner_is_the_network_that_was_compared(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads((RUN / "compare/result.json").read_text(encoding="utf-8"))["networks"]
    text = Path("bcnet.toml").read_text(encoding="utf-8")
    anew = text.replace("[slice]\nepochs = 1", "[slice]\nfrom_scratch = true\nepochs = 3")
    Path("bcnet.toml").write_text(anew, encoding="utf-8")
    capsys.readouterr()
    assert main(["run", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert [network["name"] for network in found["networks"]] == ["full", "uniform", "searched"]
    assert [network["passes"] for network in found["networks"]] == [3, 3, 3]
    assert found["networks"][2]["accuracy"] == before[3]["accuracy"]
    assert found["better"] is None
