"""What a network has to keep. In: a latency, bounds on other costs. Out: limits to search and measure by."""

from dataclasses import dataclass

from bcnet.latency_tables.rows import LatencyStat
from bcnet.space.width_space import Widths
from bcnet.width_search.constraints import Bound


@dataclass(frozen=True)
class Budget:
    """A latency in ms (`target_ms`; None: no latency is demanded) and bounds on what else a network costs.

    With a `share`, the budget is that fraction of the original's latency: `target_ms` is the fraction of the
    predicted latency, and measured networks are held to that of the original as it is measured beside them.
    `margin` is the fraction by which measured networks stay below the budget, for the noise of the machine.
    `wider` is whether networks may be wider than the original (`space.expand`), `p90` whether the 90th
    percentile of the measured latency is held to the budget, and not the median.
    """

    target_ms: float | None = None
    share: float | None = None
    margin: float = 0.0
    bounds: tuple[Bound, ...] = ()
    wider: bool = False
    p90: bool = False

    def counted_ms(self, measured: LatencyStat) -> float:
        """The statistic of a measured latency that is held to the budget."""
        return measured.p90_ms if self.p90 else measured.median_ms

    def asked_ms(self, original_ms: float) -> float:
        """The budget itself where the original takes `original_ms`."""
        if self.share is not None:
            return self.share * original_ms
        assert self.target_ms is not None, "no latency is demanded"
        return self.target_ms

    def limit_ms(self, original_ms: float) -> float:
        """What measured networks must not exceed where the original takes `original_ms`."""
        if self.share is not None and self.share >= 1 and not self.wider:
            return self.asked_ms(original_ms)  # the original itself fits
        return self.asked_ms(original_ms) / (1 + self.margin)

    def searched_ms(self, lowest_ms: float) -> float:
        """The predicted latency up to which networks are searched that will be measured.

        It is the target without the margin, or the lowest possible latency where no network is that fast.
        """
        assert self.target_ms is not None, "no latency is demanded"
        return max(lowest_ms, self.target_ms / (1 + self.margin))

    def bounds_hold(self, widths: Widths) -> bool:
        """Whether the network is within all bounds."""
        return all(bound.holds(widths) for bound in self.bounds)
