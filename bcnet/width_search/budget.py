"""What a network has to keep. In: a latency, bounds on other costs. Out: limits to search and measure by."""

from dataclasses import dataclass, replace

from bcnet.errors import BudgetError
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
    percentile of the measured latency is held to the budget, and not the median. `added_ms` is what the
    delivered file takes beside the network (its pre-processing): all latencies here are without it.
    """

    target_ms: float | None = None
    share: float | None = None
    margin: float = 0.0
    bounds: tuple[Bound, ...] = ()
    wider: bool = False
    p90: bool = False
    added_ms: float = 0.0

    def with_added(self, added_ms: float) -> "Budget":
        """The budget of the network alone, where this one is that of a file that takes `added_ms` more.

        Raises BudgetError where that leaves nothing.
        """
        target_ms = self.target_ms
        if target_ms is not None:
            target_ms -= added_ms * (1 - (self.share or 0.0))
        found = replace(self, target_ms=target_ms, added_ms=added_ms)
        if target_ms is not None:
            found._check_left(target_ms)
        return found

    def _check_left(self, left_ms: float) -> None:
        if self.added_ms and left_ms <= 0:
            raise BudgetError(
                f"the budget of {left_ms + self.added_ms:.4g} ms leaves nothing for the network: the "
                f"pre-processing in the file takes {self.added_ms:.4g} ms; raise the budget, or set "
                "export.preprocess = false"
            )

    @property
    def delivered(self) -> "Budget":
        """The budget of the delivered file, whose latency includes what is added."""
        target_ms = None if self.target_ms is None else self.target_ms + self.added_ms
        return replace(self, target_ms=target_ms, added_ms=0.0)

    def counted_ms(self, measured: LatencyStat) -> float:
        """The statistic of a measured latency that is held to the budget."""
        return measured.p90_ms if self.p90 else measured.median_ms

    def asked_ms(self, original_ms: float) -> float:
        """The budget itself where the original takes `original_ms`."""
        if self.share is not None:
            asked_ms = self.share * (original_ms + self.added_ms) - self.added_ms
            self._check_left(asked_ms)
            return asked_ms
        assert self.target_ms is not None, "no latency is demanded"
        return self.target_ms

    @property
    def within_margin(self) -> float:
        """The budget in proportion to the limit of measured networks."""
        # The original itself fits a budget that is all of its latency.
        whole = self.share is not None and self.share >= 1 and not self.wider
        return 1.0 if whole else 1 + self.margin

    def limit_ms(self, original_ms: float) -> float:
        """What measured networks must not exceed where the original takes `original_ms`."""
        return self.asked_ms(original_ms) / self.within_margin

    def searched_ms(self, lowest_ms: float) -> float:
        """The predicted latency up to which networks are searched that will be measured.

        It is the target without the margin, or the lowest possible latency where no network is that fast.
        """
        assert self.target_ms is not None, "no latency is demanded"
        return max(lowest_ms, self.target_ms / (1 + self.margin))

    def bounds_hold(self, widths: Widths) -> bool:
        """Whether the network is within all bounds."""
        return all(bound.holds(widths) for bound in self.bounds)
