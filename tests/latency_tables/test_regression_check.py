"""Statistics of the regression check: layers with known slowdowns and known noise in, verdicts out."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from bcnet.cli import main
from bcnet.errors import TableError
from bcnet.latency_tables.against import compare_tables
from bcnet.latency_tables.check_report import CheckReport, annotations, junit
from bcnet.latency_tables.machine import Machine, Probed
from bcnet.latency_tables.observations import Observation
from bcnet.latency_tables.regression_check import Verdict, verdict_on
from bcnet.latency_tables.rows import Failure, LatencyStat, LayerSpec, Row, Session, Setting
from bcnet.latency_tables.table import LatencyTable

SETTING = Setting("onnxruntime", "fp32", 1, 1, "default")
CONV = LayerSpec("Conv", 8, 8, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, "Relu", False, 16, 16)
POINTWISE = [replace(CONV, kernel=(1, 1), in_channels=8 * i, out_channels=16) for i in range(1, 25)]
DEPTHWISE = [replace(CONV, in_channels=8 * i, out_channels=8 * i, groups=8 * i) for i in range(1, 17)]
HEAD = [replace(CONV, op="Gemm", kernel=(), in_channels=8 * i, out_channels=10) for i in range(1, 5)]
LAYERS = [*POINTWISE, *DEPTHWISE, *HEAD]
PROBE = {"matmul_ms": 0.04, "stream_ms": 1.4}
STEADY = {"matmul_ms": 0.005, "stream_ms": 0.02}


def probed(clock: float = 1.0, memory: float = 1.0) -> Probed:
    return Probed({"matmul_ms": 0.04 * clock, "stream_ms": 1.4 * memory}, STEADY, 20)


def observed(
    slowdown: Callable[[LayerSpec], float] = lambda layer: 1.0, noise: float = 0.02, seed: int = 0
) -> list[Observation]:
    """Two networks, ten rounds: each row off by 1.5 % between the sessions, each round by `noise`."""
    rng = np.random.default_rng(seed)
    found = []
    rounds = rng.normal(0, noise / 2, 10)
    for number, layer in enumerate(LAYERS):
        then = 0.02 * (1 + number % 7)
        true = math.log(then * slowdown(layer)) + rng.normal(0, 0.015)
        now = np.exp(true + rounds + rng.normal(0, noise, (2, 10)))
        found.append(Observation(layer, then, 0.02, tuple(tuple(map(float, network)) for network in now)))
    return found


def verdict_of(observations: list[Observation], now: Probed | None = None, **settings: float) -> Verdict:
    return verdict_on(observations, probed(), now or probed(), **settings)


def test_an_unchanged_runtime_is_ok() -> None:
    verdicts = [verdict_of(observed(seed=seed)) for seed in range(20)]
    assert {verdict.status for verdict in verdicts} == {"ok"}
    assert {verdict.exit_code for verdict in verdicts} == {0}
    assert not any(verdict.slower or verdict.faster for verdict in verdicts)
    inside = [verdict.everything.low < 0 < verdict.everything.high for verdict in verdicts]
    assert sum(inside) >= 18


def test_all_rows_a_fifth_slower_are_found() -> None:
    verdicts = [verdict_of(observed(lambda layer: 1.2, seed=seed)) for seed in range(20)]
    assert [verdict.status for verdict in verdicts].count("slower") >= 19
    assert verdicts[0].exit_code == 3
    assert verdicts[0].everything.change == pytest.approx(0.2, abs=0.03)
    assert verdicts[0].reason.startswith("all rows are slower by ")


def test_one_kind_a_fifth_slower_is_found_and_named_alone() -> None:
    def slowdown(layer: LayerSpec) -> float:
        return 1.2 if layer.groups > 1 else 1.0

    verdicts = [verdict_of(observed(slowdown, seed=seed)) for seed in range(20)]
    assert [verdict.status for verdict in verdicts].count("slower") >= 19
    assert {change.name for verdict in verdicts for change in verdict.slower} == {"Conv 3x3 depthwise"}
    assert abs(verdicts[0].everything.change) < 0.1


def test_one_row_three_times_as_slow_is_found_and_named() -> None:
    found = verdict_of(observed(lambda layer: 3.0 if layer == POINTWISE[5] else 1.0))
    assert found.status == "slower"
    assert [change.name for change in found.slower] == ["Conv 1x1 48->16 + Relu at 16x16"]
    assert found.slower[0].change == pytest.approx(2.0, abs=0.2)


def test_faster_rows_are_reported_and_are_no_fault() -> None:
    found = verdict_of(observed(lambda layer: 0.7))
    assert found.status == "ok"
    assert {change.name for change in found.faster} >= {"Conv 1x1", "Conv 3x3 depthwise"}
    assert found.everything.change == pytest.approx(-0.3, abs=0.03)


@pytest.mark.parametrize("moved", [probed(clock=1.3, memory=1.3), probed(memory=0.7), probed(memory=1.4)])
def test_a_probe_that_moved_means_another_machine_whatever_the_rows_say(moved: Probed) -> None:
    found = verdict_of(observed(lambda layer: 1.3), moved)
    assert (found.status, found.exit_code) == ("machine differs", 4)
    assert "stream_ms" in found.reason


def test_on_another_machine_a_kind_is_still_compared_with_the_others() -> None:
    found = verdict_of(observed(lambda layer: 2.0 if layer.groups > 1 else 1.3), probed(1.3, 1.3))
    assert found.status == "machine differs"
    worst = max(found.relative, key=lambda change: change.change)
    assert worst.name == "Conv 3x3 depthwise"
    assert worst.change == pytest.approx(2.0 / 1.3 - 1, abs=0.05)
    assert verdict_on(observed(), probed(), probed(), other_machine="another processor").exit_code == 4


def test_rows_that_are_slower_as_the_probe_is_are_not_called_slower() -> None:
    assert verdict_of(observed(lambda layer: 1.06), probed(1.03, 1.08)).status != "slower"


def test_noise_that_would_hide_a_slowdown_is_inconclusive_and_says_how_long_to_measure() -> None:
    rows = [replace(o, now_ms=tuple(n[:3] for n in o.now_ms)) for o in observed(noise=0.12, seed=3)]
    shaken = []
    for o in rows:  # whole rounds up and down together, as on a busy machine
        shaken.append(replace(o, now_ms=tuple((n[0] * 0.9, n[1], n[2] * 1.1) for n in o.now_ms)))
    found = verdict_of(shaken, seconds=8.0)
    assert (found.status, found.exit_code) == ("inconclusive", 4)
    assert found.seconds_needed is not None
    assert found.seconds_needed >= 16
    assert f"measure for {found.seconds_needed:.0f} s" in found.reason


@pytest.mark.parametrize(
    "wrong", [math.nan, -1.0, 0.0, math.inf, 1e9], ids=["NaN", "negative", "zero", "infinite", "absurd"]
)
def test_times_that_cannot_be_are_refused(wrong: float) -> None:
    rows = observed()
    with pytest.raises(TableError, match="are not times in ms"):
        verdict_of([replace(rows[0], then_ms=wrong), *rows[1:]])
    with pytest.raises(TableError, match="are not times in ms"):
        verdict_of([replace(rows[0], now_ms=((wrong,),)), *rows[1:]])


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(TableError, match="no rows to compare"):
        verdict_of([])
    with pytest.raises(TableError, match="the table has no part in common with today's"):
        verdict_of(observed(), Probed({"other_ms": 1.0}, {}))
    with pytest.raises(TableError, match="the reference microbenchmark took nan ms"):
        verdict_of(observed(), Probed({"matmul_ms": math.nan}, {}))
    with pytest.raises(TableError, match="0 is not a valid maximum slowdown"):
        verdict_of(observed(), max_slowdown=0)


def test_kinds_are_what_a_runtime_has_a_kernel_for() -> None:
    assert [rows[3].kind for rows in (POINTWISE, DEPTHWISE, HEAD)] == [
        "Conv 1x1",
        "Conv 3x3 depthwise",
        "Gemm",
    ]
    assert replace(CONV, groups=4).kind == "Conv 3x3 grouped"


def table_of(layers: list[LayerSpec], slowdown: float = 1.0, **session: object) -> LatencyTable:
    provenance = {"runtime": "onnxruntime", "runtime_version": "1", "processor": "this one"}
    table = LatencyTable("cpu", [replace(Session("2026-01-01", provenance, PROBE, STEADY), **session)])  # type: ignore[arg-type]
    for number, layer in enumerate(layers):
        ms = round(0.02 * (1 + number % 7) * slowdown, 5)
        table.rows[layer, SETTING] = Row(layer, SETTING, LatencyStat(ms, ms, 0.01, 20), 0)
    return table


def test_two_equal_tables_are_ok_and_a_slower_one_is_not() -> None:
    same = compare_tables(table_of(LAYERS), table_of(LAYERS))
    assert (same.exit_code, same.rows, same.findings) == (0, len(LAYERS), ())
    assert same.verdict.everything.change == pytest.approx(0, abs=1e-3)
    assert compare_tables(table_of(LAYERS, 1.3), table_of(LAYERS)).exit_code == 3


@pytest.mark.parametrize("spread", [math.nan, math.inf, -0.1])
def test_a_probe_whose_spread_is_no_number_is_refused(spread: float) -> None:
    with pytest.raises(TableError, match=r"microbenchmark has a spread of .*bcnet build-lut --again"):
        verdict_of(observed(), Probed(probed().medians_ms, {"matmul_ms": spread}))


def test_a_layer_of_next_to_no_time_is_as_uncertain_as_the_clock_and_breaks_nothing() -> None:
    tiny = Observation(LayerSpec("Flatten", 8, 8), 0.001, 0.0, ((0.0005,) * 4,))
    found = verdict_of([*observed(), tiny])
    assert found.status == "ok"
    (flatten,) = (kind for kind in found.kinds if kind.name == "Flatten")
    assert flatten.high > 1.0


@pytest.mark.parametrize("part", ["matmul_ms", "loop_ms"])  # the latter without numpy
def test_a_probe_without_the_memory_explains_the_clock_alone(part: str) -> None:
    clock_only = Machine(Probed({part: 0.04}, {}), Probed({part: 0.042}, {}))
    explained, error = clock_only.explains((0.35, 0.25))
    assert explained == pytest.approx(math.log(1.05))
    assert error >= clock_only.error(part)
    steady = Probed({part: 0.04}, {part: 0.005}, 20)
    assert verdict_on(observed(), steady, steady).status == "ok"


def test_rows_that_the_head_lacks_fail_the_check_and_new_ones_are_noted() -> None:
    head = table_of(LAYERS)
    for layer in LAYERS[:3]:
        del head.rows[layer, SETTING]
    lacking = compare_tables(head, table_of(LAYERS))
    assert (lacking.verdict.status, lacking.exit_code) == ("ok", 3)
    assert lacking.findings[0].startswith(
        f"3 of {len(LAYERS)} rows are missing: Conv 1x1 8->16 + Relu at 16x16"
    )
    head.failures[LAYERS[0], SETTING] = Failure(LAYERS[0], SETTING, "not implemented", 0)
    assert compare_tables(head, table_of(LAYERS)).findings[1] == (
        "the runtime fails on 1 of them, such as Conv 1x1 8->16 + Relu at 16x16: not implemented"
    )
    grown = compare_tables(table_of(LAYERS), table_of(LAYERS[:-3]))
    assert (grown.exit_code, grown.notes) == (0, ("3 new rows",))


def test_a_noisy_table_equals_itself() -> None:
    noisy, other = table_of(LAYERS), table_of(LAYERS)
    for table in (noisy, other):
        for key, row in table.rows.items():
            table.rows[key] = replace(row, stat=replace(row.stat, spread=0.9))
    found = compare_tables(noisy, other)
    assert (found.status, found.exit_code) == ("ok", 0)
    assert found.headline.startswith(f"ok: both are the same table (all {len(LAYERS)} rows +0.0%")
    key, row = next(iter(other.rows.items()))
    other.rows[key] = replace(row, stat=replace(row.stat, median_ms=1.01 * row.stat.median_ms))
    assert compare_tables(noisy, other).status == "inconclusive"


def test_tables_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(TableError, match="compare tables of the same device"):
        compare_tables(table_of(LAYERS), replace(table_of(LAYERS), device="t4"))
    with pytest.raises(TableError, match="no row in common"):
        compare_tables(table_of(LAYERS[:3]), table_of(LAYERS[3:]))
    with pytest.raises(TableError, match=r"an estimate: .* calculated, not measured"):
        compare_tables(table_of(LAYERS), table_of(LAYERS, estimate=True))


def test_another_processor_is_another_machine_and_another_version_is_a_note() -> None:
    there = {"processor": "another one", "runtime_version": "2"}
    found = compare_tables(table_of(LAYERS, provenance=there), table_of(LAYERS))
    assert found.exit_code == 4
    assert "another processor: this one then, another one now" in found.headline
    assert "runtime_version: 1 then, 2 now" in found.notes


def test_layers_of_several_settings_are_kinds_of_their_own() -> None:
    base, head = table_of(LAYERS), table_of(LAYERS)
    two = replace(SETTING, threads=2)
    for layer in LAYERS:
        base.rows[layer, two] = replace(base.rows[layer, SETTING], setting=two)
        slow = replace(
            base.rows[layer, SETTING].stat, median_ms=base.rows[layer, SETTING].stat.median_ms * 1.3
        )
        head.rows[layer, two] = Row(layer, two, slow, 0)
    slower = [change.name for change in compare_tables(head, base).verdict.slower]
    assert slower
    assert all("2 threads" in name for name in slower)


STAGES = sorted(
    replace(CONV, in_channels=8 * i, out_channels=8 * o, stride=(s, s), in_height=size, in_width=size)
    for size in (32, 16, 8)
    for s in (1, 2)
    if (size, s) != (8, 2)
    for i in range(1, 9)
    for o in range(1, 7)
)


def stages(
    slowdown: Callable[[LayerSpec], float] = lambda layer: 1.0, seed: int | None = None
) -> LatencyTable:
    """240 rows of one kind, of 5 to 95 microseconds; with a seed, measured again with real tables' noise.

    Two builds on one machine differed by about 1 % in all rows, by 2 % in a row, and by 10 % in one of 50.
    """
    table = table_of([])
    rng = np.random.default_rng(seed)
    off = 1.0 if seed is None else math.exp(rng.normal(0, 0.01))
    for number, layer in enumerate(STAGES):
        own = 1.0 if seed is None else math.exp(0.015 * rng.standard_t(3))
        ms = round(0.005 * (1 + number % 19) * slowdown(layer) * off * own, 5)
        table.rows[layer, SETTING] = Row(layer, SETTING, LatencyStat(ms, ms, 0.007, 120), 0)
    return table


def strided(factor: float) -> Callable[[LayerSpec], float]:
    return lambda layer: factor if layer.stride == (2, 2) else 1.0


def first_rows(layer: LayerSpec) -> float:
    """A third of the rows: those of few channels, as they stand first in a table."""
    return 1.3 if layer in STAGES[:80] else 1.0


@pytest.mark.parametrize("seed", [None, 1, 2])
@pytest.mark.parametrize(
    ("slowdown", "said"),
    [
        (first_rows, r"\d+ of 240 rows are slower by (29|3\d)\.\d%"),
        (strided(1.3), r"\d+ of 240 rows \(mostly Conv 3x3 stride 2x2\) are slower by (29|3\d)\.\d%"),
        (strided(1.5), r"\d+ of 240 rows \(mostly Conv 3x3 stride 2x2\) are slower by (4[89]|5\d)\.\d%"),
    ],
    ids=["first rows", "stride 2 by 30 %", "stride 2 by 50 %"],
)
def test_a_slowdown_of_a_part_of_the_rows_of_one_kind_is_found(
    slowdown: Callable[[LayerSpec], float], said: str, seed: int | None
) -> None:
    found = compare_tables(stages(slowdown, seed), stages())
    assert (found.exit_code, found.status) == (3, "slower")
    assert re.match(said, found.verdict.reason)
    total = found.verdict.total
    assert total.change == pytest.approx(total.now_ms / total.then_ms - 1)
    assert f"total time {total.change:+.1%}" in found.headline
    if seed is None:
        assert found.verdict.everything.change == pytest.approx(0, abs=0.01)
        listed = [case.get("name") for case in ElementTree.fromstring(junit(found))[0].iter("testcase")]
        assert listed[-1] in ("80 of 240 rows", "96 of 240 rows (mostly Conv 3x3 stride 2x2)")


def test_tables_built_again_are_ok_whatever_part_of_the_rows_is_looked_at() -> None:
    found = [compare_tables(stages(seed=seed), stages(seed=seed + 100)) for seed in range(20)]
    assert {report.status for report in found} == {"ok"}
    assert not any(report.verdict.part or report.verdict.slower for report in found)


def test_a_few_long_rows_that_are_slower_are_never_ok() -> None:
    """Six of 240 rows, of 40 times the time of the others: the median of the rows cannot show them."""
    then, now = stages(), stages()
    for layer in STAGES[::40]:
        for table, ms in ((then, 2.0), (now, 2.6)):
            table.rows[layer, SETTING] = Row(layer, SETTING, LatencyStat(ms, ms, 0.007, 120), 0)
    found = compare_tables(now, then)
    assert found.verdict.total.change > 0.1
    assert found.exit_code != 0


def report_of(slowdown: float) -> CheckReport:
    return compare_tables(
        table_of(LAYERS, slowdown), table_of(LAYERS), names=("tables/cpu.json", "base.json")
    )


def test_edits_that_were_accepted_are_noted() -> None:
    edited = {
        "runtime": "onnxruntime",
        "processor": "this one",
        "edited": "3 rows by hand, accepted 2026-11-29",
    }
    found = compare_tables(
        table_of(LAYERS, provenance=edited), table_of(LAYERS), names=("cpu.json", "base.json")
    )
    assert found.notes == ("cpu.json was edited: 3 rows by hand, accepted 2026-11-29",)
    suite = ElementTree.fromstring(junit(found))[0]
    assert suite.findtext("system-out") == found.notes[0]
    assert suite.get("tests") == "5"


def test_junit_has_a_test_for_each_kind_and_counts_what_failed() -> None:
    suite = ElementTree.fromstring(junit(report_of(1.3)))[0]
    names = [case.get("name") for case in suite]
    assert names[:2] == ["every row is there", "all rows together"]
    assert set(names[2:]) >= {"Conv 1x1", "Conv 3x3 depthwise", "Gemm"}
    assert int(suite.get("failures", "")) == len(suite.findall("testcase/failure")) >= 3
    good = ElementTree.fromstring(junit(report_of(1.0)))[0]
    assert (good.get("failures"), good.get("skipped"), good.get("tests")) == ("0", "0", "5")


def test_annotations_name_the_file_and_the_level_follows_the_verdict() -> None:
    lines = annotations(report_of(1.3))
    assert lines[0].startswith(
        "::error file=tables/cpu.json,title=bcnet check-lut::slower: all rows are slower"
    )
    assert "%25" in lines[0]
    assert annotations(report_of(1.0))[0].startswith("::notice ")
    moved = compare_tables(table_of(LAYERS, probe={"matmul_ms": 0.08, "stream_ms": 3.0}), table_of(LAYERS))
    assert annotations(moved)[0].startswith("::warning ")


@pytest.mark.parametrize(("slowdown", "code"), [(1.0, 0), (1.3, 3)])
def test_the_command_compares_two_files_and_its_exit_code_is_the_verdict(
    slowdown: float,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    table_of(LAYERS, slowdown).save(Path("latency_tables/cpu.json"))
    table_of(LAYERS).save(Path("base.json"))
    assert main(["check-lut", "--against", "base.json", "--json", "--junit", "out/junit.xml"]) == code
    out, err = capfd.readouterr()
    assert json.loads(out)["exit_code"] == code
    assert ("::error file=" in err) == (code == 3)
    assert ElementTree.parse("out/junit.xml").getroot().tag == "testsuites"
    assert main(["check-lut", "--against", "base.json"]) == code
    assert "Conv 3x3 depthwise" in capfd.readouterr().out
    assert main(["check-lut", "--against", "base.json", "--max-slowdown", "50%"]) == 0
    assert main(["check-lut", "--against", "base.json", "--max-slowdown", "5"]) == 2
    capfd.readouterr()
    assert main(["check-lut", "--against", "missing.json", "--junit", "out/junit.xml"]) == 1
    err = capfd.readouterr().err
    assert "::error title=bcnet check-lut::missing.json is missing; give the older table, e.g." in err
    (suite,) = ElementTree.parse("out/junit.xml").getroot()
    assert (suite.get("errors"), suite.get("tests")) == ("1", "1")
    error = suite.find("testcase/error")
    assert error is not None
    assert error.get("message", "").startswith("missing.json is missing; give the older table")
