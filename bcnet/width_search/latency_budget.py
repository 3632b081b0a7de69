"""A latency budget as the user gave it: its form in results, and its printed form everywhere.

In: milliseconds, and what they were derived from. Out: text, and the statistic of a measurement that is
limited.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from bcnet.latency_tables.rows import LatencyStat
from bcnet.plain import milliseconds


class LatencyBudget(BaseModel):
    """At most `ms` milliseconds per call.

    For a `share` of the original's latency, `ms` follows from the last prediction or measurement of that; for
    `fps` images per second, it is what a call with the device's batch may take. With `p90`, the 90th
    percentile of the measured calls is limited instead of their median.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, extra="forbid")

    ms: Annotated[float, Field(gt=0)]
    share: float | None = None
    fps: float | None = None
    p90: bool = False

    def counted_ms(self, measured: LatencyStat) -> float:
        """The value in a measured latency that is limited: its median or 90th percentile."""
        return measured.p90_ms if self.p90 else measured.median_ms

    def counted(self, measured: LatencyStat) -> str:
        """The same as text."""
        return f"{'p90 ' if self.p90 else ''}{milliseconds(self.counted_ms(measured))} ms"

    @property
    def amount(self) -> str:
        """Its milliseconds, for texts in which it is clear that they are a budget."""
        return f"{'p90 ' if self.p90 else ''}{milliseconds(self.ms)} ms"

    def __str__(self) -> str:
        return f"{'p90 ' if self.p90 else ''}budget {milliseconds(self.ms)} ms"

    @property
    def explained(self) -> str:
        """The same, with the form in which the user gave it."""
        if self.share is not None:
            return f"{self}, {100 * self.share:.4g}% of the original's latency"
        return str(self) if self.fps is None else f"{self}, {self.fps:.4g} images a second"

    @property
    def option(self) -> tuple[str, str]:
        """The option of `bcnet search` that sets this budget, and its value."""
        if self.share is not None:
            return "--latency", f"{100 * self.share:.6g}%"
        if self.fps is not None:
            return "--fps", f"{self.fps:g}"
        return "--p90-ms" if self.p90 else "--latency-ms", f"{self.ms:g}"
