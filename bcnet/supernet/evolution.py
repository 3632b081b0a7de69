"""Evolution inside a latency budget. In: a space, prices, scores. Out: generations of candidates that fit.

What does not fit is repaired before it is scored, nothing is scored twice, and every loop ends. Each
generation has a random generator of its own, so that a continued search draws what an uninterrupted one
would have drawn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bcnet.latency_tables.rows import FAILED_MS, LatencyStat
from bcnet.progress import progress_bar
from bcnet.supernet.score import Score
from bcnet.supernet.space import Widths, WidthSpace

LatencyOf = Callable[[Widths], float]
ScoreOf = Callable[[Widths], Score | float]
ATTEMPTS = 20  # draws a wanted candidate, before a generation makes do with fewer


@dataclass(frozen=True)
class SearchSettings:
    """What to look for, and how long. Exactly one of `budget_ms` and `min_accuracy` is given.

    `margin` is the share by which networks that are measured stay below the budget: a machine's noise.
    """

    budget_ms: float | None = None
    min_accuracy: float | None = None
    population: int = 16
    generations: int = 4
    mutation: float = 0.15
    measured: int = 5
    margin: float = 0.0
    seed: int = 0

    def limit_ms(self, budget_ms: float) -> float:
        """What a network may be measured at, in ms, to keep the budget when the machine is slower."""
        return budget_ms / (1 + self.margin)


@dataclass(frozen=True)
class Candidate:
    """Scored widths: predicted latency in ms, accuracy and loss in the supernet, when they were found."""

    widths: Widths
    predicted_ms: float
    score: Score
    generation: int
    measured: LatencyStat | None = None


class Evolution:
    """Generations of candidates that all fit the budget."""

    def __init__(
        self, space: WidthSpace, latency_of: LatencyOf, score_of: ScoreOf, settings: SearchSettings
    ) -> None:
        self.space = space
        self.latency_of = latency_of
        self.score_of = score_of
        self.settings = settings
        self.anchor: Widths | None = None  # the fastest widths: repair can always end there

    def run(
        self,
        prior: Sequence[np.ndarray] | None,
        resume: Sequence[Candidate],
        on_generation: Callable[[Sequence[Candidate]], None] | None,
    ) -> tuple[Candidate, ...]:
        found = {candidate.widths: candidate for candidate in resume}
        first = 1 + max((candidate.generation for candidate in resume), default=-1)
        total = (self.settings.generations + 1 - first) * self.settings.population
        with progress_bar("searching", max(total, 0)) as advance:
            for generation in range(first, self.settings.generations + 1):
                # A generator of its own for each generation: a continued search draws the same.
                rng = np.random.default_rng((self.settings.seed, generation))
                parents = self.ranked(tuple(found.values()))[: max(2, self.settings.population // 2)]
                fresh = self._propose(generation, rng, parents, prior, set(found))
                if not fresh:
                    break  # the space is exhausted
                for widths in fresh:
                    found[widths] = self.scored(widths, generation)
                    best = self.ranked(tuple(found.values()))[0]
                    advance(f"best {best.score.accuracy:.4f} at {best.predicted_ms:.3g} ms")
                if on_generation is not None:
                    on_generation(tuple(found.values()))
        return tuple(found.values())

    def scored(self, widths: Widths, generation: int) -> Candidate:
        value = self.score_of(widths)
        result = value if isinstance(value, Score) else Score(float(value))
        return Candidate(widths, float(self.latency_of(widths)), result, generation)

    def ranked(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Best first: most accurate, or the fastest of those that are accurate enough."""
        wanted = self.settings.min_accuracy
        if wanted is None:
            return sorted(candidates, key=lambda c: (c.score, -c.predicted_ms), reverse=True)
        good = [c for c in candidates if c.score.accuracy >= wanted]
        rest = [c for c in candidates if c.score.accuracy < wanted]
        return sorted(good, key=lambda c: c.predicted_ms) + sorted(rest, key=lambda c: c.score, reverse=True)

    def _propose(
        self,
        generation: int,
        rng: np.random.Generator,
        parents: Sequence[Candidate],
        prior: Sequence[np.ndarray] | None,
        seen: set[Widths],
    ) -> list[Widths]:
        fresh: list[Widths] = []
        for _ in range(self.settings.population * ATTEMPTS):
            if len(fresh) == self.settings.population:
                break
            if generation == 0 or len(parents) < 2:
                widths = self._sample(rng, prior)
            elif rng.random() < 0.5:
                widths = self._mutate(parents[int(rng.integers(len(parents)))].widths, rng)
            else:
                a, b = rng.choice(len(parents), 2, replace=False).tolist()
                widths = self._mutate(self._cross(parents[a].widths, parents[b].widths, rng), rng)
            widths = self.repaired(widths, rng, self.settings.budget_ms)
            if widths not in seen:
                seen.add(widths)
                fresh.append(widths)
        return fresh

    def _sample(self, rng: np.random.Generator, prior: Sequence[np.ndarray] | None) -> Widths:
        if prior is None:
            return self.space.random(rng)
        return Widths(
            group.choices[rng.choice(len(group.choices), p=p)]
            for group, p in zip(self.space.groups, prior, strict=True)
        )

    def _mutate(self, widths: Widths, rng: np.random.Generator) -> Widths:
        redrawn = rng.random(len(widths)) < self.settings.mutation
        redrawn[rng.integers(len(widths))] = True
        drawn = self.space.random(rng)
        return Widths(new if again else old for old, new, again in zip(widths, drawn, redrawn, strict=True))

    def _cross(self, a: Widths, b: Widths, rng: np.random.Generator) -> Widths:
        return Widths(x if first else y for x, y, first in zip(a, b, rng.random(len(a)) < 0.5, strict=True))

    def repaired(self, widths: Widths, rng: np.random.Generator, budget: float | None) -> Widths:
        """Within a budget in ms: groups step towards the fastest network, then one pass of steps up that fit.

        Without a budget, networks that the runtime cannot run are led to one that it can. Ends after as many
        steps as there are choices in all. The budget is at least the fastest's latency.
        """
        if self.anchor is None or (budget is None and self.latency_of(widths) < FAILED_MS):
            return widths
        index = [g.choices.index(width) for g, width in zip(self.space.groups, widths, strict=True)]
        goal = [g.choices.index(width) for g, width in zip(self.space.groups, self.anchor, strict=True)]
        limit = np.nextafter(FAILED_MS, 0) if budget is None else budget
        while self.latency_of(self._at(index)) > limit:
            movable = [group for group in range(len(index)) if index[group] != goal[group]]
            group = movable[rng.integers(len(movable))]
            index[group] += 1 if index[group] < goal[group] else -1
        for group in rng.permutation(len(index)) if budget is not None else ():
            if index[group] + 1 < len(self.space.groups[group].choices):
                index[group] += 1
                if self.latency_of(self._at(index)) > limit:
                    index[group] -= 1
        return self._at(index)

    def _at(self, index: Sequence[int]) -> Widths:
        return Widths(g.choices[i] for g, i in zip(self.space.groups, index, strict=True))


def fastest(space: WidthSpace, latency_of: LatencyOf) -> Widths:
    """The lowest latency: the narrowest widths, then each group in turn at its fastest choice.

    Narrower is not always faster: an unaligned layer can cost more than a wider one.
    """
    best = space.smallest()
    for _ in range(3):
        before = best
        for group, entry in enumerate(space.groups):
            options = [Widths((*best[:group], width, *best[group + 1 :])) for width in entry.choices]
            best = min(options, key=lambda widths: (latency_of(widths), widths))
        if best == before:
            break
    return best
