"""Candidates measured on all devices beside the original network.

In: candidates, devices with their budgets. Out: latencies, each as a share of its limit. The original
alternates with the candidates, so that a machine that slows down slows both.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from bcnet.events import emit
from bcnet.latency_tables.rows import LatencyStat
from bcnet.pipeline.alternating import MeasureOf, alternating
from bcnet.space.width_space import Widths
from bcnet.width_search.budget import Budget
from bcnet.width_search.device_limit import DeviceLimit, device_limits
from bcnet.width_search.evolution import Candidate
from bcnet.width_search.latency_budget import LatencyBudget

LimitsMs = tuple[float, ...]  # the predicted limit of the first device, then those of all further ones


@dataclass(frozen=True)
class Timed:
    """A measured candidate, and its latency as a share of the limit at that time.

    With several devices, `shares` has a value for each, 0 where it was not measured; `used` is the largest.
    """

    candidate: Candidate
    shares: tuple[float, ...]

    @property
    def used(self) -> float:
        """The largest share."""
        return max(self.shares)

    def within(self, most: Sequence[float]) -> bool:
        """Whether it takes at most these shares of the limits."""
        return all(share <= own for share, own in zip(self.shares, most, strict=True))


@dataclass(frozen=True)
class BesideOriginal:
    """How candidates are measured: alternating with the original, whose latency then gives the limit.

    Each further device that the budget has a limit for is treated in the same way, with its own budget.
    """

    measure_of: MeasureOf
    original: Widths
    budget: Budget
    device: str = ""  # a further device's name

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """The budget of each device."""
        return (self.budget, *(own.budget for own in self.further))

    @cached_property
    def further(self) -> tuple[DeviceLimit, ...]:
        """The limits on further devices, in the order of `Timed.shares`."""
        return device_limits(self.budget.bounds)

    def _each(self) -> "Iterator[BesideOriginal | None]":
        """This device and all further ones; None for one on which nothing is measured."""
        yield self
        for own in self.further:
            yield (
                None
                if own.measure_of is None
                else BesideOriginal(own.measure_of, self.original, own.budget, own.device)
            )

    def __call__(self, candidates: Sequence[Candidate]) -> tuple[list[Timed], list[LatencyStat | None]]:
        """The candidates, measured, and what the original took on each device."""
        shares, originals = [list[float]() for _ in candidates], list[LatencyStat | None]()
        measured = list(candidates)
        for device in self._each():
            if device is None:
                originals.append(None)
                for own_shares in shares:
                    own_shares.append(0.0)
                continue
            stats = alternating(device.measure_of, [self.original, *(own.widths for own in candidates)])
            originals.append(stats[self.original])
            for number, own in enumerate(candidates):
                shares[number].append(device._used(own, stats))
                measured[number] = device._with(measured[number], stats[own.widths])
        timed = [Timed(own, tuple(of)) for own, of in zip(measured, shares, strict=True)]
        return timed, originals

    def timed(self, candidate: Candidate, originals: Sequence[LatencyStat | None]) -> Timed:
        """The original as a candidate, with these measurements on each device."""
        stats = {own.device: stat for own, stat in zip(self.further, originals[1:], strict=True) if stat}
        shares = [
            0.0 if stat is None else (ms := own.counted_ms(stat)) / own.limit_ms(ms)
            for own, stat in zip(self.budgets, originals, strict=True)
        ]
        return Timed(replace(candidate, measured=originals[0], further=stats), tuple(shares))

    def _with(self, candidate: Candidate, stat: LatencyStat) -> Candidate:
        """The candidate with its latency on this device."""
        if self.device:
            return replace(candidate, further={**candidate.further, self.device: stat})
        return replace(candidate, measured=stat)

    def _used(self, candidate: Candidate, stats: dict[Widths, LatencyStat]) -> float:
        """The candidate's share of this device's limit."""
        counted_ms, original_ms = (
            self.budget.counted_ms(stats[widths]) for widths in (candidate.widths, self.original)
        )
        used = counted_ms / self.budget.limit_ms(original_ms)
        emit(
            "measured",
            task="measured candidates",
            widths=list(candidate.widths),
            predicted_ms=candidate.predicted_ms,
            measured_ms=counted_ms,
            original_ms=original_ms,
            used=used,
            **({"device": self.device} if self.device else {}),
        )
        return used

    def asked(self, originals: Sequence[LatencyStat | None]) -> tuple[LatencyBudget, ...]:
        """The budget of each device, given these measurements of the original."""
        found = []
        for budget, stat in zip(self.budgets, originals, strict=True):
            ms = None if stat is None else budget.asked_ms(budget.counted_ms(stat))
            stated = budget.stated(ms)
            assert stated is not None
            found.append(stated)
        return tuple(found)

    @property
    def without_margins(self) -> tuple[float, ...]:
        """The shares of the limits at which networks use up the budgets themselves."""
        return tuple(own.asked_ms(1.0) / own.limit_ms(1.0) for own in self.budgets)

    def predicted(self, candidate: Candidate) -> LimitsMs:
        """A candidate's latency on each device according to the tables."""
        return (candidate.predicted_ms, *(own.cost(candidate.widths) for own in self.further))

    def share_of(self, candidate: Candidate, limits: LimitsMs) -> float:
        """The largest share of these limits that a candidate uses according to the tables."""
        return max(ms / limit for ms, limit in zip(self.predicted(candidate), limits, strict=True))

    def inside(self, originals: Sequence[LatencyStat | None]) -> bool:
        """Whether the original is within each device's limit: as measured, else according to the table."""
        for budget, stat in zip(self.budgets, originals, strict=True):
            if stat is not None and (ms := budget.counted_ms(stat)) > budget.limit_ms(ms):
                return False
        return all(own.measure_of is not None or own.holds(self.original) for own in self.further)

    def raised(self, limits: LimitsMs, used: float) -> LimitsMs:
        """The limits of measured devices, raised so that the share `used` of each is the former limit."""
        measured = [True, *(own.measure_of is not None for own in self.further)]
        return tuple(ms / used if own else ms for ms, own in zip(limits, measured, strict=True))
