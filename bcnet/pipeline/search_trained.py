"""Stage 3 without a supernet. In: scores on the trained network, a table, a budget. Out: the best widths.

Each method proposes networks that should just fit the budget; all are scored as whole networks, the best are
measured beside the original, and what the table predicted wrongly moves the next round's limit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from bcnet.errors import BudgetError
from bcnet.latency_tables.model import LatencyModel
from bcnet.latency_tables.noise import QUIETER
from bcnet.latency_tables.rows import LatencyStat
from bcnet.methods.allocators import ALLOCATORS, UNIFORM
from bcnet.methods.problem import Problem
from bcnet.pipeline.pruned import PrunedNetworks
from bcnet.pipeline.repeated import Repeated
from bcnet.pipeline.route import GROUP_FISHER
from bcnet.pipeline.search_inputs import MeasureOf
from bcnet.pipeline.trained_scores import TrainedScores
from bcnet.pipeline.tuning import Tuning
from bcnet.plain import loss_text
from bcnet.progress import say, working
from bcnet.supernet.costs import Bound
from bcnet.supernet.evolution import Candidate
from bcnet.supernet.score import Score, best_first, loss_of
from bcnet.supernet.space import Widths

ORIGINAL = "original"
ROUNDS = 4  # of proposing and measuring
USED = 0.97  # of the limit: a winner that is faster is followed by larger candidates
SHARE_MARGIN = 0.01  # of a budget that is a share: what alternating measurements differ by
ALTERNATIONS, MOST = 3, 9  # measurements of each network of a round, alternating with the original's
AGREE = 0.03  # the two fastest measurements of a network may differ by so much


@dataclass(frozen=True)
class Target:
    """The latency to reach: so many ms, or a share of the original's measured latency; less a margin.

    Of a share the margin is `SHARE_MARGIN` at most: a slow machine slows down both.
    """

    budget_ms: float
    share: float | None
    margin: float

    def limit_ms(self, original_ms: float) -> float:
        """What measured networks must not exceed where the original takes `original_ms`."""
        if self.share is not None and self.share >= 1:
            return self.asked_ms(original_ms)  # the original itself fits
        margin = self.margin if self.share is None else min(self.margin, SHARE_MARGIN)
        return self.asked_ms(original_ms) * (1 - margin)

    def asked_ms(self, original_ms: float) -> float:
        """The budget itself."""
        return self.budget_ms if self.share is None else self.share * original_ms


@dataclass
class Proposals:
    """Candidates of all rounds: who proposed them, their scores, and what was measured.

    `pruned` are the networks of `group-fisher`, which has to be among the methods for them.
    """

    methods: tuple[str, ...]
    scores: TrainedScores
    latency: LatencyModel
    bounds: Sequence[Bound]
    pruned: PrunedNetworks | None = None
    found: dict[Widths, Candidate] = field(default_factory=dict)
    origin: dict[Widths, str] = field(default_factory=dict)

    def propose(self, limit_ms: float, number: int) -> list[Candidate]:
        """Networks of at most `limit_ms` by the table, scored. Raises BudgetError if there are none."""
        infeasible: BudgetError | None = None
        proposed: dict[Widths, str] = {}
        for method in self.methods:
            try:
                for widths in self._widths(method, limit_ms):
                    proposed.setdefault(widths, method)
            except BudgetError as reason:
                infeasible = infeasible or reason
        if not proposed:
            raise infeasible or BudgetError(f"no network of {limit_ms:.4g} ms was found")
        with working(f"scoring {len(proposed)} networks of up to {limit_ms:.4g} ms"):
            for widths, method in proposed.items():
                self.origin.setdefault(widths, method)
                if widths not in self.found:
                    predicted = float(self.latency(widths))
                    score = self._score(method, widths)
                    self.found[widths] = Candidate(widths, predicted, score, number)
        return [self.found[widths] for widths in proposed]

    def _widths(self, method: str, limit_ms: float) -> list[Widths]:
        scores = self.scores
        problem = Problem(
            scores.space,
            self.latency,
            limit_ms,
            self.bounds,
            scores.importances,
            lambda: scores.tables,
            scores.loss_of,
            scores.dropped,
            scores.project.config.search.adjust_by,
        )
        if method == GROUP_FISHER:
            assert self.pruned is not None
            return [self.pruned.within(problem.limits).widths]
        return ALLOCATORS[method](problem)

    def _score(self, method: str, widths: Widths) -> Score:
        """That of the original's channels, or of the method's own weights."""
        if method == GROUP_FISHER and self.pruned is not None:
            return self.pruned.found[widths].score
        return self.scores(widths)


@dataclass(frozen=True)
class Timed:
    """A candidate that was measured, and its latency as a share of the limit at that time."""

    candidate: Candidate
    used: float


@dataclass(frozen=True)
class Measured:
    """All candidates that were measured; the budget in ms, as measured beside the last of them; a note."""

    timed: tuple[Timed, ...]
    budget_ms: float
    note: str

    @property
    def inside(self) -> list[Timed]:
        """Those within the limit, the lowest loss first."""
        fitting = [own for own in self.timed if own.used <= 1]
        return sorted(fitting, key=lambda own: (*best_first(own.candidate.score), own.candidate.predicted_ms))


def best_measured(
    proposals: Proposals, target: Target, original: Widths, measure_of: MeasureOf, most: int
) -> Measured:
    """Measure the best proposals, `most` a round, until the limit is used.

    Raises BudgetError where no network fits.
    """
    full_predicted = float(proposals.latency(original))
    predicted_limit = target.asked_ms(full_predicted)
    timed: dict[Widths, Timed] = {}
    budget_ms, note = target.asked_ms(full_predicted), ""
    for number in range(ROUNDS):
        try:
            proposed = proposals.propose(predicted_limit, number)
        except BudgetError:
            if not timed:
                raise
            break  # none is as fast as the measurements ask for
        batch = [c for c in _best_and_uniform(proposals, proposed, most) if c.widths not in timed]
        if not batch:
            break
        with working("measuring the best candidates beside the original"):
            stats = alternating(measure_of, [original, *(c.widths for c in batch)])
        limit = target.limit_ms(stats[original].median_ms)
        if stats[original].median_ms <= limit and original == proposals.scores.space.largest():
            whole = Candidate(original, full_predicted, proposals.scores(original), number, stats[original])
            proposals.found[original], proposals.origin[original] = whole, ORIGINAL
            used = stats[original].median_ms / limit
            kept = "the original network is within the budget: nothing is removed"
            return Measured((Timed(whole, used),), target.asked_ms(stats[original].median_ms), kept)
        budget_ms = target.asked_ms(stats[original].median_ms)
        for candidate in batch:
            stat = stats[candidate.widths]
            timed[candidate.widths] = Timed(replace(candidate, measured=stat), stat.median_ms / limit)
        inside = Measured(tuple(timed.values()), budget_ms, note).inside
        if inside and inside[0].used >= USED:
            break
        # The best few are near the limit by the table: their measurements show how far it is off.
        off = sorted(timed[c.widths].used * predicted_limit / c.predicted_ms for c in batch)[len(batch) // 2]
        predicted_limit /= off
        note = f"at this budget the table's predictions were {1 / off - 1:+.1%} off, which was corrected"
    found = Measured(tuple(timed.values()), budget_ms, note)
    if not found.inside:
        closest = min(own.used for own in found.timed)
        raise BudgetError(
            f"none of the {len(timed)} best candidates, measured beside the original network, is within the "
            f"budget of {budget_ms:.4g} ms; the closest exceeds the limit by {closest - 1:.1%}. The machine "
            "may be busy: search again, or measure the table again with `bcnet build-lut --again`"
        )
    return found


def _best_and_uniform(proposals: Proposals, proposed: Sequence[Candidate], most: int) -> list[Candidate]:
    """The proposals of the lowest losses; the uniform one is always among them, as what has to be beaten."""
    ranked = sorted(proposed, key=lambda c: best_first(c.score))
    uniform = [c for c in ranked[most:] if proposals.origin[c.widths] == UNIFORM]
    return [*ranked[:most], *uniform]


def finalists(proposals: Proposals, measured: Measured, count: int) -> list[Timed]:
    """The candidates that are fine-tuned briefly: the best ones, and the best uniform one."""
    inside = measured.inside
    uniform = [own for own in inside[count:] if proposals.origin[own.candidate.widths] == UNIFORM]
    return [*inside[:count], *uniform[:1]]


def tried(proposals: Proposals, entries: Sequence[Timed], tuning: Tuning, epochs: int) -> Timed:
    """The finalist of the lowest validation loss after so many epochs of fine-tuning."""
    scores = proposals.scores
    found: dict[Widths, Score] = {}
    for number, own in enumerate(entries, 1):
        widths = own.candidate.widths

        def score(widths: Widths = widths, number: int = number) -> Score:
            return tuning.scored(tuning(widths, f"trying candidate {number} of {len(entries)}", epochs))

        found[widths] = scores.kept("fine-tuned", epochs, widths, score)
    ordered = sorted(entries, key=lambda own: best_first(found[own.candidate.widths]))
    shown = ", ".join(
        f"{_described(proposals, own)} {loss_text(loss_of(found[own.candidate.widths]))}" for own in ordered
    )
    say(f"validation loss after {epochs} {'epoch' if epochs == 1 else 'epochs'} of fine-tuning: {shown}")
    return ordered[0]


def _named(proposals: Proposals, own: Timed) -> str:
    return proposals.origin[own.candidate.widths]


def _described(proposals: Proposals, own: Timed) -> str:
    """What distinguishes a candidate from others of its method: its predicted latency and its size."""
    space, latency = proposals.scores.space, proposals.latency
    share = own.candidate.predicted_ms / float(latency(space.original()))
    size = f"{space.params(own.candidate.widths):,} parameters"
    return f"{_named(proposals, own)} ({share:.1%} of the latency, {size})"


def alternating(measure_of: MeasureOf, networks: Sequence[Widths]) -> dict[Widths, LatencyStat]:
    """The fastest of a few measurements of each network, alternating: other work on the machine only adds.

    They go on until the two fastest of every network agree, or for `MOST` rounds.
    """
    found: dict[Widths, list[LatencyStat]] = {widths: [] for widths in networks}
    for number in range(MOST):
        for widths in reversed(found) if number % 2 else found:
            found[widths].append(measure_of(widths))
        if number + 1 >= ALTERNATIONS and all(map(_agree, found.values())):
            break
    else:
        say(
            f"the machine is busy: after {MOST} measurements, the two fastest of a network still differ by "
            f"more than {AGREE:.0%}; {QUIETER}"
        )
    return {widths: Repeated(tuple(stats)).fastest for widths, stats in found.items()}


def _agree(stats: Sequence[LatencyStat]) -> bool:
    first, second = sorted(stat.median_ms for stat in stats)[:2]
    return second <= first * (1 + AGREE)


def report_losses(proposals: Proposals) -> None:
    """Say what each method's best network scored before any fine-tuning."""
    best: dict[str, float] = {}
    for widths, candidate in proposals.found.items():
        method = proposals.origin[widths]
        best[method] = min(best.get(method, float("inf")), loss_of(candidate.score))
    ordered = sorted(best.items(), key=lambda own: own[1])
    scores = ", ".join(f"{method} {loss_text(loss)}" for method, loss in ordered)
    say(f"validation loss before fine-tuning, the best network of each method: {scores}")


def report_winner(proposals: Proposals, winner: Timed) -> None:
    """Say what won."""
    method, used = _named(proposals, winner), f"{winner.used:.1%} of the latency limit"
    say(f"{method} wins: {winner.candidate.widths}, {used}")
