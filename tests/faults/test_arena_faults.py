"""Damage to the files of an arena: the same report and the same networks, or one line."""

import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from damage import damaged
from finished import AGAIN, go_to, outcome, values
from steady_run import SEED, rounds
from trained_run import ARENA, TrainedRun

from bcnet.bench import arena, arena_starts
from bcnet.bench.arena import Arena, Plan
from bcnet.bench.arena_cells import Networks
from bcnet.bench.arena_rows import rows_of
from bcnet.config import load_config
from bcnet.errors import BcnetError
from bcnet.pipeline.open_problem import open_problem
from bcnet.runs import Run

pytest_plugins = ("fault_fixtures",)
FOLDER = Path("runs/arena/bench/arena")

pytestmark = pytest.mark.slow  # a whole arena is run first


def again(*_: Any, **__: Any) -> None:
    raise BcnetError(AGAIN)


@pytest.fixture
def files(
    trained_run: Callable[..., TrainedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[Path]:
    """The files of a finished arena, in the working folder, where nothing is trained or measured again."""
    go_to(shutil.copytree(trained_run("auto", *ARENA).folder, tmp_path / "damaged"), monkeypatch)
    for method in "tuned", "original":
        monkeypatch.setattr(Networks, method, again)
    monkeypatch.setattr(arena, "measure_network", again)
    monkeypatch.setattr(arena_starts, "best_measured", again)
    return sorted(path for path in Path("runs").rglob("*") if path.is_file())


def test_no_damage_to_a_finished_arena_changes_its_report(
    files: list[Path], time_limit: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(SEED)
    printed, _ = outcome(capsys, *ARENA)
    assert printed
    for _ in range(rounds(25)):
        path = rng.choice(files)
        with damaged(path, rng, files) as how:
            time_limit(120)
            assert outcome(capsys, *ARENA)[0] in (None, printed), how
            time_limit(0)


def test_no_damaged_network_is_measured(
    files: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    time_limit: Callable[[float], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    rng = random.Random(SEED)
    networks = sorted(FOLDER.glob("networks/*.onnx"))
    contents = {path.read_bytes() for path in networks}
    timed: list[bytes] = []

    def measure(content: bytes, *_: Any, **__: Any) -> None:
        timed.append(content)
        raise BcnetError(AGAIN)

    monkeypatch.setattr(arena, "measure_network", measure)
    for _ in range(rounds(20)):
        with damaged(rng.choice(networks), rng, files) as how:
            time_limit(120)
            assert outcome(capsys, *ARENA, "--measure")[0] is None, how
            time_limit(0)
    assert set(timed) <= contents


def test_no_damage_to_what_an_arena_continues_from_changes_what_its_networks_are_made_of(
    files: list[Path], time_limit: Callable[[float], None]
) -> None:
    rng, run = random.Random(SEED), Run.named("arena")
    plan = Plan(rows_of(("uniform, l1", "group-fisher"), False), (0.75,), (0,))
    config = load_config(None, {"search": {"method": "auto"}})

    def starts() -> list[Any]:
        own = Arena(run, open_problem(config), plan).networks.starts
        found = [own.of(row, 0.75, 0, own.found(row, 0.75)) for row in plan.rows]
        return [[start.about, values(start.state)] for start in found]

    wanted = starts()
    assert [about["found_by"] for about, _ in wanted] == ["uniform", "group-fisher"]
    own = [
        path for path in files if path.is_relative_to(FOLDER) and path.suffix in (".jsonl", ".safetensors")
    ]
    for _ in range(rounds(20)):
        with damaged(rng.choice(own), rng, own) as how:
            time_limit(120)
            with suppress(BcnetError):
                assert starts() == wanted, how
            time_limit(0)
