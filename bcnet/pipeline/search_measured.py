"""The winner of an evolution, measured.

In: scored candidates, a device. Out: the best that keeps the budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bcnet.pipeline.alternating import MeasureOf, alternating
from bcnet.pipeline.beside_original import BesideOriginal, LimitsMs, Timed
from bcnet.pipeline.measured import USED, measured_until_used, too_slow
from bcnet.progress import working
from bcnet.space.width_space import Widths
from bcnet.width_search.device_limit import device_limits, device_names
from bcnet.width_search.evolution import Candidate, Evolution, SearchSettings
from bcnet.width_search.latency_budget import LatencyBudget


@dataclass(frozen=True)
class Winner:
    """The best candidate, all that were measured, and all that were scored.

    `budget_ms` is the budget as measured beside the best, `further_ms` are those of further devices.
    """

    best: Candidate
    top: tuple[Candidate, ...]
    candidates: tuple[Candidate, ...]
    budget_ms: float | None
    note: str = ""
    further_ms: tuple[float, ...] = ()


@dataclass
class Evolved:
    """Proposes the best candidates of an evolution; in later rounds, the same made to just fit a limit."""

    evolution: Evolution
    most: int
    found: dict[Widths, Candidate]
    proposed: set[Widths] = field(default_factory=set)

    def propose(self, limits: LimitsMs, number: int) -> list[Candidate]:
        """Candidates within the limits, which are raised to the latencies of the fastest network if below."""
        evolution, settings = self.evolution, self.evolution.settings
        assert evolution.fastest is not None
        limit = max(limits[0], float(evolution.latency_of(evolution.fastest)))
        evolution.limit_devices(limits[1:])
        if number:
            rng = np.random.default_rng((settings.seed, settings.generations + number))
            for candidate in self.ranked(tuple(self.found.values()))[: self.most]:
                widths = evolution.repaired(candidate.widths, rng, limit)
                if widths not in self.found:
                    self.found[widths] = evolution.scored(widths, settings.generations + number)
        return [
            candidate
            for candidate in self.found.values()
            if candidate.widths not in self.proposed and evolution.fits(candidate.widths, limit)
        ]

    def chosen(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The best `most` candidates."""
        best = self.ranked(candidates)[: self.most]
        self.proposed |= {candidate.widths for candidate in best}
        return best

    def ranked(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Candidates, best first."""
        return self.evolution.ranked(candidates)


def fastest_measured(
    evolution: Evolution, settings: SearchSettings, candidates: Sequence[Candidate], measure_of: MeasureOf
) -> Winner:
    """The fastest, as measured, of those that are accurate enough."""
    accurate = [c for c in candidates if c.score.accuracy >= (settings.min_accuracy or 0.0)]
    top = measured_alone(evolution.ranked(accurate)[: settings.measured], measure_of)
    best = min(top, key=lambda c: c.measured.median_ms if c.measured else 0.0)
    return Winner(best, top, tuple(candidates), settings.budget.target_ms)


def measured_alone(candidates: Sequence[Candidate], measure_of: MeasureOf) -> tuple[Candidate, ...]:
    """The candidates, each with its latency."""
    with working("measuring the best candidates as whole networks"):
        stats = alternating(measure_of, [candidate.widths for candidate in candidates])
    return tuple(replace(candidate, measured=stats[candidate.widths]) for candidate in candidates)


def measured_best(
    evolution: Evolution,
    settings: SearchSettings,
    candidates: Sequence[Candidate],
    measure_of: MeasureOf,
    least_used: float = USED,
) -> Winner:
    """Measure the best few; the best that really is inside the budget, by the margin, wins.

    The winner is measured once more, after all others, and has to fit again.
    The best of several that press against the budget is otherwise likely one that was measured too fast.
    Where all of them miss it, or the winner uses less than `least_used` of it, the table is off by some
    factor here: the next ones are made to just fit by it. In the end, one inside the budget without the
    margin will do.
    """
    budget, start_ms = settings.budget, evolution.settings.budget.target_ms
    assert start_ms is not None
    beside = BesideOriginal(measure_of, evolution.space.original(), budget)
    evolved = Evolved(evolution, settings.measured, {c.widths: c for c in candidates})
    start = (start_ms, *(own.limit for own in device_limits(evolution.settings.budget.bounds)))
    measured = measured_until_used(evolved, beside, start, least_used=least_used)
    again: dict[Widths, Timed] = {}
    budgets = measured.budgets
    margin = max(own.margin for own in beside.budgets)
    for most, note in (
        ((1.0,) * len(start), measured.note),
        (beside.without_margins, f"inside the budget, but by less than the machine's noise of {margin:.1%}"),
    ):
        for own in measured.timed:
            widths = own.candidate.widths
            if not own.within(most):
                continue
            if widths not in again:
                again[widths], budgets = confirmed(own, beside)
            if again[widths].within(most):
                top = tuple(again.get(each.candidate.widths, each).candidate for each in measured.timed)
                found, ms = tuple(evolved.found.values()), [budget.ms for budget in budgets]
                return Winner(again[widths].candidate, top, found, ms[0], note, tuple(ms[1:]))
    timed = tuple(again.get(own.candidate.widths, own) for own in measured.timed)
    raise too_slow(replace(measured, timed=timed), device_names(evolution.latency_of, budget.bounds))


def confirmed(own: Timed, beside: BesideOriginal) -> tuple[Timed, tuple[LatencyBudget, ...]]:
    """A candidate measured once more, with the larger of both shares, and the budgets measured with it.

    Latency and budgets are those of the repetition: on a machine whose speed changes, a latency of the first
    measurement could exceed a budget of the second.
    """
    (again,), originals = beside([own.candidate])
    shares = tuple(map(max, own.shares, again.shares))
    return replace(again, shares=shares), beside.asked(originals)
