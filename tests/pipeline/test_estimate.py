"""From an estimate to an export: a device that is not at hand, on the tiny project whose run is finished."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bcnet.cli import main
from bcnet.latency_tables.roofline import DEFAULT
from bcnet.latency_tables.table import LatencyTable
from tests.conftest import Refused, contents

pytestmark = pytest.mark.usefixtures("project")

NANO = ("--device", "jetson-nano")  # slow enough for widths to matter in so small a network
TABLE = Path("latency_tables/jetson-nano.json")
Done = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture
def done(capfd: pytest.CaptureFixture[str]) -> Done:
    """`done(code, *arguments)`: what a command answered with --json, and what it said on stderr."""

    def run(code: int, *arguments: str) -> tuple[dict[str, Any], str]:
        capfd.readouterr()
        assert main([*arguments, "--json"]) == code
        out, err = capfd.readouterr()
        found = json.loads(out)
        assert isinstance(found, dict)
        return found, err

    return run


def test_without_the_device_only_an_estimate_can_be_made(refused: Refused) -> None:
    for command in ("build-lut", "run"):  # which trains first
        assert "device 't4' is not available: " in refused(1, command, "--device", "t4")
    line = refused(1, "build-lut", *NANO)
    assert "device 'jetson-nano' is" in line
    assert "measure on the device itself, or over ssh (--host user@name)" in line
    assert "`bcnet build-lut --device jetson-nano --estimate`" in line


def test_an_onnxruntime_device_of_another_kind_of_processor_is_not_measured_here(refused: Refused) -> None:
    Path("hw_profiles/board.toml").write_text(
        'description = "a board"\nruntime = "onnxruntime"\nmachine = "riscv64"\n', encoding="utf-8"
    )
    line = refused(1, "build-lut", "--device", "board")
    assert "device 'board' is riscv64, this machine" in line
    assert "--estimate" not in line  # without peaks there is none
    assert "has no [roofline] peaks" in refused(1, "build-lut", "--device", "board", "--estimate")
    assert "has no int8 peak; choose --precision fp32 or fp16" in refused(
        1, "build-lut", "--device", "jetson-nano", "--precision", "int8", "--estimate"
    )


def test_an_estimate_is_fitted_on_the_processors_own_table_and_says_how_far_it_is_off(done: Done) -> None:
    summary, said = done(0, "build-lut", *NANO, "--estimate")
    assert summary["estimate"] is True
    assert summary["rows_measured"] == 0
    measured = LatencyTable.load("latency_tables/cpu.json")
    assert summary["off_there"]["rows"] == len(measured.rows)
    assert f"{len(measured.rows)} rows of latency_tables/cpu.json" in summary["fitted_on"]
    assert 0 < summary["off_there"]["mean_error"] < 5
    assert "nothing was measured" in said
    assert "the roofline is off by" in said
    assert 0 < summary["narrowest_ms"] < summary["full_ms"]
    table = LatencyTable.load(TABLE)
    assert [session.estimate for session in table.sessions] == [True]
    assert "Jetson Nano module data sheet" in table.sessions[0].provenance["peaks from"]
    assert table.sessions[0].provenance["peaks"] == "0.472 * 10^12 fp16 operations/s, 25.6 GB/s"
    assert "launch_ms 0.0034" in table.sessions[0].provenance["shares"]
    assert "cpu.json" in table.sessions[0].provenance["fitted on"]
    assert len(table.rows) == summary["rows_used"]
    before = TABLE.read_bytes()
    done(0, "build-lut", *NANO, "--estimate")
    assert TABLE.read_bytes() == before


def test_without_a_measured_table_the_shipped_shares_are_used_and_named(done: Done) -> None:
    Path("latency_tables/cpu.json").unlink()
    summary, said = done(0, "build-lut", *NANO, "--estimate")
    assert summary["off_there"] is None
    assert summary["shares"]["grouped"] == DEFAULT.grouped
    assert "shipped with bcnet" in summary["fitted_on"]
    assert "shipped with bcnet" in said


def test_an_alias_writes_its_profiles_table(done: Done) -> None:
    summary, _ = done(0, "build-lut", "--device", "jetson", "--estimate")
    assert summary["table"] == "latency_tables/jetson-orin-nano.json"
    assert LatencyTable.load(summary["table"]).device == "jetson-orin-nano"


def test_a_run_on_an_estimate_ends_with_an_export_that_is_not_verified(
    done: Done, capfd: pytest.CaptureFixture[str]
) -> None:
    done(0, "build-lut", *NANO, "--estimate")
    exported, said = done(4, "run", *NANO)
    searched = json.loads(Path("runs/jetson-nano/search/result.json").read_text(encoding="utf-8"))
    assert searched["estimate"] is True
    assert searched["best"]["measured"] is None
    assert searched["note"].startswith("not measured")
    assert "latency_tables/jetson-nano.json is an estimate" in searched["note"]
    assert exported["estimate"] is True
    assert (exported["executed"], exported["verified"], exported["passed"]) == (False, False, True)
    assert (exported["measured"], exported["full"]) == (None, None)
    assert exported["shapes_match"] is True
    assert exported["output_error"] < 1e-3
    assert exported["accuracy"] == pytest.approx(exported["accuracy_torch"], abs=0.005)
    assert "is an estimate, not measured" in exported["not_verified"]
    assert json.loads(Path("runs/jetson-nano/export/verify.json").read_text(encoding="utf-8")) == exported
    assert Path("runs/jetson-nano/export/model.onnx").stat().st_size == exported["size_bytes"]
    last = said.strip().splitlines()[-1]
    assert last.startswith(
        "bcnet: runs/jetson-nano/export/model.onnx is not verified: latency_tables/jetson-nano.json"
    )
    assert "measure on the device itself: bcnet build-lut --device jetson-nano" in last
    assert "[6/6]" not in said
    # What is complete stays so: the same command does nothing more, and says the same.
    before = contents(Path("runs"))
    assert done(4, "run", *NANO)[0] == exported
    assert contents(Path("runs")) == before
    capfd.readouterr()
    assert main(["export", *NANO]) == 4
    out, err = capfd.readouterr()
    assert out.startswith("unverified jetson-nano, onnxruntime ")
    assert "not verified" in err.strip().splitlines()[-1]


def test_a_failed_check_is_a_failure_on_an_estimate_too(
    done: Done, capfd: pytest.CaptureFixture[str]
) -> None:
    floats = (*NANO, "--precision", "fp32")
    done(0, "build-lut", *floats, "--estimate")
    done(4, "run", *floats)
    with Path("bcnet.toml").open("a", encoding="utf-8") as file:
        file.write("output_tolerance = 1e-12\n")
    capfd.readouterr()
    assert main(["export", *floats]) == 3
    assert "outputs differ from PyTorch" in capfd.readouterr().err


def test_a_measured_build_takes_the_place_of_an_estimate_and_is_not_estimated_over(
    done: Done, refused: Refused
) -> None:
    Path("hw_profiles/here.toml").write_text(
        Path("hw_profiles/cpu.toml").read_text(encoding="utf-8")
        + '\n[roofline]\nfp32_tflops = 0.1\nbandwidth_gb_s = 20.0\nsource = "a guess of this test"\n',
        encoding="utf-8",
    )
    here = ("--device", "here")
    path = Path("latency_tables/here.json")
    estimated, _ = done(0, "build-lut", *here, "--estimate")
    assert LatencyTable.load(path).sessions[0].estimate
    measured, _ = done(0, "build-lut", *here)
    assert measured["rows_measured"] == estimated["rows_used"] > 0
    assert measured["calibration"]["mean_error"] is not None
    table = LatencyTable.load(path)
    assert [session.estimate for session in table.sessions] == [False]
    assert "estimates are never mixed" in refused(1, "build-lut", *here, "--estimate")


def test_a_table_of_a_device_that_is_not_here_serves_a_search_but_nothing_is_verified(done: Done) -> None:
    profile = Path("hw_profiles/cpu.toml").read_text(encoding="utf-8")
    Path("hw_profiles/board.toml").write_text(f'{profile}machine = "riscv64"\n', encoding="utf-8")
    measured = Path("latency_tables/cpu.json").read_text(encoding="utf-8")
    Path("latency_tables/board.json").write_text(
        measured.replace('"device": "cpu"', '"device": "board"'), encoding="utf-8"
    )
    exported, _ = done(4, "run", "--device", "board")
    searched = json.loads(Path("runs/board/search/result.json").read_text(encoding="utf-8"))
    assert (searched["estimate"], searched["best"]["measured"]) == (False, None)
    assert (exported["estimate"], exported["verified"]) == (False, False)
    assert exported["not_verified"].startswith("device 'board' is riscv64, this machine")
