"""The regression check on a real runtime: base against head on a small table, and a table measured again.

Times on a test machine say nothing for sure: what is certain fails a test, the verdict is printed.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Refused

from bcnet.cli import main
from bcnet.errors import NetworkError, TableError
from bcnet.hw_profiles import HwProfile
from bcnet.latency_tables.against import compare_tables
from bcnet.latency_tables.observations import TICK_MS
from bcnet.latency_tables.regression_check import EXIT_CODES
from bcnet.latency_tables.rows import Failure
from bcnet.latency_tables.table import LatencyTable
from bcnet.measure.network_latency import setting_of
from bcnet.models.digits import digits
from bcnet.onnx_export.onnx_supernet import OnnxSupernet
from bcnet.pipeline.build_lut import build_lut
from bcnet.pipeline.check_lut import CheckSettings, check_lut
from bcnet.runtimes.onnxruntime import OnnxRuntime
from bcnet.space.discover import discover_space

QUICK = HwProfile(name="cpu", description="", runtime="onnxruntime", warmup_ms=1, seconds=0.02, iterations=6)


COMMITTED = Path(__file__).parent.parent / "latency_tables" / "cpu-digits.json"


@pytest.fixture(scope="module")
def graph() -> OnnxSupernet:
    return small_graph()


def small_graph() -> OnnxSupernet:
    torch.manual_seed(0)
    model = digits(num_classes=10).eval()
    space = discover_space(model, torch.zeros(1, 1, 16, 16), bins=2, min_width=0.4)
    return OnnxSupernet(model, space, (1, 1, 16, 16))


@pytest.fixture(scope="module")
def base(graph: OnnxSupernet) -> LatencyTable:
    table = LatencyTable("cpu")
    build_lut(graph, QUICK, table)
    return table


def test_base_against_head(base: LatencyTable, capsys: pytest.CaptureFixture[str]) -> None:
    """A change of what layers are called would make every committed table worthless: it fails here.

    `python tests/pipeline/test_check_lut.py` measures the committed table again.
    """
    committed = LatencyTable.load(COMMITTED)
    report = compare_tables(base, committed, names=("head", COMMITTED.name))
    with capsys.disabled():
        print(f"\nbase against head: {report.headline}")
    assert report.findings == ()
    assert base.rows.keys() == committed.rows.keys()
    assert report.rows + report.unchecked == len(base.rows)
    # A layer that takes less than a tick has no ratio; a 3 x 3 convolution of many channels takes several.
    timed = {key for key, row in base.rows.items() if row.stat.median_ms >= TICK_MS}
    compared = {key for key in timed if committed.rows[key].stat.median_ms >= TICK_MS}
    assert report.rows == len(compared)
    assert {key for key in base.rows if key[0].kernel == (3, 3) and key[0].in_channels > 1} <= compared


def test_a_table_is_measured_again_in_place(graph: OnnxSupernet, base: LatencyTable) -> None:
    report = check_lut(graph, QUICK, base, CheckSettings(rows=12, seconds=1))
    print(f"\nmeasured again: {report.headline}")
    assert report.exit_code == EXIT_CODES[report.verdict.status]
    assert 12 <= report.rows <= len(base.rows)
    assert report.rows + report.unchecked == len(base.rows)
    assert report.networks >= 1
    assert report.rounds >= 3
    assert {part.name for part in report.verdict.probe} == {"matmul_ms", "stream_ms", "sweep_ms"}
    assert all(kind.now_ms > 0 for kind in report.verdict.kinds)


def test_layers_that_are_known_to_fail_are_left_out_and_new_failures_are_a_finding(
    graph: OnnxSupernet, base: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = graph.slots[0].at(graph.space.largest())
    known = replace(base, rows=dict(base.rows), failures={})
    row = known.rows.pop((full, setting_of(QUICK)))
    known.failures[full, row.setting] = Failure(full, row.setting, "no kernel", 0)
    seen: list[int] = []
    real = OnnxRuntime.profile_nodes

    def profile_nodes(self: OnnxRuntime, model: bytes, runs: int) -> list[tuple[str, np.ndarray]]:
        seen.append(len(model))
        if fails and len(seen) == 1:
            raise NetworkError("ONNX Runtime has no kernel for that")
        return real(self, model, runs)

    monkeypatch.setattr(OnnxRuntime, "profile_nodes", profile_nodes)
    fails = False
    assert check_lut(graph, QUICK, known, CheckSettings(rows=12, seconds=1)).findings == ()
    assert max(seen) < len(graph.variant(graph.space.largest()))
    fails, seen = True, []
    broken = check_lut(graph, QUICK, base, CheckSettings(rows=30, seconds=1))
    assert (broken.status, broken.exit_code) == ("incomplete", 3)
    assert "the runtime fails on a network" in broken.headline
    assert "no kernel for that" in broken.findings[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--max-slowdown", "3%"), "takes a percentage from 4 to 100"),
        (("--max-slowdown", "5"), "e.g. \"5%\", not '5'"),
        (("--device", "nope"), "unknown device 'nope'"),
        (("--against", "base.json", "--batch", "4"), "--against compares all settings"),
    ],
)
def test_flags_that_cannot_be_meant_are_wrong_usage(
    folder: Path, refused: Refused, flags: tuple[str, ...], message: str
) -> None:
    assert message in refused(2, "check-lut", *flags)


def test_another_setting_and_an_estimate_are_refused(graph: OnnxSupernet, base: LatencyTable) -> None:
    with pytest.raises(TableError, match=r"no row of this network at .*batch 4.*it holds: .*batch 1"):
        check_lut(graph, QUICK.model_copy(update={"batch": 4}), base, CheckSettings())
    estimated = replace(base, sessions=[replace(session, estimate=True) for session in base.sessions])
    with pytest.raises(TableError, match=r"an estimate: .* calculated, not measured"):
        check_lut(graph, QUICK, estimated, CheckSettings())


def test_the_command_measures_the_projects_own_table(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = (project / "latency_tables" / "cpu.json").read_bytes()
    code = main(["check-lut", "--seconds", "1", "--rows", "10", "--json"])
    found = json.loads(capfd.readouterr().out)
    assert code == found["exit_code"] == EXIT_CODES[found["verdict"]["status"]]
    assert (found["device"], found["against"]) == ("cpu", "this machine now")
    assert found["rows"] >= 10
    assert (project / "latency_tables" / "cpu.json").read_bytes() == before


if __name__ == "__main__":
    build_lut(small_graph(), QUICK, LatencyTable("cpu"), path=COMMITTED)
