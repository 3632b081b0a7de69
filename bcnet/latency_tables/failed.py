"""Latencies of what the runtime cannot run. In: latencies in ms. Out: which of them are of networks that run.

A layer that the runtime cannot run costs `FAILED_MS`, more than any network that runs, so that latencies stay
sums over layers, and a search that begins where several layers fail is led to where fewer do. Whether a
latency is of a network that runs, is asked of `runs`; files on disk have a reason in place of such a latency.
"""

from typing import overload

import numpy as np

FAILED_MS = 1e9
SLOWEST_MS = float(np.nextafter(FAILED_MS, 0))  # a limit that every network keeps that runs


@overload
def runs(latency_ms: float) -> bool: ...
@overload
def runs(latency_ms: np.ndarray) -> np.ndarray: ...
def runs(latency_ms: float | np.ndarray) -> bool | np.ndarray:
    """Whether the runtime runs the networks, or the layers, of these latencies in ms."""
    return latency_ms < FAILED_MS
