"""Evolutionary search within a latency budget and other bounds.

In: a space, functions for latency and score. Out: feasible candidates. Infeasible widths are repaired before
they are scored, nothing is scored twice, and every loop terminates. Each generation has its own random
generator, so that a continued search proposes the same networks as an uninterrupted one.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from bcnet.events import emit
from bcnet.latency_tables.failed import FAILED_MS, SLOWEST_MS, runs
from bcnet.latency_tables.rows import LatencyStat
from bcnet.plain import milliseconds
from bcnet.progress import progress_bar
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.training.shared_work import each
from bcnet.width_search.budget import Budget
from bcnet.width_search.constraints import Bound
from bcnet.width_search.exchange import exchanged_at_random
from bcnet.width_search.nsga2 import crowding, fronts
from bcnet.width_search.scorer import Score
from bcnet.width_search.surrogate import FITTED, Surrogate, places_of, with_losses

LatencyOf = Callable[[Widths], float]
ScoreOf = Callable[[Widths], Score | float]
Prior = Sequence[np.ndarray]
Acquisition = Callable[[Sequence[Widths]], np.ndarray]
ATTEMPTS = 20  # maximum number of draws per wanted candidate, before a generation stays smaller
CHILDREN = 8  # number of children of which one is scored (decision 11)


@dataclass(frozen=True)
class SearchSettings:
    """The objective and effort of a search. At most one of a latency budget and `min_accuracy` is given.

    With `fitness` "soft", networks over the budget are scored, too, and all are ranked by
    `accuracy * (latency / budget) ** latency_exponent` (MnasNet, CVPR 2019, equation 2), with
    `inside_exponent` within the budget if it is given (0 gives the hard search); with `over_budget` a slower
    network may win. With `pareto`, NSGA-II searches the whole front of accuracy and latency; a budget only
    selects the winner. With `smooth`, candidates are ranked, and children selected, by denoised scores, which
    a surrogate estimates from all scores (`Surrogate`); otherwise by their own scores. `by_loss` is the
    weight of the loss's rank in a score (`with_losses`), which is smaller for custom tasks (`by_loss_of`).
    `exchange` is the fraction of mutations that move channels between groups (`exchanged_at_random`). With
    `prior_mutation`, mutations draw widths from the priors, as the first generation does (BCNetV2, PSE-Net).
    """

    budget: Budget = field(default_factory=Budget)
    min_accuracy: float | None = None
    population: int = 16
    generations: int = 4
    mutation: float = 0.15
    measured: int = 5
    seed: int = 0
    fitness: Literal["hard", "soft"] = "hard"
    latency_exponent: float = -0.07
    inside_exponent: float | None = None
    over_budget: bool = False
    pareto: bool = False
    smooth: bool = True
    by_loss: float = FITTED.by_loss
    exchange: float = 0.0
    prior_mutation: bool = False

    @property
    def by_accuracy_inside(self) -> bool:
        """Whether only accuracy within the budget counts, so that slower networks need not be scored."""
        return self.fitness == "hard" or (self.inside_exponent == 0 and not self.over_budget)

    @property
    def scored_ms(self) -> float | None:
        """The latency in ms above which nothing is scored; None: no limit."""
        return self.budget.target_ms if self.by_accuracy_inside and not self.pareto else None

    @property
    def fills_budget(self) -> bool:
        """Whether candidates are widened up to the budget or a bound, where the most accurate ones are."""
        return self.by_accuracy_inside and not self.pareto and self.min_accuracy is None


@dataclass(frozen=True)
class Candidate:
    """Scored widths: predicted latency in ms, accuracy and loss in the supernet, generation.

    `expected` is the denoised accuracy of a candidate on the front, `further` its measured latencies on
    further devices.
    """

    widths: Widths
    predicted_ms: float
    score: Score
    generation: int
    measured: LatencyStat | None = None
    expected: float | None = None
    further: Mapping[str, LatencyStat] = field(default_factory=dict)


class Evolution:
    """Generations of candidates within the budget and the bounds."""

    def __init__(
        self,
        space: WidthSpace,
        latency_of: LatencyOf,
        score_of: ScoreOf,
        settings: SearchSettings,
    ) -> None:
        self.space = space
        self._choices = [group.choices for group in space.groups]
        self.latency_of = latency_of
        self.score_of = score_of
        self.settings = settings
        self.fastest: Widths | None = None  # the fastest feasible widths, at which every repair can end
        self._scores: dict[Widths, Score] = {}
        self._surrogate: Surrogate | None = None
        self._denoised: dict[Widths, float] = {}  # of the networks on which the surrogate was fitted

    def run(
        self,
        priors: Sequence[Prior],
        resume: Sequence[Candidate],
        on_generation: Callable[[Sequence[Candidate]], None] | None,
    ) -> tuple[Candidate, ...]:
        """All candidates. The first generation is drawn from the priors in turn; without any, uniformly."""
        found = {candidate.widths: candidate for candidate in resume}
        self.know(resume)
        first = 1 + max((candidate.generation for candidate in resume), default=-1)
        total = (self.settings.generations + 1 - first) * self.settings.population
        with progress_bar("searching", max(total, 0)) as advance:
            for generation in range(first, self.settings.generations + 1):
                # One generator per generation, so that a continued search draws the same networks.
                rng = np.random.default_rng((self.settings.seed, generation))
                fresh = self._propose(generation, rng, tuple(found.values()), priors)
                if not fresh:
                    break  # the space is exhausted
                for widths, score in zip(fresh, each(self.score_of, fresh), strict=True):
                    found[widths] = self._candidate(widths, score, generation)
                    best = max(found.values(), key=lambda c: c.score)
                    advance(f"best {best.score.accuracy:.4f} at {milliseconds(best.predicted_ms)} ms")
                emit(
                    "generation",
                    task="searching",
                    step=generation,
                    steps=self.settings.generations,
                    candidates=len(found),
                    best_accuracy=best.score.accuracy,
                    best_loss=best.score.loss,
                    best_predicted_ms=best.predicted_ms,
                )
                if on_generation is not None:
                    on_generation(tuple(found.values()))
        return tuple(found.values())

    def scored(self, widths: Widths, generation: int) -> Candidate:
        return self._candidate(widths, self.score_of(widths), generation)

    def _candidate(self, widths: Widths, value: Score | float, generation: int) -> Candidate:
        result = value if isinstance(value, Score) else Score(float(value))
        self._scores[widths] = result
        return Candidate(widths, float(self.latency_of(widths)), result, generation)

    def know(self, candidates: Sequence[Candidate]) -> None:
        """Add the scores of an earlier search to those on which the surrogate is fitted."""
        self._scores |= {candidate.widths: candidate.score for candidate in candidates}

    def ranked(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The candidates, best first: by fitness, or by latency among those that are accurate enough."""
        wanted = self.settings.min_accuracy
        if wanted is None:
            return sorted(
                candidates, key=lambda c: (self._fitness(c), c.score, -c.predicted_ms), reverse=True
            )
        good = [c for c in candidates if c.score.accuracy >= wanted]
        rest = [c for c in candidates if c.score.accuracy < wanted]
        return sorted(good, key=lambda c: c.predicted_ms) + sorted(rest, key=lambda c: c.score, reverse=True)

    def expected(self, candidate: Candidate) -> float:
        """The candidate's denoised accuracy in the supernet."""
        self._fit_surrogate()
        return self._denoised.get(candidate.widths, candidate.score.accuracy)

    def _fit_surrogate(self) -> None:
        if not self.settings.smooth or len(self._denoised) == len(self._scores):
            return
        places = places_of(list(self._scores), self._choices)
        accuracies, losses = np.array([(s.accuracy, s.loss) for s in self._scores.values()]).T
        self._surrogate = Surrogate.of(places, with_losses(accuracies, losses, self.settings.by_loss))
        denoised = accuracies if self._surrogate is None else self._surrogate.at(places)
        self._denoised = dict(zip(self._scores, denoised.tolist(), strict=True))

    def _fitness(self, candidate: Candidate) -> float:
        return self._fitness_of(self.expected(candidate), candidate.predicted_ms)

    def _fitness_of(self, value: float, latency_ms: float) -> float:
        settings = self.settings
        target_ms = settings.budget.target_ms
        if settings.fitness == "hard" or target_ms is None:
            return value
        relative, exponent = latency_ms / target_ms, settings.latency_exponent
        if relative <= 1 and settings.inside_exponent is not None:
            exponent = settings.inside_exponent
        factor = relative**exponent
        # A custom metric may be negative.
        return float(value * factor if value > 0 else value / factor)

    def front(self, candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
        """The Pareto front of latency and denoised accuracy, fastest first."""
        kept: list[Candidate] = []
        value = {c.widths: (self.expected(c), c.score) for c in candidates}
        for candidate in sorted(candidates, key=lambda c: (c.predicted_ms, -value[c.widths][0])):
            if not kept or value[candidate.widths] > value[kept[-1].widths]:
                kept.append(candidate)
        return tuple(replace(candidate, expected=value[candidate.widths][0]) for candidate in kept)

    def _parents(self, candidates: Sequence[Candidate]) -> tuple[Sequence[Candidate], np.ndarray]:
        """The parents, best first, and their ranks for the tournament (higher wins)."""
        count = self.settings.population
        if not self.settings.pareto:
            best = self.ranked(candidates)[: max(2, count // 2)]
            return best, np.zeros(len(best))
        if not candidates:
            return (), np.zeros(0)
        costs = np.array([(c.predicted_ms, -self.expected(c)) for c in candidates])
        front = fronts(costs[:, 0], costs[:, 1])
        order = np.lexsort((-crowding(costs, front), front))[: max(2, count)]
        return [candidates[index] for index in order], -np.arange(len(order), dtype=float)

    def _propose(
        self, generation: int, rng: np.random.Generator, found: Sequence[Candidate], priors: Sequence[Prior]
    ) -> list[Widths]:
        """The next generation: of each `CHILDREN` children, the best according to the surrogate.

        Surrogate-assisted preselection (Jin, "Surrogate-assisted evolutionary computation", 2011, section 2).
        """
        size, acquisition = self.settings.population, self._acquisition(found)
        seen, fresh = {candidate.widths for candidate in found}, list[Widths]()
        children, rejected = dict[Widths, None](), dict[Widths, None]()
        for widths in self._children(generation, rng, found, priors):
            if len(fresh) == size:
                break
            if widths in seen:
                continue
            children[widths] = None
            if len(children) == (CHILDREN if acquisition else 1):
                best, *others = _by(acquisition, children)
                fresh.append(best)
                seen.add(best)
                rejected |= dict.fromkeys(others)
                children = {}
        # If too few unseen networks are left, rejected ones complete the generation.
        left = [widths for widths in children | rejected if widths not in seen]
        return [*fresh, *_by(acquisition, left)[: size - len(fresh)]]

    def _children(
        self, generation: int, rng: np.random.Generator, found: Sequence[Candidate], priors: Sequence[Prior]
    ) -> Iterator[Widths]:
        """Feasible widths, possibly repeated: random ones in the first generation, then children."""
        settings = self.settings
        parents, ranks = self._parents(found)
        drawn_from = priors if settings.prior_mutation else ()

        def parent() -> Candidate:
            """The better of two random parents (binary tournament; Deb et al., 2002)."""
            a, b = (int(place) for place in rng.integers(len(parents), size=2))
            return parents[a if ranks[a] >= ranks[b] else b]

        for attempt in range(settings.population * (ATTEMPTS + CHILDREN)):
            if generation == 0 or len(parents) < 2:
                widths = self._sample(rng, priors, attempt)
            elif rng.random() < 0.5:
                widths = self._mutate(parent().widths, rng, drawn_from, attempt)
            else:
                crossed = self._cross(parent().widths, parent().widths, rng)
                widths = self._mutate(crossed, rng, drawn_from, attempt)
            yield self.repaired(widths, rng, settings.scored_ms, fill=settings.fills_budget)

    def _acquisition(self, found: Sequence[Candidate]) -> Acquisition | None:
        """The surrogate's acquisition function, higher is better; None if there is no surrogate yet."""
        self._fit_surrogate()
        surrogate, wanted = self._surrogate, self.settings.min_accuracy
        if surrogate is None:
            return None
        front = self.front(found) if self.settings.pareto else ()
        steps = np.array([candidate.predicted_ms for candidate in front])
        reached = np.array([candidate.expected for candidate in front], dtype=float)

        def acquisition(widths: Sequence[Widths]) -> np.ndarray:
            # A wanted accuracy is compared with the accuracy in the supernet, without shrinkage.
            values = surrogate.at(places_of(widths, self._choices), shrunk=wanted is None)
            latencies = np.array([self.latency_of(own) for own in widths])
            if front:  # the improvement over the front
                below = np.searchsorted(steps, latencies, side="right") - 1
                return np.asarray(values - reached[np.maximum(below, 0)])
            if wanted is not None:  # below it, any network is worse than one that runs
                return np.where(values >= wanted, -latencies, values - FAILED_MS)
            return np.array([self._fitness_of(*own) for own in zip(values, latencies, strict=True)])

        return acquisition

    def _sample(self, rng: np.random.Generator, priors: Sequence[Prior], number: int) -> Widths:
        if self.settings.pareto and number < 2 and self.fastest is not None:
            return self.space.largest() if number else self.fastest  # the ends of the front
        return self._drawn(rng, priors, number)

    def _drawn(self, rng: np.random.Generator, priors: Sequence[Prior], number: int) -> Widths:
        """Widths from one of the priors, which are taken in turn; without any, uniformly."""
        if not priors:
            return self.space.random(rng)
        return Widths(
            group.choices[rng.choice(len(group.choices), p=p)]
            for group, p in zip(self.space.groups, priors[number % len(priors)], strict=True)
        )

    def _mutate(
        self, widths: Widths, rng: np.random.Generator, priors: Sequence[Prior], number: int
    ) -> Widths:
        """Some of the widths drawn again; without priors, each choice with the same probability."""
        surrogate = self._surrogate
        if surrogate is not None and self.settings.exchange and rng.random() < self.settings.exchange:

            def denoised(networks: Sequence[Widths]) -> np.ndarray:
                return surrogate.at(places_of(networks, self._choices))

            moved = exchanged_at_random(self._choices, widths, self.latency_of, denoised, rng)
            if moved is not None:
                return moved
        redrawn = rng.random(len(widths)) < self.settings.mutation
        redrawn[rng.integers(len(widths))] = True
        drawn = self._drawn(rng, priors, number)
        return Widths(new if again else old for old, new, again in zip(widths, drawn, redrawn, strict=True))

    def _cross(self, a: Widths, b: Widths, rng: np.random.Generator) -> Widths:
        return Widths(x if first else y for x, y, first in zip(a, b, rng.random(len(a)) < 0.5, strict=True))

    def repaired(
        self, widths: Widths, rng: np.random.Generator, limit_ms: float | None, *, fill: bool = True
    ) -> Widths:
        """Repair widths to fit the bounds and a limit in ms: random groups step towards the fastest network.

        Then, with `fill` and a limit or bounds, each group is widened by one step if that fits. Without a
        limit, networks that the runtime cannot run are repaired to one that it can. It ends after at most as
        many steps as there are choices in all. The limit must be at least the latency of the fastest network.
        """
        limit = SLOWEST_MS if limit_ms is None else limit_ms
        fill = fill and (limit_ms is not None or bool(self.settings.budget.bounds))
        if self.fastest is None or (not fill and self.fits(widths, limit)):
            return widths
        index = [g.choices.index(width) for g, width in zip(self.space.groups, widths, strict=True)]
        goal = [g.choices.index(width) for g, width in zip(self.space.groups, self.fastest, strict=True)]
        while not self.fits(self._at(index), limit):
            movable = [group for group in range(len(index)) if index[group] != goal[group]]
            group = movable[rng.integers(len(movable))]
            index[group] += 1 if index[group] < goal[group] else -1
        for group in rng.permutation(len(index)) if fill else ():
            if index[group] + 1 < len(self.space.groups[group].choices):
                index[group] += 1
                if not self.fits(self._at(index), limit):
                    index[group] -= 1
        return self._at(index)

    def limit_devices(self, limits_ms: Sequence[float]) -> None:
        """Set the limits of further devices; each is at least the fastest network's latency there."""
        if self.fastest is None or not limits_ms:
            return
        waiting, bounds = iter(limits_ms), list[Bound]()
        for bound in self.settings.budget.bounds:
            if bound.of_device:
                bound = replace(bound, limit=max(next(waiting), bound.cost(self.fastest)))
            bounds.append(bound)
        self.settings = replace(self.settings, budget=replace(self.settings.budget, bounds=tuple(bounds)))

    def fits(self, widths: Widths, limit_ms: float) -> bool:
        """Whether the network is within a latency in ms and all bounds."""
        return self.latency_of(widths) <= limit_ms and self.settings.budget.bounds_hold(widths)

    def _at(self, index: Sequence[int]) -> Widths:
        return Widths(g.choices[i] for g, i in zip(self.space.groups, index, strict=True))


def _by(acquisition: Acquisition | None, widths: Iterable[Widths]) -> list[Widths]:
    """The widths, best first."""
    own = list(widths)
    if acquisition is None or not own:
        return own
    return [own[place] for place in np.argsort(-acquisition(own), kind="stable")]


def as_share(latency_of: LatencyOf, space: WidthSpace, ms: float) -> str:
    """ " (12.3% of the original network's)" for a latency, rounded up; empty if the original does not run."""
    original = latency_of(space.original())
    if not runs(original):
        return ""
    return f" ({math.ceil(1000 * ms / original) / 10:.4g}% of the original network's)"


def fastest(space: WidthSpace, latency_of: LatencyOf, bounds: Sequence[Bound] = ()) -> Widths:
    """The widths with the lowest latency, by coordinate descent from the narrowest widths.

    Narrower is not always faster: an unaligned layer can be slower than a wider one. Only widths within the
    bounds are considered; if none are found within all of them, those that exceed one the least.
    """
    start = space.smallest()

    def held(widths: Widths) -> bool:
        return all(bound.holds(widths) for bound in bounds)

    if not held(start):
        start = _descent(space, start, lambda own: max(bound.cost(own) / bound.limit for bound in bounds))
        if not held(start):
            return start
    return _descent(space, start, latency_of, held)


def _descent(
    space: WidthSpace,
    best: Widths,
    cost_of: LatencyOf,
    held: Callable[[Widths], bool] = lambda _: True,
) -> Widths:
    """The widths with the lowest cost, group by group, among those that `held` accepts, as it does `best`."""
    for _ in range(3):
        before = best
        for group, entry in enumerate(space.groups):
            options = [Widths((*best[:group], width, *best[group + 1 :])) for width in entry.choices]
            best = min(filter(held, options), key=lambda widths: (cost_of(widths), widths))
        if best == before:
            break
    return best
