"""Tables of two devices: a build that is killed inside of the second one, and its rows of another network."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from steady_run import CONFIG, PROFILE, Commands, essence, new_folder

pytest_plugins = ("fault_fixtures",)
KILLED = 137
BOTH = ("--device", "cpu", "--device", "pairs")
TABLES = [f"latency_tables/{name}.json" for name in ("cpu", "pairs")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A new working folder with two devices: one image a call, and two."""
    path = new_folder(tmp_path / "two")
    (path / "hw_profiles/pairs.toml").write_text(f"{PROFILE}batch = 2\n", encoding="utf-8")
    return path


def test_a_build_that_is_killed_inside_of_the_second_devices_table_goes_on_there(
    commands: Commands, folder: Path, tmp_path: Path
) -> None:
    whole = shutil.copytree(folder, tmp_path / "whole")
    operations = commands(whole, "build-lut", *BOTH)["operations"]
    of_second = [number for number, own in enumerate(operations, 1) if "/.pairs." in own]
    # Before its first file, in the middle of its measurements, before its journal is removed at the end.
    for place in (0, len(of_second) // 2, -1):
        own = shutil.copytree(folder, tmp_path / str(place))
        assert commands(own, "build-lut", *BOTH, kill=of_second[place])["code"] == KILLED
        first = (own / TABLES[0]).read_bytes()
        assert not (own / "runs/default/build-lut/report.json").exists()
        answer = commands(own, "build-lut", *BOTH)
        assert answer["code"] == 0, answer["said"]
        assert f"{TABLES[0]} has all " in answer["said"]  # the first one is not measured again
        assert (own / TABLES[0]).read_bytes() == first
        assert ("continuing a build that was stopped" in answer["said"]) == (place > 0)
        assert (f"{TABLES[1]} has all " in answer["said"]) == (place < 0)
        assert sorted(path.name for path in (own / "latency_tables").iterdir()) == ["cpu.json", "pairs.json"]
        assert essence(own) == essence(whole)


def rows_of(folder: Path, table: str) -> list[Any]:
    (own,) = json.loads((folder / table).read_text(encoding="utf-8"))["settings"]
    return list(own["rows"])


def test_rows_of_another_network_in_the_second_devices_table_are_kept_and_not_used(
    commands: Commands, folder: Path
) -> None:
    assert commands(folder, "build-lut", *BOTH)["code"] == 0
    before = [rows_of(folder, table) for table in TABLES]
    wanted = essence(folder)
    # The layers have other shapes now; the first device's table gets those, the second one's does not.
    (folder / "bcnet.toml").write_text(CONFIG.replace("image_size = 8", "image_size = 12"), encoding="utf-8")
    assert commands(folder, "train")["code"] == 0
    assert commands(folder, "build-lut", "--device", "cpu")["code"] == 0
    answer = commands(folder, "search", *BOTH)
    assert answer["code"] == 1
    line = answer["said"].splitlines()[-1]
    assert line.startswith("bcnet: no row for Conv 1->6 at "), line
    assert "in the table of 'pairs', which was built for other layers" in line
    assert "run `bcnet build-lut --device cpu --device pairs`, which adds what is missing" in line

    answer = commands(folder, "build-lut", *BOTH)
    assert answer["code"] == 0, answer["said"]
    assert f"{TABLES[0]} has all " in answer["said"]
    for table, own in zip(TABLES, before, strict=True):
        rows = rows_of(folder, table)
        assert [row for row in rows if row in own] == own
        assert len(rows) > len(own)
    assert commands(folder, "search", *BOTH)["code"] == 0

    # Back to the network before: its rows are there, and say what they said.
    (folder / "bcnet.toml").write_text(CONFIG, encoding="utf-8")
    answer = commands(folder, "build-lut", *BOTH)
    assert [f"{table} has all " in answer["said"] for table in TABLES] == [True, True]
    for name in ("report.json", "report-pairs.json"):
        report = essence(folder)[f"runs/default/build-lut/{name}"]
        assert report == wanted[f"runs/default/build-lut/{name}"]
