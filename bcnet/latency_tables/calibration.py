"""Sums of layers made whole networks. In: subnets' times and a latency model. Out: a fit and its error."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr

from bcnet.errors import DeviceError
from bcnet.latency_tables.model import LatencyModel
from bcnet.latency_tables.rows import FAILED_MS, Calibration

FEWEST = 4  # subnets that have to run
BETTER = 0.9  # a curve has to bring the error down by so much to be taken


def calibrated(
    model: LatencyModel, key: str, subnets: Sequence[tuple[Sequence[int], Sequence[float]]]
) -> Calibration:
    """Fit the sums of layers to whole subnets, (widths, ms of each pass), and tell the error.

    The faster of a subnet's times counts, their difference is the noise. Each subnet is predicted by a fit
    on all others. Raises DeviceError where the runtime can run almost none of them.
    """
    timed = [(widths, times) for widths, times in subnets if times]
    sums = model.layers_ms(model.indices([widths for widths, _ in timed])) if timed else np.zeros(0)
    timed = [entry for entry, ms in zip(timed, sums, strict=True) if ms < FAILED_MS]
    sums = sums[sums < FAILED_MS]
    if len(timed) < FEWEST:
        raise DeviceError(
            f"{model.setting.runtime} runs almost no subnet of this network: {len(timed)} of {len(subnets)}; "
            "the rows with an error in the table tell which layers fail"
        )
    latencies = np.array([min(times) for _, times in timed])
    noise = np.array([max(times) for _, times in timed]) / latencies - 1
    (offset, scale, curve), predicted = fit_calibration(sums, latencies)
    errors = np.abs(predicted - latencies) / latencies
    return Calibration(
        model=key,
        setting=model.setting,
        rows=model.rows_digest,
        offset_ms=round(offset, 6),
        scale=round(scale, 6),
        curve=round(curve, 6),
        fitted=len(timed),
        held_out=len(timed),
        mean_error=round(float(errors.mean()), 5),
        within_5=round(float((errors <= 0.05).mean()), 4),
        within_10=round(float((errors <= 0.10).mean()), 4),
        spearman=round(float(spearmanr(predicted, latencies).statistic), 4) if np.ptp(predicted) else 1.0,
        noise=round(float(noise.mean()), 5),
    )


def fit_calibration(sums: np.ndarray, measured: np.ndarray) -> tuple[tuple[float, float, float], np.ndarray]:
    """Offset (ms), scale and curve of `offset + scale * sum + curve * sum^2`, and predictions (ms).

    Relative errors are squared, so that small networks count as much as large ones. Each prediction is by a
    fit on all others. The curve is 0 unless it makes these better, and prices still rise with the sum.
    """
    straight = _polynomial(sums, measured, 1)
    if straight[0][1] <= 0:  # all subnets cost the same: only the ratio can be told
        ratio = float(np.median(measured / sums))
        return (0.0, ratio, 0.0), ratio * sums
    bent = _polynomial(sums, measured, 2)
    errors = [float(np.mean(np.abs(predicted / measured - 1))) for _, predicted in (straight, bent)]
    _, scale, curve = bent[0]
    rises = scale > 0 and scale + 2 * curve * float(sums.max()) > 0
    return bent if rises and errors[1] < BETTER * errors[0] else straight


def _polynomial(
    sums: np.ndarray, measured: np.ndarray, degree: int
) -> tuple[tuple[float, float, float], np.ndarray]:
    matrix = np.stack([sums**power / measured for power in range(degree + 1)], axis=1)
    inverse = np.linalg.pinv(matrix)
    coefficients = inverse @ np.ones(len(sums))
    # Leaving one out changes its residual by 1 / (1 - leverage): Cook and Weisberg, 1982.
    leverage = np.minimum(np.einsum("ij,ji->i", matrix, inverse), 0.99)
    left_out = 1 - (1 - matrix @ coefficients) / (1 - leverage)
    offset, scale, curve = (*map(float, coefficients), 0.0)[:3]
    return (offset, scale, curve), left_out * measured
