"""What a configuration costs: units of work that are counted as the stages do them, and tried for real."""

import json
import mmap
from pathlib import Path
from typing import Any

import pytest
from conftest import CONFIG, PROFILE

from bcnet.cli import main
from bcnet.pipeline.cost import Cost, Part
from bcnet.pipeline.trial import Unit, stated, tried
from bcnet.progress import duration
from bcnet.show import show_costs

MIB = 1 << 20


@pytest.fixture
def configured(folder: Path) -> Path:
    """A folder with the tiny project's configuration and nothing else."""
    Path("bcnet.toml").write_text(CONFIG, encoding="utf-8")
    Path("hw_profiles").mkdir()
    Path("hw_profiles/cpu.toml").write_text(PROFILE, encoding="utf-8")
    return folder


def test_a_cost_is_the_sum_of_its_parts_and_the_memory_of_the_largest() -> None:
    def never() -> Unit:
        raise AssertionError("what is not done is not tried")

    cost = Cost.of(
        "slice",
        Part(1200, "steps", lambda: Unit(0.05, 3_000, 70)),
        Part(0, "scores", never),
        Part(2, "evaluations", lambda: Unit(1.5, 5_000, 20)),
    )
    assert (cost.seconds, cost.memory, cost.gpu_memory) == (63.0, 5_000, 70)
    assert cost.basis == "1,200 steps of 50 ms, 2 evaluations of 1.5 s"
    assert Cost.of("build-lut", Part(0, "profiles", never)).basis == "nothing to do"


def test_the_memory_of_a_unit_is_the_peak_while_it_is_tried() -> None:
    def filled() -> float:
        """Memory that is given back at once, whatever other tests have made the allocator keep."""
        with mmap.mmap(-1, 200 * MIB) as block:
            for _ in range(200):
                block.write(bytes(MIB))
            return float(len(block))

    small = tried(lambda: None)
    large = stated(filled)
    again = tried(lambda: None)
    assert large.seconds == 200 * MIB
    assert 150 * MIB < large.memory - small.memory < 250 * MIB
    assert again.memory < large.memory - 100 * MIB  # that of others does not count


def test_costs_count_what_the_stages_of_a_run_did(
    finished: tuple[Path, dict[str, Any]], configured: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--cost", "--json"]) == 0
    costs = {own["stage"]: own for own in json.loads(capfd.readouterr().out)["cost"]}
    run = finished[0] / "runs/default"

    def of(file: str) -> Any:
        return json.loads((run / file).read_text(encoding="utf-8"))

    steps = len((run / "train/supernet.jsonl").read_text(encoding="utf-8").splitlines()) - 1
    networks, scored = of("build-lut/report.json")["networks"], 4 * (1 + 1)
    bases = {
        "train": f"{steps} steps of ",
        "build-lut": f"{2 * networks} profiles of ",
        "search": f"{scored} scores of ",
        "slice": "1 scores of ",
        "export": "1 export of ",
        "verify": "1 evaluation of the file of ",
        "compare": "3 epochs of the full network of ",
    }
    for stage, basis in bases.items():
        assert costs[stage]["basis"].startswith(basis)
        assert costs[stage]["seconds"] > 0 or stage == "export"  # which these tests remember
        assert 50 * MIB < costs[stage]["memory"] < 8_000 * MIB
        assert costs[stage]["gpu_memory"] == 0
    assert list(costs) == list(bases)
    assert "6 epochs of small networks of " in costs["compare"]["basis"]
    assert not Path("runs").exists()
    assert not Path("latency_tables").exists()


def test_stages_that_need_another_device_have_no_estimate(
    configured: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("hw_profiles/old.toml").write_text(f"{PROFILE}machine = 'pdp11'\n", encoding="utf-8")
    assert main(["doctor", "--cost", "--json", "--device", "old"]) == 3
    costs = {own["stage"]: own for own in json.loads(capfd.readouterr().out)["cost"]}
    for stage in ("build-lut", "compare"):
        assert costs[stage]["seconds"] is None
        assert costs[stage]["basis"].startswith("device 'old' is pdp11, this machine ")
    assert costs["search"]["basis"].count(",") == 0
    assert costs["verify"]["seconds"] > 0


def test_the_table_shows_times_memory_and_what_they_are_of(capsys: pytest.CaptureFixture[str]) -> None:
    show_costs(
        [
            Cost("train", 9000.0, 1_260_000_000, 0, "180 steps of 50 s"),
            Cost("build-lut", None, None, None, "not here"),
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split() == ["train", "2.5", "hours", "1.26GB"]
    assert lines[4].split() == ["build-lut", "?"]
    assert lines[5].split() == ["all", "2.5", "hours"]
    assert lines[7:] == ["train: 180 steps of 50 s", "build-lut: not here"]


def test_durations_are_in_the_unit_that_people_use() -> None:
    assert [duration(own) for own in (1.2, 119, 120, 7199, 7200, 90_000)] == [
        "1 s",
        "119 s",
        "2 min",
        "120 min",
        "2.0 hours",
        "25.0 hours",
    ]
