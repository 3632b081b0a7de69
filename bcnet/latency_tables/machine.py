"""The slowdown that a change of the machine explains.

In: the reference microbenchmark, then and now. Out: log changes, with their standard errors.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

# Sensitivity of layers to the machine: a layer slows down with the clock (`matmul_ms`), plus a fraction of
# what the memory (`stream_ms`) slows down beyond the clock. This fraction, (mean, standard deviation), was
# measured with varying other load; layers without data reuse (ReduceMean, Gemm) have the most (decision 5).
SENSITIVITY_ALL, SENSITIVITY_CONVOLUTIONS, SENSITIVITY_OTHERS = (0.35, 0.25), (0.5, 0.4), (1.5, 1.0)
CLOCKS = "matmul_ms", "loop_ms"  # the second is for a device without numpy
MEMORY = "stream_ms"
PROBE_DRIFT = 0.01
MAD = 1.4826  # median absolute deviation -> standard deviation, for a normal distribution
MEDIAN = 1.2533  # standard error of a median relative to that of a mean


@dataclass(frozen=True)
class Probed:
    """The reference microbenchmark of one session: medians in ms and spreads by part, number of readings.

    A table does not record the number; a build takes a reading before every network, in two passes: eight or
    more.
    """

    medians_ms: Mapping[str, float]
    spreads: Mapping[str, float]
    readings: int = 8


@dataclass(frozen=True)
class Machine:
    """The reference microbenchmark in two sessions. Changes are log(now / then)."""

    then: Probed
    now: Probed

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The parts of the reference microbenchmark that both sessions have."""
        return tuple(part for part in self.then.medians_ms if part in self.now.medians_ms)

    @property
    def clock(self) -> str | None:
        """The part that measures the clock and that both sessions have; None if there is none."""
        return next((part for part in CLOCKS if part in self.parts), None)

    def change(self, part: str) -> float:
        """The log change of a part that both sessions have; above 0: slower."""
        return math.log(self.now.medians_ms[part] / self.then.medians_ms[part])

    def error(self, part: str) -> float:
        """The standard error of `change`."""
        variance = PROBE_DRIFT**2
        for probed in (self.then, self.now):
            variance += (MEDIAN * MAD * probed.spreads.get(part, 0.0)) ** 2 / max(probed.readings, 1)
        return math.sqrt(variance)

    def _memory(self) -> float:
        """The change of the memory; that of the clock if a session did not measure the memory."""
        return self.change(MEMORY if MEMORY in self.parts else self._clock)

    @property
    def _clock(self) -> str:
        clock = self.clock
        assert clock is not None  # `verdict_on` rejects sessions without it
        return clock

    def explains(self, sensitivity: tuple[float, float]) -> tuple[float, float]:
        """The change of layers with that sensitivity (mean, standard deviation), and its standard error."""
        mean, deviation = sensitivity
        clock, memory = self.change(self._clock), self._memory()
        error = (deviation * (memory - clock)) ** 2 + (mean * self.error(MEMORY)) ** 2
        return clock + mean * (memory - clock), math.sqrt(error + self.error(self._clock) ** 2)

    def explains_beyond_all(self, sensitivity: tuple[float, float]) -> tuple[float, float]:
        """The same relative to all other rows: the clock cancels, and so does `SENSITIVITY_ALL`."""
        mean, deviation = sensitivity
        beyond, memory = mean - SENSITIVITY_ALL[0], self._memory() - self.change(self._clock)
        error = math.hypot(deviation, SENSITIVITY_ALL[1]) * memory
        return beyond * memory, math.hypot(error, beyond * self.error(MEMORY))


def sensitivity_of(kind: str) -> tuple[float, float]:
    """The sensitivity of a kind of layers to the memory: mean and standard deviation."""
    return SENSITIVITY_CONVOLUTIONS if "Conv" in kind else SENSITIVITY_OTHERS
