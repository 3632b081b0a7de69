"""Times of one layer's row, then and now, and their errors. In: what was measured. Out: statistics of rows.

`regression_check.py` describes the formulas and tests their significance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bcnet.latency_tables.machine import MAD
from bcnet.latency_tables.rows import LayerSpec

TICK_MS = 0.001  # resolution of the runtimes' profilers: whole microseconds
PASSES = 2  # number of passes of a build over its networks
QUARTILE = 1.3626  # standard error of a lower quartile relative to that of a mean, cf. `MEDIAN`


@dataclass(frozen=True)
class Observation:
    """A layer's times then and now. `now_ms` has one value per round for each network with the layer.

    For two tables, `now_ms` is a single value and `now_spread` the spread of its row. `setting` is empty
    unless layers of several settings are compared; each setting then forms kinds of its own.
    """

    layer: LayerSpec
    then_ms: float
    then_spread: float
    now_ms: tuple[tuple[float, ...], ...]
    now_spread: float = 0.0
    setting: str = ""

    @property
    def kind(self) -> str:
        """The kind of its layer, with the setting if there is one."""
        return self.layer.kind + (f" ({self.setting})" if self.setting else "")

    @property
    def group(self) -> str:
        """The kind of its layer and its stride: rows that scatter alike."""
        return self.kind + self.layer.strided

    @property
    def name(self) -> str:
        """Its layer, for messages."""
        return str(self.layer) + (f" ({self.setting})" if self.setting else "")


def time_now(observation: Observation) -> float:
    quartiles = [
        np.percentile(values[first : first + PASSES], 25)
        for values in observation.now_ms
        for first in range(0, len(values), PASSES)
    ]
    return float(np.median(quartiles))


def standard_errors(
    observations: Sequence[Observation],
    then_ms: np.ndarray,
    now_ms: np.ndarray,
    change: np.ndarray,
    groups: np.ndarray,
) -> tuple[np.ndarray, float]:
    """Standard errors of the rows' changes, and of the scatter of the rounds that all rows share."""
    rounds = max(len(values) for o in observations for values in o.now_ms)
    shared = np.zeros(rounds)
    scaled = []  # for each row and network: log of its rounds over their median
    for o in observations:
        for values in o.now_ms:
            if len(values) == rounds:
                scaled.append(np.log(np.array(values) / np.median(values)))
    if rounds > 1 and scaled:
        shared = np.median(scaled, axis=0)
    own = []
    for o in observations:
        within = [
            MAD
            * float(np.median(np.abs(np.log(np.array(values) / np.median(values)) - shared[: len(values)])))
            / math.sqrt(len(values))
            for values in o.now_ms
        ]
        own.append(QUARTILE * float(np.mean(within)) / math.sqrt(len(within)))
    then_error = np.array([MAD * math.hypot(o.then_spread, o.now_spread) for o in observations]) / 2
    ticks = TICK_MS / math.sqrt(12) * np.hypot(1 / then_ms, 1 / now_ms)
    nominal = np.sqrt(np.array(own) ** 2 + then_error**2 + ticks**2 + 0.01**2)
    centres = {
        name: weighted_median(change[groups == name], nominal[groups == name] ** -2.0) for name in set(groups)
    }
    residual = np.abs(change - np.array([centres[name] for name in groups])) / nominal
    factor = max(1.0, MAD * float(np.median(residual)))
    common = QUARTILE * MAD * float(np.median(np.abs(shared))) / math.sqrt(rounds)
    return nominal * factor, common


def weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    before = np.cumsum(weights[order]) - weights[order] / 2
    return float(np.interp(weights.sum() / 2, before, values[order]))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the k-th smallest of n p-values times n - k + 1, made monotonic."""
    order = np.argsort(p, kind="stable")
    corrected = np.maximum.accumulate([(len(p) - k) * p[i] for k, i in enumerate(order)])
    result = [0.0] * len(p)
    for value, i in zip(corrected, order, strict=True):
        result[i] = min(1.0, float(value))
    return result
