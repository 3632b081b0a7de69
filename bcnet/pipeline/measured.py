"""Candidates measured beside the original network until the budget is used.

In: whoever proposes candidates, latencies to reach, devices. Out: what was measured, each as a share of the
limit. With several devices, the one on which a candidate is closest to the limit counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from bcnet.errors import BudgetError
from bcnet.latency_tables.rows import LatencyStat
from bcnet.pipeline.beside_original import BesideOriginal, LimitsMs, Timed
from bcnet.progress import working
from bcnet.space.width_space import Widths
from bcnet.width_search.evolution import Candidate
from bcnet.width_search.latency_budget import LatencyBudget

ROUNDS = 4  # of proposing and measuring
USED = 0.97  # of the limit: a winner that is faster is followed by larger candidates
NOTED = 0.01  # a larger error of the table's predictions is reported


class Proposer(Protocol):
    """Who proposes candidates to be measured, and knows which of them is better."""

    def propose(self, limits: LimitsMs, number: int) -> list[Candidate]:
        """Networks to measure in round `number`, which the tables predict within the limits.

        Raises BudgetError where there are none.
        """

    def chosen(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The proposed networks that are to be measured, best first."""

    def ranked(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Candidates, best first."""


@dataclass(frozen=True)
class Measured:
    """All candidates that were measured, best first.

    `budgets` are those of each device, as measured beside the last candidates; `originals` are the original's
    latencies at that time.
    """

    timed: tuple[Timed, ...]
    budgets: tuple[LatencyBudget, ...]
    note: str = ""
    originals: tuple[LatencyStat | None, ...] = ()

    @property
    def budget_ms(self) -> float:
        """The first device's budget."""
        return self.budgets[0].ms

    @property
    def inside(self) -> list[Timed]:
        """The candidates within the limits."""
        return [own for own in self.timed if own.used <= 1]


def measured_until_used(
    proposer: Proposer,
    beside: BesideOriginal,
    limits: LimitsMs,
    *,
    least_used: float = USED,
    stop_at_original: bool = False,
) -> Measured:
    """Measure proposals until the best candidate inside the limits uses `least_used` of one of them.

    It ends after `ROUNDS` in any case. The predicted limits are `limits` at first; for the next round they
    are corrected by the tables' errors, so that a network at the predicted limit just meets the real one. The
    errors are those at the best candidate inside the limits, if there is one, else at most of the others.
    With `stop_at_original`, nothing else is measured once the original is found to be within the limits.
    """
    timed: dict[Widths, Timed] = {}
    found: Measured | None = None
    note, raised, best = "", False, None
    for number in range(ROUNDS):
        try:
            proposed = proposer.propose(limits, number)
        except BudgetError:
            if found is None:
                raise
            break  # none is as fast as the measurements ask for
        if best is not None:
            above = beside.share_of(best.candidate, limits)
            proposed = [own for own in proposed if beside.share_of(own, limits) > above]
        batch = [own for own in proposer.chosen(proposed) if own.widths not in timed]
        if not batch:
            if raised or best is None:
                break
            # The tables are right for what was measured, but may still be wrong for a larger network.
            limits, raised = beside.raised(limits, USED), True
            continue
        with working("measuring the best candidates beside the original"):
            new, originals = beside(batch)
        timed |= {own.candidate.widths: own for own in new}
        ranked = proposer.ranked([own.candidate for own in timed.values()])
        in_order = tuple(timed[candidate.widths] for candidate in ranked)
        found = Measured(in_order, beside.asked(originals), note, tuple(originals))
        if stop_at_original and beside.inside(originals):
            break
        best = next(iter(found.inside), None)
        if best is not None and best.used >= least_used:
            break
        # Candidates are predicted near a limit, so their measurements show how far the tables are off there.
        off = _errors(beside, new, limits)
        note = _correction(beside, off) or note
        errors = off if best is None else _errors(beside, [best], limits)
        limits = tuple(ms / own for ms, own in zip(limits, errors, strict=True))
    assert found is not None
    return found


def _errors(beside: BesideOriginal, new: Sequence[Timed], limits: LimitsMs) -> tuple[float, ...]:
    """For each device, the median ratio of measured latency (in the limit's statistic) to the table's.

    It is 1 where nothing was measured.
    """
    found = []
    for number, limit in enumerate(limits):
        ratios = sorted(own.shares[number] * limit / beside.predicted(own.candidate)[number] for own in new)
        found.append(ratios[len(ratios) // 2] or 1.0)
    return tuple(found)


def _correction(beside: BesideOriginal, errors: Sequence[float]) -> str:
    """The report of the tables' errors; empty if they are small."""
    parts = []
    names = ["", *(own.device for own in beside.further)]
    for name, budget, error in zip(names, beside.budgets, errors, strict=True):
        if abs(1 / error - 1) <= NOTED:
            continue
        where = f" on {name}" if name else ""
        if budget.p90:
            parts.append(
                f"the 90th percentiles{where} were {error - 1:+.1%} off the table's predictions: corrected"
            )
        else:
            off = f"{1 / error - 1:+.1%} off, which was corrected"
            parts.append(f"at this budget the table's predictions{where} were {off}")
    return "; ".join(parts)


def too_slow(measured: Measured, devices: Sequence[str] = ()) -> BudgetError:
    """The error if no measured network is inside the limits; `devices` are the names of several."""
    closest = min(measured.timed, key=lambda own: own.used)
    names = [f" on {device}" for device in devices] or [""]
    asked = " and ".join(f"{own}{name}" for own, name in zip(measured.budgets, names, strict=True))
    limit = f"limit{names[closest.shares.index(closest.used)]}"
    return BudgetError(
        f"none of the {len(measured.timed)} best candidates, measured beside the original network, is within "
        f"the {asked}; the closest exceeds the {limit} by {closest.used - 1:.1%}. The machine may be busy: "
        "search again, or measure the table again with `bcnet build-lut --again`"
    )
