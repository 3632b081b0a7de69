"""The roofline: operations and bytes counted by hand, shares that are found again, and estimated tables."""

from dataclasses import replace
from pathlib import Path

import pytest

from bcnet.errors import TableError
from bcnet.latency_tables.roofline import (
    DEFAULT,
    Measured,
    Peak,
    Roofline,
    error_of,
    estimate_table,
    estimated_calibration,
    fit,
    measured_rows,
    moved_bytes,
    operations,
    output_size,
    probe_peak,
)
from bcnet.latency_tables.rows import LatencyStat, LayerSpec, Row, Session, Setting
from bcnet.latency_tables.table import LatencyTable

FP32 = Setting("onnxruntime", "fp32", 1, 1, "default")
FP16 = Setting("tensorrt", "fp16", 4, 1, "default")
CONV = LayerSpec("Conv", 16, 32, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 1, "Relu", False, 8, 8)
DEPTHWISE = LayerSpec("Conv", 16, 16, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 16, "", False, 8, 8)
PEAK = Peak(ops_per_ms=1e8, bytes_per_ms=1e7)


@pytest.mark.parametrize(
    ("layer", "size", "ops", "floats"),
    [
        (CONV, (4, 4), 2 * 16 * 32 * 9 * 16, 16 * 64 + 32 * 16 + 16 * 32 * 9),
        (replace(CONV, add=True), (4, 4), 2 * 16 * 32 * 9 * 16, 16 * 64 + 2 * 32 * 16 + 16 * 32 * 9),
        (DEPTHWISE, (8, 8), 2 * 16 * 9 * 64, 16 * 64 + 16 * 64 + 16 * 9),
        (replace(CONV, groups=4), (4, 4), 2 * 16 * 8 * 9 * 16, 16 * 64 + 32 * 16 + 16 * 8 * 9),
        (replace(CONV, dilation=(2, 2)), (3, 3), 2 * 16 * 32 * 9 * 9, 16 * 64 + 32 * 9 + 16 * 32 * 9),
        (
            LayerSpec("ConvTranspose", 8, 4, (2, 2), (2, 2), (0, 0, 0, 0), (1, 1), in_height=5, in_width=5),
            (10, 10),
            2 * 8 * 4 * 4 * 25,
            8 * 25 + 4 * 100 + 8 * 4 * 4,
        ),
        (LayerSpec("Gemm", 64, 10), (1, 1), 2 * 64 * 10, 64 + 10 + 640),
        (LayerSpec("MatMul", 64, 10, in_height=7), (7, 1), 2 * 7 * 64 * 10, 7 * 64 + 7 * 10 + 640),
        (LayerSpec("MaxPool", 8, 8, (2, 2), (2, 2), in_height=6, in_width=6), (3, 3), 0, 8 * 36 + 8 * 9),
        (LayerSpec("GlobalAveragePool", 8, 8, in_height=6, in_width=6), (1, 1), 0, 8 * 36 + 8),
        (LayerSpec("Concat", 24, 24, in_height=4, in_width=4), (4, 4), 0, 2 * 24 * 16),
        (LayerSpec("Softmax", 24, 24), (1, 1), 0, 48),
    ],
)
def test_operations_and_bytes_are_those_counted_by_hand(
    layer: LayerSpec, size: tuple[int, int], ops: int, floats: int
) -> None:
    assert output_size(layer) == size
    assert operations(layer, 1) == ops
    assert operations(layer, 4) == 4 * ops
    assert moved_bytes(layer, FP32) == 4 * floats


def test_a_batch_reads_its_weights_once_and_narrower_numbers_are_fewer_bytes() -> None:
    images, weights = 16 * 64 + 32 * 16, 16 * 32 * 9
    assert moved_bytes(CONV, FP16) == 2 * (4 * images + weights)
    assert moved_bytes(CONV, replace(FP16, precision="int8")) == 4 * images + weights


def test_a_layer_costs_the_larger_of_arithmetic_and_memory_and_the_launch() -> None:
    roofline = Roofline(dense=0.5, grouped=0.1, bandwidth=0.8, launch_ms=0.01)
    arithmetic, memory = operations(CONV, 1) / (0.5 * 1e8), moved_bytes(CONV, FP32) / (0.8 * 1e7)
    assert roofline.layer_ms(CONV, FP32, PEAK) == pytest.approx(max(arithmetic, memory) + 0.01)
    fast_memory = replace(PEAK, bytes_per_ms=1e12)
    assert roofline.layer_ms(DEPTHWISE, FP32, fast_memory) == pytest.approx(
        operations(DEPTHWISE, 1) / (0.1 * 1e8) + 0.01
    )
    slow_memory = replace(PEAK, bytes_per_ms=1e4)
    assert roofline.layer_ms(CONV, FP32, slow_memory) == pytest.approx(
        moved_bytes(CONV, FP32) / (0.8 * 1e4) + 0.01
    )


def rows_of(truth: Roofline, grouped: bool = True) -> list[Measured]:
    layers = [replace(CONV, in_channels=c, out_channels=d) for c in (8, 32, 128, 512) for d in (16, 64, 256)]
    layers += [LayerSpec("Concat", c, c, in_height=32, in_width=32) for c in (8, 64, 256, 1024)]
    layers += [LayerSpec("Softmax", c, c) for c in (1, 2, 4, 8)]
    if grouped:
        layers += [replace(DEPTHWISE, in_channels=c, out_channels=c, groups=c) for c in (64, 256, 1024, 4096)]
    fast = replace(PEAK, bytes_per_ms=1e9)
    return [(layer, FP32, truth.layer_ms(layer, FP32, fast), fast) for layer in layers]


def test_a_fit_finds_the_shares_again_that_rows_were_made_from() -> None:
    truth = Roofline(dense=0.6, grouped=0.03, bandwidth=0.02, launch_ms=0.0007)
    rows = rows_of(truth)
    found = fit(rows)
    assert found.dense == pytest.approx(truth.dense, rel=0.05)
    assert found.grouped == pytest.approx(truth.grouped, rel=0.05)
    assert found.bandwidth == pytest.approx(truth.bandwidth, rel=0.05)
    assert found.launch_ms == pytest.approx(truth.launch_ms, rel=0.05)
    error = error_of(found, rows)
    assert error.rows == len(rows)
    assert error.mean_error < 0.03
    assert error.within_10 == 1.0
    assert error.spearman > 0.99


def test_what_no_row_tells_stays_at_the_default() -> None:
    truth = Roofline(dense=0.6, grouped=0.03, bandwidth=0.02, launch_ms=0.0007)
    assert fit(rows_of(truth, grouped=False)).grouped == pytest.approx(DEFAULT.grouped, rel=0.01)


def test_too_few_rows_are_no_fit() -> None:
    with pytest.raises(TableError, match="at least 20 measured rows; there are 3"):
        fit(rows_of(DEFAULT)[:3])


def test_the_error_is_that_of_arithmetic_by_hand() -> None:
    calculated, measured = (1.0, 0.95, 1.9, 3.0), (1.0, 1.0, 1.6, 6.0)
    rows = [
        (CONV, FP32, ms, Peak(operations(CONV, 1) / work, 1e30))
        for work, ms in zip(calculated, measured, strict=True)
    ]
    error = error_of(Roofline(1.0, 1.0, 1.0, 0.0), rows)
    assert error.mean_error == pytest.approx((0 + 0.05 + 0.1875 + 0.5) / 4, abs=1e-4)
    assert (error.within_10, error.within_25, error.spearman) == (0.5, 0.75, 0.9487)
    assert error.sum_error == pytest.approx(6.85 / 9.6 - 1, abs=1e-4)


def test_no_share_of_a_peak_is_above_one_on_another_device() -> None:
    assert Roofline(1.7, 0.2, 1.2, 0.004).elsewhere(None) == Roofline(1.0, 0.2, 1.0, 0.004)
    assert Roofline(0.7, 0.2, 0.5, 0.004).elsewhere(0.001) == Roofline(0.7, 0.2, 0.5, 0.001)


def processor(*rows: tuple[LayerSpec, Setting, float]) -> LatencyTable:
    table = LatencyTable("cpu", [Session("2026-01-01", {}, {"matmul_256_ms": 0.2, "sweep_ms": 0.4})])
    for layer, setting, ms in rows:
        table.rows[layer, setting] = Row(layer, setting, LatencyStat(ms, ms, 0.0, 10), 0)
    return table


def test_only_plain_measured_rows_are_fitted_with_the_peak_of_their_session() -> None:
    other = replace(FP32, threads=2)
    table = processor((CONV, FP32, 1.0), (DEPTHWISE, other, 1.0), (DEPTHWISE, FP16, 1.0))
    table.sessions.append(Session("2026-01-02", {}, {}, estimate=True))
    table.rows[DEPTHWISE, FP32] = Row(DEPTHWISE, FP32, LatencyStat(1.0, 1.0, 0.0, 0), 1)
    assert measured_rows(table) == [(CONV, FP32, 1.0, Peak(2 * 256**3 / 0.2, 8 * 2**20 / 0.4))]
    assert probe_peak({"matmul_ms": 0.1, "sweep_ms": 1.0, "stream_ms": 1.0}).ops_per_ms == 10 * 8 * 2 * 64**3


def test_a_layer_that_beats_the_probe_is_the_peak() -> None:
    wide = replace(CONV, in_channels=512, out_channels=512)
    probed = 2 * 256**3 / 0.2
    ms = operations(wide, 1) / probed / 1.5  # one and a half times the probe's rate
    rows = measured_rows(processor((wide, FP32, ms), (CONV, FP32, 0.01)))
    assert ms > 0.05
    assert [peak.ops_per_ms for *_, peak in rows] == pytest.approx([1.5 * probed] * 2)


def test_an_estimated_table_says_so_in_its_file_and_gives_the_rooflines_latencies(tmp_path: Path) -> None:
    table = LatencyTable("t4")
    estimate_table(table, [CONV, DEPTHWISE], FP16, DEFAULT, PEAK, {"method": "roofline"})
    table.calibrations["m", FP16] = estimated_calibration("m", FP16, "r")
    table.save(tmp_path / "t4.json")
    assert '"estimate": true' in (tmp_path / "t4.json").read_text(encoding="utf-8")
    loaded = LatencyTable.load(tmp_path / "t4.json")
    assert loaded == table
    assert loaded.is_estimate([CONV], FP16)
    assert loaded.latency_ms(CONV, FP16) == pytest.approx(DEFAULT.layer_ms(CONV, FP16, PEAK), abs=1e-5)
    calibration = loaded.calibrations["m", FP16]
    assert (calibration.offset_ms, calibration.scale, calibration.mean_error) == (0.0, 1.0, None)


def test_an_estimate_again_is_the_same_file_and_with_other_peaks_all_its_rows_follow() -> None:
    table = LatencyTable("t4")
    estimate_table(table, [CONV], FP16, DEFAULT, PEAK, {"peaks": "a"})
    table.sessions[0] = replace(table.sessions[0], date="2020-01-01")
    estimate_table(table, [CONV, DEPTHWISE], FP16, DEFAULT, PEAK, {"peaks": "a"})
    assert [session.date for session in table.sessions] == ["2020-01-01"]
    before = table.latency_ms(CONV, FP16)
    estimate_table(table, [DEPTHWISE], FP16, replace(DEFAULT, launch_ms=1.0), PEAK, {"peaks": "b"})
    assert len(table.sessions) == 1
    assert table.latency_ms(CONV, FP16) == pytest.approx(before + 1.0 - DEFAULT.launch_ms)


def test_an_estimate_is_never_mixed_with_measured_rows_and_makes_room_for_them() -> None:
    table = processor((CONV, FP32, 1.0))
    with pytest.raises(TableError, match=r"measured rows at .*never mixed"):
        estimate_table(table, [DEPTHWISE], FP32, DEFAULT, PEAK, {})
    assert list(table.rows) == [(CONV, FP32)]
    estimate_table(table, [CONV], FP16, DEFAULT, PEAK, {})
    table.calibrations["m", FP16] = estimated_calibration("m", FP16, "r")
    table.drop_estimates(FP32)
    assert set(table.rows) == {(CONV, FP32), (CONV, FP16)}
    table.drop_estimates(FP16)
    assert set(table.rows) == {(CONV, FP32)}
    assert table.calibrations == {}
    assert [session.estimate for session in table.sessions] == [False]


def test_a_measured_row_without_samples_is_refused(tmp_path: Path) -> None:
    table = processor()
    table.rows[CONV, FP32] = Row(CONV, FP32, LatencyStat(1.0, 1.0, 0.0, 0), 0)
    table.save(tmp_path / "cpu.json")
    with pytest.raises(TableError, match="a measured row has no samples: Conv 3x3 16->32"):
        LatencyTable.load(tmp_path / "cpu.json")
