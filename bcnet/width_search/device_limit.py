"""A latency limit on a further device, as a bound on the networks searched for the first one.

In: that device's latency as a function of widths, its budget, how networks are measured there. Out: a
`Bound`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from bcnet.latency_tables.model import LatencyModel
from bcnet.latency_tables.rows import LatencyStat
from bcnet.plain import milliseconds
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.width_search.budget import Budget
from bcnet.width_search.constraints import Bound, Pairwise
from bcnet.width_search.evolution import LatencyOf, fastest

ROUNDING = 1e-9  # relative; sums of the same latencies in another order differ by less


@dataclass(frozen=True)
class DeviceLatency:
    """A device's latency in ms as a cost, by its table's model or any function."""

    latency_of: LatencyOf

    def __call__(self, widths: Widths, /) -> float:
        """The latency of one network."""
        return float(self.latency_of(widths))

    def price_many(self, networks: np.ndarray, /) -> np.ndarray:
        """The latencies (N,) of networks with widths (N, groups)."""
        if isinstance(self.latency_of, LatencyModel):
            return self.latency_of.price_many(self.latency_of.indices(networks))
        return np.array([self.latency_of(Widths(map(int, own))) for own in networks], dtype=float)

    def pairwise(self, choices: Sequence[Sequence[int]], /) -> Pairwise:
        """As `LatencyModel.pairwise`, so without what its arrays do not cover."""
        assert isinstance(self.latency_of, LatencyModel), "only a table is a sum of arrays"
        return self.latency_of.pairwise()


@dataclass(frozen=True, kw_only=True)
class DeviceLimit(Bound):
    """A `limit` in ms on a further device's latency; `budget` is that device's own, without bounds.

    Without `measure_of`, networks are not measured there, and the table's prediction counts.
    """

    of_device: ClassVar[bool] = True
    budget: Budget
    measure_of: Callable[[Widths], LatencyStat] | None = None

    @classmethod
    def on(cls, device: str, latency_of: LatencyOf, budget: Budget) -> "DeviceLimit":
        """The budget of a device as a limit, from which the margin is still to be subtracted."""
        assert budget.target_ms is not None, "a further device has a latency budget"
        cost = DeviceLatency(latency_of)
        return cls(key=device, name=f"ms on {device}", cost=cost, limit=budget.target_ms, budget=budget)

    @property
    def device(self) -> str:
        """The device's name."""
        return self.key

    def holds(self, widths: Widths) -> bool:
        """Whether the network is predicted within the limit."""
        return self.cost(widths) <= self.limit * (1 + ROUNDING)

    def least(self, space: WidthSpace) -> float:
        """The lowest latency of the space there."""
        return self.cost(fastest(space, self.cost))

    def refusal(self, least: float) -> str:
        """The message if no network is fast enough."""
        return (
            f"no network meets {milliseconds(self.limit)} ms on {self.device}: the fastest takes "
            f"{milliseconds(least)} ms there; raise that device's budget, or widen the choices "
            "(space.min_width, space.bins)"
        )

    def shown(self, count: float) -> str:
        """A latency without its unit, which is in `name`."""
        return milliseconds(count)


def device_limits(bounds: Iterable[Bound]) -> tuple[DeviceLimit, ...]:
    """The limits on further devices among the bounds, in their order."""
    return tuple(bound for bound in bounds if isinstance(bound, DeviceLimit))


def device_names(latency_of: LatencyOf, bounds: Iterable[Bound]) -> tuple[str, ...]:
    """The names of all devices, that of `latency_of` first; () where the bounds have no further device."""
    further = tuple(own.device for own in device_limits(bounds))
    first = latency_of.table.device if isinstance(latency_of, LatencyModel) else "the first device"
    return (first, *further) if further else ()


def with_limits(bounds: Iterable[Bound], limits_ms: Sequence[float]) -> tuple[Bound, ...]:
    """The bounds with other limits on further devices, in their order."""
    waiting = iter(limits_ms)
    return tuple(
        replace(bound, limit=next(waiting)) if isinstance(bound, DeviceLimit) else bound for bound in bounds
    )


def as_measured(bounds: Iterable[Bound], measured_ms: Sequence[float]) -> tuple[Bound, ...]:
    """The bounds with the budgets on further devices as they were measured, in their order; () for none."""
    own = device_limits(bounds)
    ms = dict(zip((one.device for one in own), measured_ms or [one.limit for one in own], strict=True))
    return with_budgets(bounds, {one.device: replace(one.budget, target_ms=ms[one.device]) for one in own})


def with_budgets(bounds: Iterable[Bound], budgets: Mapping[str, Budget]) -> tuple[Bound, ...]:
    """The bounds with other budgets on further devices, by name."""
    found = list[Bound]()
    for bound in bounds:
        if isinstance(bound, DeviceLimit):
            budget = budgets[bound.device]
            bound = replace(bound, budget=budget, limit=budget.target_ms or bound.limit)
        found.append(bound)
    return tuple(found)


def with_added(bounds: Iterable[Bound], added_ms: Callable[[str], float]) -> tuple[Bound, ...]:
    """The bounds for networks alone, on measured devices whose files take additional time."""
    found = list[Bound]()
    for bound in bounds:
        if isinstance(bound, DeviceLimit) and bound.measure_of is not None:
            budget = bound.budget.with_added(added_ms(bound.device))
            bound = replace(bound, budget=budget, limit=budget.target_ms or bound.limit)
        found.append(bound)
    return tuple(found)


def in_ms(bounds: Iterable[Bound]) -> tuple[Bound, ...]:
    """The bounds without shares of the original's measured latency: budgets are what they are in ms now.

    So it is if nothing is measured, or if another original is.
    """
    return tuple(
        replace(own, budget=replace(own.budget, share=None)) if isinstance(own, DeviceLimit) else own
        for own in bounds
    )


def below_margins(bounds: Iterable[Bound], anchor: Widths) -> tuple[Bound, ...]:
    """The bounds of a search that measures networks, with margins subtracted on further devices.

    `anchor` is a network within all budgets; no limit becomes lower than its latency.
    """
    bounds = tuple(bounds)
    own = device_limits(bounds)
    return with_limits(
        bounds,
        [one.budget.searched_ms(one.cost(anchor)) if one.measure_of else one.limit for one in own],
    )
