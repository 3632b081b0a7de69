"""Stage 3 without a supernet. In: scores on the trained network, a table, a budget. Out: the best widths.

Each method proposes networks that should just fit the budget; all are scored as whole networks, the best are
measured beside the original, and what the table predicted wrongly moves the next round's limit.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from bcnet.allocation.limits import Limits
from bcnet.allocation.problem import AllocationProblem
from bcnet.errors import BudgetError
from bcnet.latency_tables.failed import SLOWEST_MS
from bcnet.latency_tables.model import LatencyModel
from bcnet.pipeline.alternating import MeasureOf
from bcnet.pipeline.beside_original import BesideOriginal, LimitsMs, Timed
from bcnet.pipeline.configured_methods import ROUNDING, called, check_within, listed, settings_for
from bcnet.pipeline.measured import Measured, measured_until_used, too_slow
from bcnet.pipeline.pruned import PrunedNetworks
from bcnet.pipeline.trained_scores import TrainedScores
from bcnet.plain import counted, loss_text, milliseconds
from bcnet.progress import say, working
from bcnet.registry import Method
from bcnet.space.width_space import Widths
from bcnet.training.shared_work import each
from bcnet.width_search.budget import Budget
from bcnet.width_search.constraints import Bound
from bcnet.width_search.device_limit import device_names, with_limits
from bcnet.width_search.evolution import Candidate
from bcnet.width_search.scorer import Score, best_first, loss_name, loss_of

T = TypeVar("T")
ORIGINAL = "original"
UNIFORM = "uniform"  # the method that any other has to beat
# For a front: methods that take seconds, and the number of latencies that they are asked for.
OF_FRONT, LATENCIES = (UNIFORM, "latency-greedy", "latency-milp"), 8


@dataclass
class Proposals:
    """Candidates of all rounds: who proposed them, their scores, and what was measured.

    `pruned` are the networks of a method that trains, which has to be among the methods for them.
    """

    methods: tuple[Method, ...]
    scores: TrainedScores
    latency: LatencyModel
    bounds: Sequence[Bound]
    pruned: PrunedNetworks | None = None
    found: dict[Widths, Candidate] = field(default_factory=dict)
    origin: dict[Widths, str] = field(default_factory=dict)

    def propose(self, limit_ms: float, number: int) -> list[Candidate]:
        """Networks of at most `limit_ms` by the table, scored. Raises BudgetError if there are none."""
        infeasible: BudgetError | None = None
        proposed: dict[Widths, Method] = {}
        for method in self.methods:
            try:
                for widths in self._widths(method, limit_ms):
                    proposed.setdefault(widths, method)
            except BudgetError as reason:
                infeasible = infeasible or reason
        if not proposed:
            raise infeasible or BudgetError(f"no network of {milliseconds(limit_ms)} ms was found")
        with working(f"scoring {counted(len(proposed), 'network')} of up to {milliseconds(limit_ms)} ms"):
            for widths, method in proposed.items():
                self.origin.setdefault(widths, method.name)
            new = [widths for widths in proposed if widths not in self.found]
            for widths, score in zip(new, self._scores(new), strict=True):
                self.found[widths] = Candidate(widths, float(self.latency(widths)), score, number)
        return [self.found[widths] for widths in proposed]

    def _widths(self, method: Method, limit_ms: float) -> list[Widths]:
        if method.trains:
            assert self.pruned is not None
            limits = Limits(self.scores.space, self.latency, limit_ms, self.bounds)
            return [self.pruned.within(limits).widths]
        scores = self.scores
        asked = AllocationProblem(
            scores.space,
            self.latency,
            limit_ms,
            self.bounds,
            scores.importances,
            lambda: scores.tables,
            scores.loss_of,
            scores.dropped,
            scores.importance_of,
            settings_for(method, scores.problem.config.search),
        )

        def checked(found: Any) -> list[Widths]:
            networks = [self._choices(own) for own in listed(method, found)]
            for own in networks:
                check_within(method, own, asked.limits)
            return networks

        return list(called(method, asked, checked))

    def _choices(self, widths: Iterable[int]) -> Widths:
        """Widths that a method proposes. Raises ValueError where one is not among its group's choices."""
        space = self.scores.space
        proposed = space.check(widths)
        for group, width in zip(space.groups, proposed, strict=True):
            if width not in group.choices:
                raise ValueError(f"width {width} is not among the choices of group '{group.name}'")
        return proposed

    def _scores(self, networks: Sequence[Widths]) -> Iterable[Score]:
        """Those of the original's channels, or of the weights of a method that trains."""
        if self.pruned is not None:
            return [self.pruned.found[widths].score for widths in networks]
        return each(self.scores, networks)


def propose_front(proposals: Proposals) -> None:
    """Score networks for latencies from the lowest possible to the whole network's, in equal ratios."""
    space, latency = proposals.scores.space, proposals.latency
    lowest = float(latency(Limits(space, latency, math.inf, proposals.bounds).fastest()))
    highest = max(lowest, min(float(latency(space.largest())), SLOWEST_MS))
    quick = replace(proposals, methods=tuple(own for own in proposals.methods if own.name in OF_FRONT))
    for number, limit_ms in enumerate(np.geomspace(lowest, highest, LATENCIES)):
        quick.propose(float(limit_ms) * (1 + ROUNDING), number)


@dataclass
class Best:
    """The proposals to be measured: those of the lowest losses, and the best of each other method.

    How networks that were cut at once compare says little of how they do when channels are removed in rounds.
    """

    proposals: Proposals
    most: int

    def propose(self, limits: LimitsMs, number: int) -> list[Candidate]:
        """What all methods propose for these limits."""
        self.proposals.bounds = with_limits(self.proposals.bounds, limits[1:])
        return self.proposals.propose(limits[0], number)

    def chosen(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The best `most` proposals, and the best of each other method."""
        ranked = self.ranked(candidates)
        return with_every_method(ranked, self.most, lambda own: self.proposals.origin[own.widths])

    def ranked(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Candidates, the lowest loss first."""
        return sorted(candidates, key=lambda c: (*best_first(c.score), c.predicted_ms))


def best_measured(
    proposals: Proposals, budget: Budget, original: Widths, measure_of: MeasureOf, most: int
) -> Measured:
    """Measure the best proposals, `most` a round, until the limit is used.

    Where the original is within the limit and none is wider, nothing is removed. Raises BudgetError where no
    network fits.
    """
    predicted, keep = float(proposals.latency(original)), original == proposals.scores.space.largest()
    beside = BesideOriginal(measure_of, original, budget)
    limits = budget.asked_ms(predicted), *(own.limit for own in beside.further)
    measured = measured_until_used(Best(proposals, most), beside, limits, stop_at_original=keep)
    if keep and beside.inside(measured.originals):
        whole = beside.timed(
            Candidate(original, predicted, proposals.scores(original), 0), measured.originals
        )
        proposals.found[original], proposals.origin[original] = whole.candidate, ORIGINAL
        kept = "the original network is within the budget: nothing is removed"
        return replace(measured, timed=(whole,), note=kept)
    if not measured.inside:
        raise too_slow(measured, device_names(proposals.latency, budget.bounds))
    return measured


def with_every_method(ranked: Sequence[T], count: int, method_of: Callable[[T], str]) -> list[T]:
    """The first `count`, and the first of each method that is not among them."""
    found = list(ranked[:count])
    for own in ranked[count:]:
        if method_of(own) not in map(method_of, found):
            found.append(own)
    return found


def report_losses(proposals: Proposals) -> None:
    """Say what each method's best network scored before any fine-tuning."""
    best: dict[str, float] = {}
    for widths, candidate in proposals.found.items():
        method = proposals.origin[widths]
        best[method] = min(best.get(method, float("inf")), loss_of(candidate.score))
    ordered = sorted(best.items(), key=lambda own: own[1])
    scores = ", ".join(f"{method} {loss_text(loss)}" for method, loss in ordered)
    measure = loss_name(proposals.scores.problem.task)
    say(f"{measure}, before fine-tuning, the best network of each method: {scores}")


def report_winner(proposals: Proposals, winner: Timed) -> None:
    """Say what won."""
    method, used = proposals.origin[winner.candidate.widths], f"{winner.used:.1%} of the latency limit"
    say(f"{method} wins: {winner.candidate.widths}, {used}")
