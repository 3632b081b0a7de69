"""Nothing that was measured is lost: builds that are stopped, builds at once, layers that cannot be run."""

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import measure_briefly

from bcnet.errors import NetworkError, TableError
from bcnet.hw_profiles import HwProfile
from bcnet.latency_tables.journal import Entry, Journal, alone
from bcnet.latency_tables.table import LatencyTable
from bcnet.measure import table_build
from bcnet.measure.network_latency import setting_of
from bcnet.measure.pool import at_once
from bcnet.models.digits import digit_scenes
from bcnet.onnx_export.onnx_supernet import OnnxSupernet
from bcnet.pipeline.build_lut import build_lut
from bcnet.runtimes.onnxruntime import OnnxRuntime
from bcnet.space.discover import discover_space

QUICK = HwProfile(name="cpu", description="", runtime="onnxruntime", warmup_ms=1, seconds=0.02, iterations=6)
Profiled = list[tuple[str, np.ndarray]]


@pytest.fixture(autouse=True)
def _briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    measure_briefly(monkeypatch)


@pytest.fixture(scope="module")
def graph() -> OnnxSupernet:
    torch.manual_seed(0)
    model = digit_scenes().eval()
    space = discover_space(model, torch.zeros(1, 1, 16, 16), bins=2, min_width=0.4)
    return OnnxSupernet(model, space, (1, 1, 16, 16))


@pytest.fixture
def before_each(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int, bytes], None]], None]:
    """`before_each(action)`: call `action(count, model)` before each network is profiled."""

    def put_in(action: Callable[[int, bytes], None]) -> None:
        real, counts = OnnxRuntime.profile_nodes, itertools.count()

        def profile_nodes(self: OnnxRuntime, model: bytes, runs: int) -> Profiled:
            action(next(counts), model)
            return real(self, model, runs)

        monkeypatch.setattr(OnnxRuntime, "profile_nodes", profile_nodes)

    return put_in


def test_a_build_that_is_stopped_continues_where_it_was(
    graph: OnnxSupernet, tmp_path: Path, before_each: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "latency_tables" / "cpu.json"

    def stop(count: int, model: bytes) -> None:
        if count == 4:
            raise KeyboardInterrupt

    kept: list[list[str]] = []
    for _ in range(2):
        before_each(stop)
        with pytest.raises(KeyboardInterrupt):
            build_lut(graph, QUICK, LatencyTable("cpu"), path=path)
        (journal,) = path.parent.iterdir()
        kept.append(journal.read_text(encoding="utf-8").splitlines())
        monkeypatch.undo()
    assert kept[1][: len(kept[0])] == kept[0]
    entries = [json.loads(line[17:]) for line in kept[1][1:]]
    profiled = [(entry["number"], *entry["widths"]) for entry in entries if entry["layers_ms"]]
    # Three in each build; the first network of each is not kept: it loads the runtime.
    assert len(profiled) == len(set(profiled)) == 6
    # Whole subnets, which take turns with the networks, are not timed twice either.
    timed = [(entry["number"], *entry["widths"]) for entry in entries if entry["whole_ms"]]
    assert len(timed) == len(set(timed)) == len(entries) - 6 > 0
    table = LatencyTable("cpu")
    report = build_lut(graph, QUICK, table, path=path)
    assert report.measured == len(table.rows)
    assert LatencyTable.load(path) == table
    assert [entry.name for entry in path.parent.iterdir()] == ["cpu.json"]


def test_the_duration_that_is_announced_does_not_count_the_loading_of_the_runtime(
    graph: OnnxSupernet, before_each: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, profiled = 0.0, 0

    def take(count: int, model: bytes) -> None:
        nonlocal clock, profiled
        clock += 20.0 if count else 1000.0
        profiled = count

    announced: list[tuple[str, float, int]] = []
    before_each(take)
    monkeypatch.setattr(table_build, "time", SimpleNamespace(perf_counter=lambda: clock))
    monkeypatch.setattr(table_build, "announce", lambda what, s: announced.append((what, s, profiled)))
    build_lut(graph, QUICK, LatencyTable("cpu"))
    ((what, seconds, networks),) = announced  # after four visits; those of whole subnets take no time here
    visits = 2 * int(what.removeprefix("measuring ").removesuffix(" networks"))
    assert 0 < networks <= 4
    assert seconds == pytest.approx(20.0 * networks / 4 * (visits - 4))


def test_a_journal_keeps_lines_as_they_were_written_and_forgets_all_from_a_change_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, of, belongs_to = tmp_path / "cpu.json", {"model": "m"}, {"seed": 0}
    journal = Journal(table, of, belongs_to)
    entries = [
        Entry(0, (8, 16), ((0.1, -0.001), (0.3, 0.4)), probe_ms={"matmul_ms": 0.2}),
        Entry(1, (8, 8), error="no kernel"),
    ]
    for entry in entries:
        journal.add(entry)
    assert journal.path is not None
    text = journal.path.read_text(encoding="utf-8")
    journal.path.write_text(text + text[:20], encoding="utf-8")
    again = Journal(table, of, belongs_to)
    assert again.entries == entries
    again.add(entries[0])
    assert Journal(table, of, belongs_to).entries == [*entries, entries[0]]
    assert Journal(table, {"model": "other"}, belongs_to).entries == []
    capsys.readouterr()
    journal.path.write_text(journal.path.read_text().replace("0.3", "0.2"), encoding="utf-8")
    assert Journal(table, of, belongs_to).entries == []
    assert "line 2 was changed; the measurements after that" in capsys.readouterr().err


def test_a_journal_of_other_versions_or_another_seed_is_not_continued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, of, entry = tmp_path / "cpu.json", {"model": "m"}, Entry(0, (8, 16), whole_ms=1.5)
    Journal(table, of, {"seed": 0}).add(entry)
    other = Journal(table, of, {"seed": 1})
    assert other.entries == []
    assert "it was begun with other settings" in capsys.readouterr().err
    other.add(entry)
    assert Journal(table, of, {"seed": 1}).entries == [entry]


@pytest.mark.parametrize("probe", [[1.0], {"matmul_ms": -1.0}, {"matmul_ms": float("nan")}])
def test_a_time_that_no_device_takes_is_refused(tmp_path: Path, probe: Any) -> None:
    table = tmp_path / "cpu.json"
    Journal(table, {}, {}).add(Entry(0, (8,), probe_ms=probe))
    with pytest.raises(TableError, match=r"jsonl cannot be read \(.+\); delete it to measure again"):
        Journal(table, {}, {})


def test_a_second_build_of_one_table_waits_for_the_first(tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    code = f"""
from pathlib import Path
from bcnet.latency_tables.journal import alone
with alone(Path({str(path)!r})):
    Path({str(tmp_path / "second")!r}).touch()
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as second, alone(path):
        assert second.stderr is not None
        assert "another build is adding to" in second.stderr.readline()
        assert not (tmp_path / "second").exists()
    assert second.returncode == 0
    assert (tmp_path / "second").exists()


def stem_width(model: bytes) -> int:
    """Output channels of the first convolution."""
    graph = onnx.load_from_string(model).graph
    conv = next(node for node in graph.node if node.op_type == "Conv")
    shapes = {entry.name: tuple(entry.dims) for entry in graph.initializer}
    return int(shapes[conv.input[1]][0])


def test_a_layer_that_the_runtime_cannot_run_is_recorded_and_the_build_goes_on(
    graph: OnnxSupernet, tmp_path: Path, before_each: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = graph.space.groups[0].choices[0]

    def refuse(count: int, model: bytes) -> None:
        if stem_width(model) == narrow:
            raise NetworkError("ONNX Runtime has no kernel for that")

    before_each(refuse)
    table, path = LatencyTable("cpu"), tmp_path / "cpu.json"
    report = build_lut(graph, QUICK, table, path=path)
    (stem,) = (spec for spec, _ in table.failures if spec.in_channels == 1)
    assert stem.out_channels == narrow
    assert {failure.error for failure in report.failed} == {"ONNX Runtime has no kernel for that"}
    # What meets the narrow stem cannot be seen either; all else was measured.
    assert all(narrow in (spec.in_channels, spec.out_channels) for spec, _ in table.failures)
    assert len(table.rows) + len(table.failures) == report.measured
    assert LatencyTable.load(path) == table
    monkeypatch.undo()
    again = LatencyTable.load(path)
    assert build_lut(graph, QUICK, again).measured == 0
    # Another version of the runtime may run them.
    again.sessions = [replace(again.sessions[0], provenance={"runtime_version": "0.9"})]
    assert build_lut(graph, QUICK, again).measured == len(table.failures)
    assert again.failures == {}


def test_a_network_that_does_not_run_at_any_width_is_an_error(graph: OnnxSupernet, before_each: Any) -> None:
    def refuse(count: int, model: bytes) -> None:
        raise NetworkError("ONNX Runtime has no kernel for that")

    before_each(refuse)
    table = LatencyTable("cpu")
    with pytest.raises(NetworkError, match="no kernel for that"):
        build_lut(graph, QUICK, table)
    assert table == LatencyTable("cpu")


@pytest.mark.slow
def test_measured_rows_take_the_place_of_an_estimates(graph: OnnxSupernet) -> None:
    table = LatencyTable("cpu")
    rows = build_lut(graph, QUICK, table).rows
    (session,) = table.sessions
    table.sessions = [replace(session, estimate=True)]
    report = build_lut(graph, QUICK, table)
    assert report.measured == rows
    assert [session.estimate for session in table.sessions] == [False]
    assert not table.is_estimate([spec for spec, _ in table.rows], setting_of(QUICK))


def test_several_devices_share_the_visits_and_an_error_ends_them() -> None:
    done: list[int] = []
    assert len(list(at_once(2, [partial(done.append, number) for number in range(20)]))) == 20
    assert sorted(done) == list(range(20))

    def fails() -> None:
        raise NetworkError("no more")

    def slow() -> None:
        time.sleep(0.05)
        done.append(-1)

    with pytest.raises(NetworkError, match="no more"):
        list(at_once(2, [slow, fails, *[slow] * 50]))
    assert done.count(-1) < 10
