"""Candidates measured beside the original network until the budget is used.

In: whoever proposes candidates, a latency to reach, a device. Out: what was measured, each as a share of the
limit. The original alternates with the candidates, so that a machine that slows down slows both.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from bcnet.errors import BudgetError
from bcnet.events import emit
from bcnet.latency_tables.rows import LatencyStat
from bcnet.pipeline.alternating import MeasureOf, alternating
from bcnet.plain import milliseconds
from bcnet.progress import working
from bcnet.space.width_space import Widths
from bcnet.width_search.budget import Budget
from bcnet.width_search.evolution import Candidate

ROUNDS = 4  # of proposing and measuring
USED = 0.97  # of the limit: a winner that is faster is followed by larger candidates
NOTED = 0.01  # a larger error of the table's predictions is reported


@dataclass(frozen=True)
class Timed:
    """A candidate that was measured, and its latency as a share of the limit at that time."""

    candidate: Candidate
    used: float


@dataclass(frozen=True)
class BesideOriginal:
    """How candidates are measured: alternating with the original, whose latency then gives the limit."""

    measure_of: MeasureOf
    original: Widths
    budget: Budget

    def __call__(self, candidates: Sequence[Candidate]) -> tuple[list[Timed], LatencyStat]:
        """The candidates, measured, and what the original took."""
        stats = alternating(self.measure_of, [self.original, *(own.widths for own in candidates)])
        counted_ms = {widths: self.budget.counted_ms(stat) for widths, stat in stats.items()}
        limit = self.budget.limit_ms(counted_ms[self.original])
        timed = [
            Timed(replace(own, measured=stats[own.widths]), counted_ms[own.widths] / limit)
            for own in candidates
        ]
        for own in timed:
            emit(
                "measured",
                task="measured candidates",
                widths=list(own.candidate.widths),
                predicted_ms=own.candidate.predicted_ms,
                measured_ms=counted_ms[own.candidate.widths],
                original_ms=counted_ms[self.original],
                used=own.used,
            )
        return timed, stats[self.original]

    def asked_ms(self, original: LatencyStat) -> float:
        """The budget in ms where the original was measured so."""
        return self.budget.asked_ms(self.budget.counted_ms(original))


class Proposer(Protocol):
    """Who proposes candidates to be measured, and knows which of them is better."""

    def propose(self, limit_ms: float, above_ms: float, number: int) -> list[Candidate]:
        """What to measure in round `number`: networks above `above_ms`, of at most `limit_ms`, by the table.

        Raises BudgetError where there are none of at most `limit_ms`.
        """

    def ranked(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Candidates, best first."""


@dataclass(frozen=True)
class Measured:
    """All candidates that were measured, best first.

    `budget_ms` is the budget as measured beside the last of them, `original` what the original took then.
    """

    timed: tuple[Timed, ...]
    budget_ms: float
    note: str = ""
    original: LatencyStat | None = None

    def within(self, used: float = 1.0) -> list[Timed]:
        """Those that take at most this share of the limit."""
        return [own for own in self.timed if own.used <= used]

    @property
    def inside(self) -> list[Timed]:
        """Those within the limit."""
        return self.within()


def measured_until_used(
    proposer: Proposer,
    beside: BesideOriginal,
    predicted_limit_ms: float,
    *,
    least_used: float = USED,
    stop_at_original: bool = False,
) -> Measured:
    """Measure what is proposed until the best candidate inside the limit uses it, by `least_used` at least.

    It ends after `ROUNDS` in any case. The next round's limit by the table, at first `predicted_limit_ms`,
    is what would just use the real one: by the table's error at the best candidate that is inside, where
    there is one, else at most of the others. With `stop_at_original`, nothing else is measured once the
    original is seen to be within the limit.
    """
    budget = beside.budget
    timed: dict[Widths, Timed] = {}
    found = Measured((), budget.target_ms or 0.0)
    note, raised, best = "", False, None
    for number in range(ROUNDS):
        try:
            above_ms = best.candidate.predicted_ms if best else 0.0
            proposed = proposer.propose(predicted_limit_ms, above_ms, number)
        except BudgetError:
            if not timed:
                raise
            break  # none is as fast as the measurements ask for
        batch = [candidate for candidate in proposed if candidate.widths not in timed]
        if not batch:
            if raised or best is None:
                break
            # The table is right, and what it allows is measured: it may still be wrong for a larger one.
            predicted_limit_ms, raised = predicted_limit_ms / USED, True
            continue
        with working("measuring the best candidates beside the original"):
            new, original = beside(batch)
        timed |= {own.candidate.widths: own for own in new}
        ranked = proposer.ranked([own.candidate for own in timed.values()])
        found = Measured(
            tuple(timed[candidate.widths] for candidate in ranked),
            beside.asked_ms(original),
            note,
            original,
        )
        original_ms = budget.counted_ms(original)
        if stop_at_original and original_ms <= budget.limit_ms(original_ms):
            break
        best = next(iter(found.inside), None)
        if best is not None and best.used >= least_used:
            break
        # Candidates are near the limit by the table: their measurements show how far it is off.
        ratios = sorted(own.used * predicted_limit_ms / own.candidate.predicted_ms for own in new)
        off = ratios[len(ratios) // 2]
        if abs(1 / off - 1) > NOTED:
            note = f"at this budget the table's predictions were {1 / off - 1:+.1%} off, which was corrected"
            if budget.p90:
                note = f"the 90th percentiles were {off - 1:+.1%} off the table's predictions: corrected"
        predicted_limit_ms = best.candidate.predicted_ms / best.used if best else predicted_limit_ms / off
    return found


def too_slow(measured: Measured) -> BudgetError:
    """What is raised where none of the measured networks is inside the limit."""
    closest = min(own.used for own in measured.timed)
    return BudgetError(
        f"none of the {len(measured.timed)} best candidates, measured beside the original network, is within "
        f"the budget of {milliseconds(measured.budget_ms)} ms; the closest exceeds the limit by "
        f"{closest - 1:.1%}. The machine may be busy: search again, or measure the table again "
        "with `bcnet build-lut --again`"
    )
