"""Plain arithmetic outside any runtime: tells a slower machine from a slower runtime.

In: nothing. Out: milliseconds of each part of the probe, and many readings pooled for a session.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np

REPEATS = 9  # of each part, in one reading
SIDE = 64  # a product of 64 x 64 is small enough for numpy's BLAS (OpenBLAS) to keep it on one thread
STREAMED = 256  # such matrices: 4 MiB read and 4 MiB written, more than a level-2 cache
SWEPT = 2 * 1024 * 1024  # floats, 8 MiB


def probe() -> dict[str, float]:
    """One reading, 10 to 20 ms long on a server's core: the median ms of each part over 9 repetitions.

    `matmul_ms`: eight float32 products of 64 x 64, which stay in the level-2 cache: the clock. `stream_ms`:
    256 such products over 8 MiB, read and written: what other work on a shared machine takes away first, and
    what networks feel. `sweep_ms`: a sum over 8 MiB: how fast memory can be read. All are single-threaded
    whatever the number of cores.
    """
    left, right, product, matrices, streamed, block = _operands()
    parts: dict[str, Callable[[], object]] = {
        "matmul_ms": lambda: np.matmul(left, right, out=product),
        "stream_ms": lambda: np.matmul(matrices, right[:1], out=streamed),
        "sweep_ms": block.sum,
    }
    reading = {}
    for name, part in parts.items():
        part()  # what other work left in the caches is no part of it
        samples = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            part()
            samples.append((time.perf_counter() - start) * 1000)
        reading[name] = float(np.median(samples))
    return reading


def pool_readings(readings: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """A session's probe from its readings: medians in ms, and spreads.

    A spread is the median absolute deviation of the readings over their median. Both are what `Session`
    keeps as `probe` and `probe_spread`.
    """
    medians, spread = {}, {}
    for name in readings[0]:
        values = np.array([reading[name] for reading in readings])
        median = float(np.median(values))
        medians[name] = round(median, 5)
        spread[name] = round(float(np.median(np.abs(values - median))) / max(median, 1e-9), 5)
    return medians, spread


@cache
def _operands() -> tuple[np.ndarray, ...]:
    """The same numbers each time, allocated and written once: fresh pages would be timed too."""
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((2, 8, SIDE, SIDE), dtype=np.float32)
    matrices = rng.standard_normal((STREAMED, SIDE, SIDE), dtype=np.float32)
    block = rng.standard_normal(SWEPT, dtype=np.float32)
    return left, right, np.ones_like(left), matrices, np.ones_like(matrices), block
