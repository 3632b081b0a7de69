"""A latency budget as it was asked for: what results hold, and how it is printed everywhere.

In: milliseconds, and what they are of. Out: text, and the statistic of a measurement that they limit.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from bcnet.latency_tables.rows import LatencyStat
from bcnet.plain import milliseconds


class LatencyBudget(BaseModel):
    """At most so many milliseconds a call.

    Of a `share` of the original's latency, `ms` is what it came to when that was predicted or measured last;
    of `fps` images a second, what a call of the device's batch may take. With `p90` the 90th percentile of
    the measured calls is limited, and not their median.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, extra="forbid")

    ms: Annotated[float, Field(gt=0)]
    share: float | None = None
    fps: float | None = None
    p90: bool = False

    def counted_ms(self, measured: LatencyStat) -> float:
        """The statistic of a measured latency that is limited."""
        return measured.p90_ms if self.p90 else measured.median_ms

    def counted(self, measured: LatencyStat) -> str:
        """The same as text."""
        return f"{'p90 ' if self.p90 else ''}{milliseconds(self.counted_ms(measured))} ms"

    @property
    def amount(self) -> str:
        """Its milliseconds, where it is clear that they are a budget."""
        return f"{'p90 ' if self.p90 else ''}{milliseconds(self.ms)} ms"

    def __str__(self) -> str:
        return f"{'p90 ' if self.p90 else ''}budget {milliseconds(self.ms)} ms"

    @property
    def explained(self) -> str:
        """The same with the form in which it was asked for."""
        if self.share is not None:
            return f"{self}, {100 * self.share:.4g}% of the original's latency"
        return str(self) if self.fps is None else f"{self}, {self.fps:.4g} images a second"

    @property
    def option(self) -> tuple[str, str]:
        """The option of `bcnet search` that asks for it, and its value."""
        if self.share is not None:
            return "--latency", f"{100 * self.share:.6g}%"
        if self.fps is not None:
            return "--fps", f"{self.fps:g}"
        return "--p90-ms" if self.p90 else "--latency-ms", f"{self.ms:g}"
