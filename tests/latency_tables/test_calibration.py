"""Whole networks from sums of layers: the fit, its error on what was left out, and what cannot be fitted."""

from dataclasses import replace

import numpy as np
import pytest

from bcnet.errors import DeviceError
from bcnet.latency_tables.calibration import calibrated, fit_calibration
from bcnet.latency_tables.model import LatencyModel, LayerSlot
from bcnet.latency_tables.rows import FAILED_MS, Calibration, LatencyStat, LayerSpec, Row, Session, Setting
from bcnet.latency_tables.table import LatencyTable

SETTING = Setting("onnxruntime", "fp32", 1, 1, "default")
CONV = LayerSpec("Conv", 8, 8, (3, 3))
WIDTHS = (8, 16, 24, 32, 40, 48)
SUMS = np.array([1.0, 2.0, 5.0, 9.0, 14.0])


def model() -> LatencyModel:
    """One layer that costs a millisecond for every eight channels that it makes."""
    table = LatencyTable("cpu", [Session("2026-01-01", {}, {})])
    for width in WIDTHS:
        layer = replace(CONV, out_channels=width)
        table.rows[layer, SETTING] = Row(layer, SETTING, LatencyStat(width / 8, width / 8, 0.0, 10), 0)
    slot = LayerSlot("a", CONV, ((None, 8),), ((0, 1),), None, ("a",))
    return LatencyModel(table, SETTING, [slot], [WIDTHS], None)


def test_a_known_offset_and_scale_are_recovered_and_predict_what_was_left_out() -> None:
    measured = 0.3 + 1.2 * SUMS
    coefficients, predicted = fit_calibration(SUMS, measured)
    assert coefficients == pytest.approx((0.3, 1.2, 0.0))
    assert predicted == pytest.approx(measured)


def test_a_curve_is_taken_where_it_predicts_what_was_left_out_better() -> None:
    measured = 0.1 + SUMS + 0.02 * SUMS**2
    coefficients, predicted = fit_calibration(SUMS, measured)
    assert coefficients == pytest.approx((0.1, 1.0, 0.02))
    assert predicted == pytest.approx(measured)


def test_each_prediction_is_that_of_a_fit_on_all_others() -> None:
    measured = np.array([1.3, 2.6, 6.5, 10.9, 17.2])
    coefficients, predicted = fit_calibration(SUMS, measured)
    assert coefficients[2] == 0.0
    for left_out in range(len(SUMS)):
        others = np.arange(len(SUMS)) != left_out
        matrix = np.stack([1 / measured[others], SUMS[others] / measured[others]], axis=1)
        offset, scale = np.linalg.lstsq(matrix, np.ones(len(SUMS) - 1), rcond=None)[0]
        assert predicted[left_out] == pytest.approx(offset + scale * SUMS[left_out])


def test_prices_rise_with_the_sum_whatever_the_noise() -> None:
    coefficients, _ = fit_calibration(SUMS, 1.0 + SUMS - 0.06 * SUMS**2)  # falls from 8.3 ms on
    assert coefficients[2] == 0.0


def test_the_faster_time_counts_and_the_difference_is_the_noise() -> None:
    whole = {(width,): (0.5 + 2 * width / 8, (0.5 + 2 * width / 8) * 1.1) for width in WIDTHS}
    found = calibrated(model(), "m", list(whole.items()))
    assert (found.offset_ms, found.scale, found.curve) == pytest.approx((0.5, 2.0, 0.0), abs=1e-5)
    assert (found.mean_error, found.within_5, found.spearman) == (0.0, 1.0, 1.0)
    assert found.noise == pytest.approx(0.1)
    assert (found.fitted, found.held_out) == (6, 6)
    assert found.whole_ms(np.array([1.0, 2 * FAILED_MS])).tolist() == pytest.approx([2.5, 2 * FAILED_MS])


def test_too_few_subnets_that_run_are_an_error() -> None:
    whole: dict[tuple[int, ...], tuple[float, ...]] = {(width,): () for width in WIDTHS}
    whole[8,] = (1.0, 1.0)
    with pytest.raises(DeviceError, match="almost no subnet of this network: 1 of 6"):
        calibrated(model(), "m", list(whole.items()))


BENT = Calibration("m", SETTING, "r", 0.1, 1.0, 12, 12, 0.01, 1.0, 1.0, 0.99, 0.01, curve=-0.01)


def test_a_curve_does_not_make_layers_cheap_that_cannot_be_run() -> None:
    prices = BENT.whole_ms(np.array([FAILED_MS + 1.0, 2.0]))
    assert prices.tolist() == pytest.approx([FAILED_MS + 1.0, 2.06])


def test_the_line_at_a_latency_touches_the_curve() -> None:
    offset, scale = BENT.line_at(2.06)
    assert scale == pytest.approx(1.0 - 2 * 0.01 * 2.0)
    assert offset + scale * 2.0 == pytest.approx(2.06)
    assert replace(BENT, curve=0.0).line_at(5.0) == (0.1, 1.0)
