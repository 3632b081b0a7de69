"""What a change of the machine explains. In: its probe then and now. Out: log changes, with their errors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

# What layers feel of a change of the machine: all of the clock's (`matmul_ms`), and of what memory loses
# beyond it (`stream_ms`) a part that differs, here with its standard deviation. Seen on MobileNetV2 while
# other work came and went: all rows together 0.1 to 0.5, 1x1 and depthwise convolutions 0.1 to 0.6, the
# first convolution up to 1.4; what uses each number once feels most: ReduceMean and Gemm, 0.5 to 2.5.
FELT_BY_ALL, FELT_BY_CONVOLUTIONS, FELT_BY_OTHERS = (0.35, 0.25), (0.5, 0.4), (1.5, 1.0)
CLOCKS = "matmul_ms", "loop_ms"  # the second is that of a device without numpy
MEMORY = "stream_ms"
PROBE_DRIFT = 0.01
MAD = 1.4826  # median absolute deviation -> standard deviation, for a normal distribution
MEDIAN = 1.2533  # standard error of a median over that of a mean


@dataclass(frozen=True)
class Probed:
    """The probe in one session: medians in ms and spreads by part, and how many readings they come from.

    A table does not say how many; a build makes one before every network, in two passes: eight at least.
    """

    medians_ms: Mapping[str, float]
    spreads: Mapping[str, float]
    readings: int = 8


@dataclass(frozen=True)
class Machine:
    """The probe in two sessions. Changes are logarithms of ratios, now over then."""

    then: Probed
    now: Probed

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The parts of the probe that both sessions have."""
        return tuple(part for part in self.then.medians_ms if part in self.now.medians_ms)

    @property
    def clock(self) -> str | None:
        """The part of the probe that tells the clock in both sessions."""
        return next((part for part in CLOCKS if part in self.parts), None)

    def change(self, part: str) -> float:
        """How much slower a part that is in both has become."""
        return math.log(self.now.medians_ms[part] / self.then.medians_ms[part])

    def error(self, part: str) -> float:
        """The standard error of that."""
        variance = PROBE_DRIFT**2
        for probed in (self.then, self.now):
            variance += (MEDIAN * MAD * probed.spreads.get(part, 0.0)) ** 2 / max(probed.readings, 1)
        return math.sqrt(variance)

    def _memory(self) -> float:
        """The memory's change; the clock's where the probe of one session does not tell."""
        return self.change(MEMORY if MEMORY in self.parts else self._clock)

    @property
    def _clock(self) -> str:
        clock = self.clock
        assert clock is not None  # `verdict_on` refuses sessions without
        return clock

    def explains(self, felt: tuple[float, float]) -> tuple[float, float]:
        """The change of layers that feel so much (mean, deviation) of what memory loses, and its error."""
        clock, memory = self.change(self._clock), self._memory()
        error = (felt[1] * (memory - clock)) ** 2 + (felt[0] * self.error(MEMORY)) ** 2
        return clock + felt[0] * (memory - clock), math.sqrt(error + self.error(self._clock) ** 2)

    def explains_beyond_all(self, felt: tuple[float, float]) -> tuple[float, float]:
        """The same against all other rows: the clock cancels, and so does `FELT_BY_ALL`."""
        beyond, memory = felt[0] - FELT_BY_ALL[0], self._memory() - self.change(self._clock)
        error = math.hypot(felt[1], FELT_BY_ALL[1]) * memory
        return beyond * memory, math.hypot(error, beyond * self.error(MEMORY))


def felt_by(kind: str) -> tuple[float, float]:
    """How much of what memory loses a kind of layers feels: mean and standard deviation."""
    return FELT_BY_CONVOLUTIONS if "Conv" in kind else FELT_BY_OTHERS
