"""Whole networks from sums of layers: the fit, its error on what was left out, and what cannot be fitted."""

from dataclasses import replace

import numpy as np
import pytest

from bcnet.errors import DeviceError, TableError
from bcnet.latency_tables.calibration import calibrated, fit_calibration
from bcnet.latency_tables.failed import FAILED_MS
from bcnet.latency_tables.model import LatencyModel, LayerSlot
from bcnet.latency_tables.noise import crowded, noise_of_networks, refuse_noisy
from bcnet.latency_tables.rows import Calibration, LatencyStat, LayerSpec, Row, Session, Setting
from bcnet.latency_tables.table import LatencyTable

SETTING = Setting("onnxruntime", "fp32", 1, 1, "default")
CONV = LayerSpec("Conv", 8, 8, (3, 3))
WIDTHS = (8, 16, 24, 32, 40, 48)
SUMS = np.array([1.0, 2.0, 5.0, 9.0, 14.0])
NONE = np.zeros(5)
EVICTED = np.array([-2.0, 3.0, -1.0, 8.0, 4.0])  # megabytes


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
    coefficients, predicted = fit_calibration(SUMS, measured, NONE)
    assert coefficients == pytest.approx((0.3, 1.2, 0.0))
    assert predicted == pytest.approx(measured)


def test_what_comes_from_memory_costs_what_predicts_those_left_out_best() -> None:
    measured = 0.1 + SUMS + 0.03 * EVICTED
    coefficients, predicted = fit_calibration(SUMS, measured, EVICTED)
    assert coefficients == pytest.approx((0.1, 1.0, 0.03))
    assert predicted == pytest.approx(measured)


def test_each_prediction_is_that_of_a_fit_on_all_others() -> None:
    measured = np.array([1.3, 2.6, 6.5, 10.9, 17.2])
    coefficients, predicted = fit_calibration(SUMS, measured, NONE)
    assert coefficients[2] == 0.0
    for left_out in range(len(SUMS)):
        others = np.arange(len(SUMS)) != left_out
        matrix = np.stack([1 / measured[others], SUMS[others] / measured[others]], axis=1)
        offset, scale = np.linalg.lstsq(matrix, np.ones(len(SUMS) - 1), rcond=None)[0]
        assert predicted[left_out] == pytest.approx(offset + scale * SUMS[left_out])


def test_memory_is_never_faster_than_the_cache() -> None:
    coefficients, _ = fit_calibration(SUMS, 0.1 + SUMS - 0.03 * EVICTED, EVICTED)
    assert coefficients[2] == 0.0


def test_the_noise_is_how_far_the_two_fastest_times_are_apart() -> None:
    assert noise_of_networks([(3.0, 1.1, 9.0, 1.0), (2.0, 2.0), ()]) == pytest.approx(0.05)
    assert noise_of_networks([(1.0,)]) == 0.0
    refuse_noisy(0.05, 0.05, "again")
    with pytest.raises(
        TableError, match=r"differed by 43.1%.*accepts 5.0%.*then again; .*table_noise = 0.44"
    ):
        refuse_noisy(0.431, 0.05, "again")


def test_a_machine_is_crowded_with_more_than_one_and_a_half_programs_a_core() -> None:
    assert crowded(3.0, 2) is None
    assert "busy (load 8.1 on 2 cores): measuring takes longer" in (crowded(8.1, 2) or "")


def test_the_faster_time_counts_and_the_difference_is_the_noise() -> None:
    whole = {(width,): (0.5 + 2 * width / 8, (0.5 + 2 * width / 8) * 1.1) for width in WIDTHS}
    found = calibrated(model(), "m", list(whole.items()))
    assert (found.offset_ms, found.scale) == pytest.approx((0.5, 2.0), abs=1e-5)
    assert (found.memory_ms_per_mb, found.cache_mb) == (0.0, 0.0)
    assert (found.mean_error, found.within_5, found.spearman) == (0.0, 1.0, 1.0)
    assert found.noise == pytest.approx(0.1)
    assert (found.fitted, found.held_out) == (6, 6)
    assert found.whole_ms(np.array([1.0, 2 * FAILED_MS])).tolist() == pytest.approx([2.5, 2 * FAILED_MS])


def test_too_few_subnets_that_run_are_an_error() -> None:
    whole: dict[tuple[int, ...], tuple[float, ...]] = {(width,): () for width in WIDTHS}
    whole[8,] = (1.0, 1.0)
    with pytest.raises(DeviceError, match="onnxruntime runs only 1 of 6 subnets of this network"):
        calibrated(model(), "m", list(whole.items()))


def test_a_network_with_fewer_subnets_than_a_fit_needs_is_fitted_on_all_of_them() -> None:
    found = calibrated(model(), "m", [((8,), (1.2, 1.2)), ((48,), (7.2, 7.2))])
    assert (found.offset_ms, found.scale) == pytest.approx((0.0, 1.2), abs=1e-5)
    assert (found.fitted, found.mean_error, found.spearman) == (2, 0.0, 1.0)
    one = calibrated(model(), "m", [((8,), (1.2, 1.2))])
    assert (one.offset_ms, one.scale, one.fitted) == (0.0, pytest.approx(1.2), 1)


def cached(cache_mb: str) -> LatencyModel:
    """Two layers of 4 MB of weights at most, measured in networks that filled half of the cache."""
    table = LatencyTable("cpu", [Session("2026-01-01", {"cache_mb": cache_mb}, {})])
    layer = LayerSpec("Conv", 1000, 1000, (1, 1))
    for width in (500, 1000):
        row = replace(layer, out_channels=width)
        table.rows[row, SETTING] = Row(row, SETTING, LatencyStat(1.0, 1.0, 0.0, 10), 0, 0.5)
    slots = [LayerSlot(name, layer, ((None, 1000),), ((0, 1),), None, (name,)) for name in "ab"]
    fit = Calibration("m", SETTING, "r", 0.0, 1.0, 12, 12, 0.0, 1.0, 1.0, 1.0, 0.0, 0.25, 16.0)
    return LatencyModel(table, SETTING, slots, [(500, 1000)], fit)


def test_a_network_pays_for_weights_that_its_layers_found_in_the_cache_when_they_were_measured() -> None:
    model = cached("16")
    # 4 MB of weights fill a quarter of the cache, where its layers were measured half of it was filled.
    assert model.evicted_mb(np.array([[0], [1]])).tolist() == pytest.approx([4 / 4 - 4 / 2, 8 / 2 - 8 / 2])
    assert model.price_many(np.array([[0], [1]])).tolist() == pytest.approx([2 - 0.25, 2.0])
    assert model([500]) == pytest.approx(2 - 0.25)
    assert model([1000]) == pytest.approx(2.0)


def test_no_more_than_all_weights_come_from_memory() -> None:
    assert cached("2").evicted_mb(np.array([[1]])).tolist() == pytest.approx([8.0 - 4.0])


def test_where_the_cache_is_not_known_nothing_is_said_of_it() -> None:
    assert cached("0").evicted_mb(np.array([[0], [1]])).tolist() == [0.0, 0.0]


def test_memory_does_not_make_layers_cheap_that_cannot_be_run() -> None:
    fit = cached("16").calibration
    assert fit is not None
    prices = fit.whole_ms(np.array([FAILED_MS + 1.0, 2.0]), np.array([-4.0, -4.0]))
    assert prices.tolist() == pytest.approx([FAILED_MS + 1.0, 1.0])
