"""Time one call after the other by the monotonic clock. In: the call. Out: milliseconds of each."""

import time
from typing import Any, Callable, List


def timed(
    run: Callable[[Any], Any],
    prepared: Callable[[], Any],
    warmup_ms: float,
    seconds: float,
    iterations: int,
) -> List[float]:
    """Milliseconds of each `run(prepared())`, for at least `seconds` and `iterations`, after the warm-up.

    Preparing is not timed.
    """
    end = time.perf_counter() + warmup_ms / 1000
    run(prepared())
    while time.perf_counter() < end:
        run(prepared())
    samples: List[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < iterations or time.perf_counter() < end:
        value = prepared()
        start = time.perf_counter()
        run(value)
        samples.append((time.perf_counter() - start) * 1000)
    return samples
