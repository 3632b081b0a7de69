"""Plain arithmetic outside any runtime: tells a slower machine from a slower runtime.

In: nothing. Out: milliseconds of each part of the probe.
"""

import time
from typing import Any, Callable, Dict, List, Tuple

REPEATS = 9  # of each part, in one reading
SIDE = 64  # a product of 64 x 64 is small enough for numpy's BLAS (OpenBLAS) to keep it on one thread
STREAMED = 256  # such matrices: 4 MiB read and 4 MiB written, more than a level-2 cache
SWEPT = 2 * 1024 * 1024  # floats, 8 MiB
LOOP = 20000  # steps of plain Python, where numpy is not to be had

_operands: List[Any] = []


def probe() -> Dict[str, float]:
    """One reading, 10 to 20 ms long on a server's core: the median ms of each part over 9 repetitions.

    `matmul_ms`: eight float32 products of 64 x 64, which stay in the level-2 cache: the clock. `stream_ms`:
    256 such products over 8 MiB, read and written: what other work on a shared machine takes away first, and
    what networks feel. `sweep_ms`: a sum over 8 MiB: how fast memory can be read. All are single-threaded
    whatever the number of cores. Without numpy there is only `loop_ms`, a loop of plain Python.
    """
    reading = {}
    for name, part in _parts().items():
        part()  # what other work left in the caches is no part of it
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
    """The same numbers each time, allocated and written once: fresh pages would be timed too."""
    if not _operands:
        import numpy as np

        rng = np.random.RandomState(0)
        left, right = rng.standard_normal((2, 8, SIDE, SIDE)).astype(np.float32)
        matrices = rng.standard_normal((STREAMED, SIDE, SIDE)).astype(np.float32)
        block = rng.standard_normal(SWEPT).astype(np.float32)
        _operands.extend((left, right, np.ones_like(left), matrices, np.ones_like(matrices), block))
    return tuple(_operands)
