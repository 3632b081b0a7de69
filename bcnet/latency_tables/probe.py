"""Plain arithmetic outside any runtime: tells a slower machine from a slower runtime."""

import time

import numpy as np


def probe() -> dict[str, float]:
    """Milliseconds of a 256x256 float32 matrix product and of a sweep over 8 MiB; medians of 30."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 256, 256), dtype=np.float32)
    block = rng.standard_normal(2 * 1024 * 1024, dtype=np.float32)

    def median_ms(run: object) -> float:
        assert callable(run)
        samples = []
        for _ in range(30):
            start = time.perf_counter()
            run()
            samples.append((time.perf_counter() - start) * 1000)
        return round(float(np.median(samples)), 4)

    return {"matmul_ms": median_ms(lambda: a @ b), "sweep_ms": median_ms(block.sum)}
