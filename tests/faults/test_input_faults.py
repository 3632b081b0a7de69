"""Damage to what people write or fetch: the configuration, the profile of a device, weights, a recording.

It ends in one line, or in the same result. Where the damage makes another valid setting, results of the old
one are not shown as those of the new one: the stage that depends on it runs again.
"""

import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import damaged
from finished import go_to, outcome
from safetensors.torch import save_file
from steady_run import PROFILE, SEED, Commands, rounds
from trained_run import TrainedRun

from bcnet import runtimes
from bcnet.config import load_config
from bcnet.errors import BcnetError, DeviceError, ModelError
from bcnet.hw_profiles.target import target_profile
from bcnet.latency_tables.table import LatencyTable
from bcnet.models.checkpoint import read_checkpoints
from bcnet.pipeline import build_lut
from bcnet.runtimes.replay import Recorded

pytest_plugins = ("fault_fixtures",)
INPUTS = Path("bcnet.toml"), Path("hw_profiles/cpu.toml"), Path("trained.pt")
RECORDING = Path("recordings/cpu.jsonl")


def meaning() -> Any:
    """What the configuration and the profile say; None where they are refused."""
    with suppress(BcnetError):
        config = load_config(None)
        return config.model_dump(exclude_unset=True), target_profile(config)
    return None


def test_damage_to_a_configuration_a_profile_or_weights_is_reported_or_changes_nothing(
    trained_run: Callable[..., TrainedRun],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    time_limit: Callable[[float], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    go_to(shutil.copytree(trained_run("auto", "run").folder, tmp_path / "damaged"), monkeypatch)
    rng, wanted = random.Random(SEED), meaning()
    printed, _ = outcome(capsys, "run")
    assert printed
    for _ in range(rounds(25)):
        path = rng.choice(INPUTS)
        with damaged(path, rng, INPUTS) as how:
            time_limit(120)
            found, last = outcome(capsys, "run")
            assert found in (None, printed), how
            if path.suffix == ".toml" and meaning() == wanted:
                assert found == printed, (how, last)
            time_limit(0)


def test_no_damage_to_a_file_of_weights_ends_in_more_than_one_line(
    tmp_path: Path, time_limit: Callable[[float], None]
) -> None:
    rng, tensors = random.Random(SEED), {f"{i}.weight": torch.rand(8, 3) for i in range(9)}
    paths = [tmp_path / name for name in ("w.pt", "w.bin", "w.safetensors")]
    torch.save(tensors, paths[0])
    torch.save(tensors, paths[1], _use_new_zipfile_serialization=False)
    save_file(tensors, paths[2])
    for _ in range(rounds(150)):
        path = rng.choice(paths)
        with damaged(path, rng, paths):
            time_limit(120)
            with suppress(ModelError):  # all else fails here
                assert read_checkpoints(path)
            time_limit(0)


@pytest.fixture(scope="module")
def recorded_folder(commands: Commands, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recorded device, which is replayed, and the table that was built meanwhile."""
    folder = shutil.copytree(whole, tmp_path_factory.mktemp("recorded") / "r")
    profile = folder / "hw_profiles/cpu.toml"
    (folder / "latency_tables/cpu.json").unlink()
    profile.write_text(f'{PROFILE}record_to = "{RECORDING}"\n', encoding="utf-8")
    answer = commands(folder, "build-lut")
    assert answer["code"] == 0, answer["said"]
    profile.write_text(f'{PROFILE}recording = "{RECORDING}"\n', encoding="utf-8")
    return folder


@pytest.fixture
def recorded(recorded_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LatencyTable:
    """The table that was built while the device was recorded, in a folder that replays the recording."""
    run = build_lut.run
    go_to(shutil.copytree(recorded_folder, tmp_path / "recorded"), monkeypatch)
    monkeypatch.setattr(build_lut, "run", run)
    return LatencyTable.load(Path("latency_tables/cpu.json"))


def test_no_damage_to_a_recording_changes_an_answer(
    recorded: LatencyTable, time_limit: Callable[[float], None]
) -> None:
    """A recording that ends earlier, after a whole line, is a recording, too."""
    rng = random.Random(SEED)
    wanted = Recorded(RECORDING).entries
    assert len(wanted) > 20
    for _ in range(rounds(150)):
        with damaged(RECORDING, rng, [Path("bcnet.toml"), Path("latency_tables/cpu.json")]) as how:
            time_limit(120)
            with suppress(DeviceError):
                found = Recorded(RECORDING).entries
                assert all(wanted[key][: len(own)] == own for key, own in found.items()), how
            time_limit(0)


def test_a_table_from_a_damaged_recording_is_the_same_or_refused(
    recorded: LatencyTable, time_limit: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    rng, table = random.Random(SEED), Path("latency_tables/cpu.json")
    for _ in range(rounds(3)):
        table.unlink(missing_ok=True)
        runtimes.runtime_recorded.cache_clear()
        with damaged(RECORDING, rng, [Path("bcnet.toml")]) as how:
            time_limit(120)
            found, _ = outcome(capsys, "build-lut")
            time_limit(0)
        if found is not None:
            assert LatencyTable.load(table).rows == recorded.rows, how
