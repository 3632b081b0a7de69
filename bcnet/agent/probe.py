"""The reference microbenchmark: plain arithmetic outside any runtime. Out: milliseconds of each part.

It distinguishes a slower machine from a slower runtime.
"""

import time
from typing import Any, Callable, Dict, List, Tuple

REPEATS = 9  # repetitions of each part in one reading
SIDE = 64  # a product of 64 x 64 matrices is so small that numpy's BLAS (OpenBLAS) uses one thread
STREAMED = 256  # number of such matrices: 4 MiB read and 4 MiB written, more than a level-2 cache
SWEPT = 2 * 1024 * 1024  # number of floats: 8 MiB
LOOP = 20000  # steps of plain Python, if numpy is missing

_operands: List[Any] = []


def probe() -> Dict[str, float]:
    """One reading: the median ms of each part over 9 repetitions; it takes 10 to 20 ms on a server's core.

    `matmul_ms`: eight float32 products of 64 x 64 matrices in the level-2 cache, which measure the clock.
    `stream_ms`: 256 such products over 8 MiB, read and written; other work on a shared machine slows this
    down first, and networks with it. `sweep_ms`: a sum over 8 MiB, the bandwidth of reading memory. All parts
    are single-threaded. Without numpy there is only `loop_ms`, a loop of plain Python.
    """
    reading = {}
    for name, part in _parts().items():
        part()  # warms the caches
        samples = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            part()
            samples.append((time.perf_counter() - start) * 1000)
        reading[name] = sorted(samples)[REPEATS // 2]
    return reading


def _parts() -> Dict[str, Callable[[], object]]:
    try:
        left, right, product, matrices, streamed, block = _arrays()
    except ImportError:
        return {"loop_ms": lambda: sum(range(LOOP))}
    import numpy as np

    return {
        "matmul_ms": lambda: np.matmul(left, right, out=product),
        "stream_ms": lambda: np.matmul(matrices, right[:1], out=streamed),
        "sweep_ms": block.sum,
    }


def _arrays() -> Tuple[Any, ...]:
    """The operands: the same values each time, allocated once, because page faults would be timed, too."""
    if not _operands:
        import numpy as np

        rng = np.random.RandomState(0)
        left, right = rng.standard_normal((2, 8, SIDE, SIDE)).astype(np.float32)
        matrices = rng.standard_normal((STREAMED, SIDE, SIDE)).astype(np.float32)
        block = rng.standard_normal(SWEPT).astype(np.float32)
        _operands.extend((left, right, np.ones_like(left), matrices, np.ones_like(matrices), block))
    return tuple(_operands)
