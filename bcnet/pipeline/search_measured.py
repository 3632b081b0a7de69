"""The winner of an evolution, measured.

In: scored candidates, a device. Out: the best that keeps the budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bcnet.pipeline.alternating import MeasureOf, alternating
from bcnet.pipeline.measured import (
    USED,
    BesideOriginal,
    Timed,
    measured_until_used,
    too_slow,
)
from bcnet.progress import working
from bcnet.space.width_space import Widths
from bcnet.width_search.evolution import Candidate, Evolution, SearchSettings


@dataclass(frozen=True)
class Winner:
    """The best candidate, all that were measured, and all that were scored.

    `budget_ms` is the budget as measured beside the best.
    """

    best: Candidate
    top: tuple[Candidate, ...]
    candidates: tuple[Candidate, ...]
    budget_ms: float | None
    note: str = ""


@dataclass
class Evolved:
    """Proposes the best candidates of an evolution; in later rounds, the same made to just fit a limit."""

    evolution: Evolution
    most: int
    found: dict[Widths, Candidate]
    proposed: set[Widths] = field(default_factory=set)

    def propose(self, limit_ms: float, above_ms: float, number: int) -> list[Candidate]:
        """The best `most` candidates within the limits; the upper one is at least the fastest's latency."""
        evolution, settings = self.evolution, self.evolution.settings
        assert evolution.fastest is not None
        limit = max(limit_ms, float(evolution.latency_of(evolution.fastest)))
        if number:
            rng = np.random.default_rng((settings.seed, settings.generations + number))
            for candidate in self.ranked(tuple(self.found.values()))[: self.most]:
                widths = evolution.repaired(candidate.widths, rng, limit)
                if widths not in self.found:
                    self.found[widths] = evolution.scored(widths, settings.generations + number)
        fitting = [
            candidate
            for candidate in self.found.values()
            if above_ms < candidate.predicted_ms <= limit and candidate.widths not in self.proposed
        ]
        best = self.ranked(fitting)[: self.most]
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

    The winner is measured once more, after all others, and has to fit again; the slower measurement counts.
    The best of several that press against the budget is otherwise likely one that was measured too fast.
    Where all of them miss it, or the winner uses less than `least_used` of it, the table is off by some
    factor here: the next ones are made to just fit by it. In the end, one inside the budget without the
    margin will do.
    """
    budget, start_ms = settings.budget, evolution.settings.budget.target_ms
    assert start_ms is not None
    beside = BesideOriginal(measure_of, evolution.space.original(), budget)
    evolved = Evolved(evolution, settings.measured, {c.widths: c for c in candidates})
    measured = measured_until_used(evolved, beside, start_ms, least_used=least_used)
    again: dict[Widths, Timed] = {}
    budget_ms = measured.budget_ms
    for used, note in (
        (1.0, measured.note),
        (
            budget.within_margin,
            f"inside the budget, but by less than the machine's noise of {budget.margin:.1%}",
        ),
    ):
        for own in measured.within(used):
            widths = own.candidate.widths
            if widths not in again:
                again[widths], budget_ms = _confirmed(own, beside)
            if again[widths].used <= used:
                top = tuple(again.get(each.candidate.widths, each).candidate for each in measured.timed)
                return Winner(again[widths].candidate, top, tuple(evolved.found.values()), budget_ms, note)
    timed = tuple(again.get(own.candidate.widths, own) for own in measured.timed)
    raise too_slow(replace(measured, timed=timed))


def _confirmed(own: Timed, beside: BesideOriginal) -> tuple[Timed, float]:
    """The slower of a candidate's measurement and another one, and the budget in ms beside that."""
    (again,), original = beside([own.candidate])
    return own if own.used >= again.used else again, beside.asked_ms(original)
