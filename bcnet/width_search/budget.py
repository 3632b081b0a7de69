"""What a network has to keep. In: a latency, bounds on other costs. Out: limits to search and measure by."""

from dataclasses import dataclass, replace

from bcnet.errors import BudgetError
from bcnet.latency_tables.rows import LatencyStat
from bcnet.plain import milliseconds
from bcnet.space.width_space import Widths
from bcnet.width_search.constraints import Bound
from bcnet.width_search.latency_budget import LatencyBudget


@dataclass(frozen=True)
class Budget:
    """A latency in ms (`target_ms`; None: no latency is demanded) and bounds on what else a network costs.

    With a `share`, the budget is that fraction of the original's latency: `target_ms` is the fraction of the
    predicted latency, and measured networks are held to that of the original as it is measured beside them.
    `margin` is the fraction by which measured networks stay below the budget, for the noise of the machine.
    `wider` is whether networks may be wider than the original (`space.expand`), `p90` whether the 90th
    percentile of the measured latency is held to the budget, and not the median; `fps` the images per second
    that it was given as. `added_ms` is the time that the delivered file takes in addition to the network (its
    pre-processing): all latencies here are without it. `on_device` is " on NAME" for messages where there are
    several devices.
    """

    target_ms: float | None = None
    share: float | None = None
    margin: float = 0.0
    bounds: tuple[Bound, ...] = ()
    wider: bool = False
    p90: bool = False
    added_ms: float = 0.0
    fps: float | None = None
    on_device: str = ""

    @classmethod
    def of(cls, stated: LatencyBudget | None) -> "Budget":
        """The budget of a result, without margin and bounds."""
        return cls() if stated is None else cls(stated.ms, stated.share, p90=stated.p90, fps=stated.fps)

    def stated(self, ms: float | None = None) -> LatencyBudget | None:
        """Its form in results, with `ms` as measured, if it was. None if no latency is demanded."""
        ms = self.target_ms if ms is None else ms
        return None if ms is None else LatencyBudget(ms=ms, share=self.share, fps=self.fps, p90=self.p90)

    def stated_beside(self, original: LatencyStat) -> LatencyBudget | None:
        """Its form in results, where the original was measured like this."""
        return self.stated(None if self.share is None else self.asked_ms(self.counted_ms(original)))

    def with_added(self, added_ms: float) -> "Budget":
        """The budget of the network alone, if this is that of a file that takes `added_ms` longer.

        Raises BudgetError if nothing is left.
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
            whole, added = milliseconds(left_ms + self.added_ms), milliseconds(self.added_ms)
            raise BudgetError(
                f"the budget of {whole} ms{self.on_device} leaves nothing for the network: the "
                f"pre-processing in the file takes {added} ms; raise the budget, or set export.preprocess = "
                "false"
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
