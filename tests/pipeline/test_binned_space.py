"""Widths at equal steps of latency, from the device's table, kept beside it; and of multiply-accumulates."""

from pathlib import Path

import pytest

from bcnet.cli import main
from bcnet.config import Config, load_config
from bcnet.errors import ConfigError
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.problem import Problem

BINS = 5
TABLE, KEPT = Path("latency_tables/cpu.json"), Path("latency_tables/cpu.choices.jsonl")


def config(by: str, method: str = "unilateral") -> Config:
    space = {"bins_by": by, "bins": BINS, "channel_multiple": 1, "min_width": 0.125}
    return load_config(None, {"space": space, "train": {"method": method}})


def choices(problem: Problem) -> list[tuple[int, ...]]:
    return [group.choices for group in problem.space.groups]


def test_widths_by_latency_come_from_the_table_and_stay_when_it_changes(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = choices(open_problem(config("latency")))
    assert KEPT.exists()
    sizes = [len(own) for own in found]
    assert min(sizes) >= 2
    assert len(set(sizes)) > 1  # more where latency depends on the group
    assert abs(sum(sizes) / len(sizes) - BINS) <= 1
    KEPT.write_bytes(KEPT.read_bytes().replace(b"[", b"[ ", 3))
    assert choices(open_problem(config("latency"))) == found
    assert "cpu.choices.jsonl: line 2 was changed; widths are chosen again" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"cpu\.json lacks layers of this network at .*batch 2.*channels`$"):
        open_problem(config("latency").model_copy(update={"batch": 2}))
    TABLE.unlink()
    assert choices(open_problem(config("latency"))) == found
    KEPT.unlink()
    with pytest.raises(ConfigError, match=r"needs latency_tables/cpu\.json"):
        open_problem(config("latency"))


def test_widths_by_latency_of_bcnet_are_closed_under_the_complement(project: Path) -> None:
    space = open_problem(config("latency", "bcnet")).space
    for group in space.groups:
        assert {group.channels - width for width in group.choices[:-1]} <= set(group.choices)


def test_widths_by_multiply_accumulates_need_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    problem = open_problem(config("macs"))
    sizes = [len(own) for own in choices(problem)]
    assert len(set(sizes)) > 1
    assert not Path("latency_tables").exists()
    assert main(["inspect", "--set", "space.bins_by=latency"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == (
        'bcnet: space.bins_by = "latency" needs latency_tables/cpu.json: measure it first with '
        "`bcnet build-lut --device cpu --set space.bins_by=channels`"
    )
