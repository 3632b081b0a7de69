"""Calibrate sums of layers to whole networks. In: latencies of subnets, a latency model. Out: a fit."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr

from bcnet.errors import DeviceError
from bcnet.latency_tables.failed import runs
from bcnet.latency_tables.model import LatencyModel
from bcnet.latency_tables.noise import noise_of_networks
from bcnet.latency_tables.rows import Calibration

FEWEST = 4  # minimum number of subnets that have to run, if the network has that many


def calibrated(
    model: LatencyModel, key: str, subnets: Sequence[tuple[Sequence[int], Sequence[float]]]
) -> Calibration:
    """Fit the sums of layers to whole subnets, (widths, ms of each pass), and return the fit with its error.

    A subnet's latency is its fastest pass; the noise is the difference to the second fastest. Errors are
    cross-validated: each subnet is predicted by a fit on all others. Raises DeviceError if the runtime can
    run almost none of the subnets.
    """
    timed = [(widths, times) for widths, times in subnets if times]
    indices = model.indices([widths for widths, _ in timed])
    sums = model.layers_ms(indices) if timed else np.zeros(0)
    evicted = model.evicted_mb(indices) if timed else np.zeros(0)
    timed = [entry for entry, ms in zip(timed, sums, strict=True) if runs(ms)]
    sums, evicted = sums[runs(sums)], evicted[runs(sums)]
    if len(timed) < min(FEWEST, len(subnets)):
        raise DeviceError(
            f"{model.setting.runtime} runs only {len(timed)} of {len(subnets)} subnets of this network; "
            "the rows with an error in the table show which layers fail"
        )
    latencies = np.array([min(times) for _, times in timed])
    (offset, scale, memory), predicted = fit_calibration(sums, latencies, evicted)
    errors = np.abs(predicted - latencies) / latencies
    return Calibration(
        model=key,
        setting=model.setting,
        rows=model.rows_digest,
        offset_ms=round(offset, 6),
        scale=round(scale, 6),
        memory_ms_per_mb=round(memory, 6),
        cache_mb=model.cache_mb if memory else 0.0,
        fitted=len(timed),
        held_out=len(timed),
        mean_error=round(float(errors.mean()), 5),
        within_5=round(float((errors <= 0.05).mean()), 4),
        within_10=round(float((errors <= 0.10).mean()), 4),
        spearman=round(float(spearmanr(predicted, latencies).statistic), 4) if np.ptp(predicted) else 1.0,
        noise=round(noise_of_networks(times for _, times in timed), 5),
    )


def fit_calibration(
    sums: np.ndarray, measured: np.ndarray, evicted: np.ndarray
) -> tuple[tuple[float, float, float], np.ndarray]:
    """Fit `offset + scale * sum + memory * evicted`: (offset ms, scale, memory ms/MB), and predictions in ms.

    Least squares on relative errors, so that small networks count as much as large ones. Predictions are
    leave-one-out. The memory term is 0 unless it improves them. With fewer than FEWEST subnets, the
    predictions are those of the fit on all subnets.
    """
    straight = _linear([np.ones(len(sums)), sums], measured)
    if len(sums) == 1 or straight[0][1] <= 0:  # all subnets have the same cost: only the ratio is determined
        ratio = float(np.median(measured / sums))
        return (0.0, ratio, 0.0), ratio * sums
    if len(sums) < FEWEST:
        (offset, scale, _), _ = straight
        return straight[0], offset + scale * sums
    with_memory = _linear([np.ones(len(sums)), sums, evicted], measured)
    errors = [float(np.mean(np.abs(predicted / measured - 1))) for _, predicted in (straight, with_memory)]
    return with_memory if min(with_memory[0][1:]) > 0 and errors[1] < errors[0] else straight


def _linear(terms: list[np.ndarray], measured: np.ndarray) -> tuple[tuple[float, float, float], np.ndarray]:
    matrix = np.stack(terms, axis=1) / measured[:, None]
    inverse = np.linalg.pinv(matrix)
    coefficients = inverse @ np.ones(len(measured))
    # Leaving one out changes its residual by 1 / (1 - leverage): Cook and Weisberg, 1982.
    leverage = np.minimum(np.einsum("ij,ji->i", matrix, inverse), 0.99)
    left_out = 1 - (1 - matrix @ coefficients) / (1 - leverage)
    offset, scale, memory = (*map(float, coefficients), 0.0)[:3]
    return (offset, scale, memory), left_out * measured
