"""The changes of a check's rows, tested. In: layers' times, then and now. Out: changes with p-values.

`verdict_on` in regression_check.py describes the tests, with every formula.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import norm, t

from bcnet.latency_tables.machine import MEDIAN, SENSITIVITY_ALL, Machine, sensitivity_of
from bcnet.latency_tables.observations import (
    Observation,
    holm,
    standard_errors,
    time_now,
    weighted_median,
)

# The accepted rate of false alarms, for each of: all rows, their total time, kinds of layers, a part of the
# rows, single rows.
ALPHA = 0.005
# Two sessions on one machine differ by more than their samples show (decision 5).
DRIFT = 0.02
DEGREES = 5  # degrees of freedom of Student's t for single rows: their errors have heavy tails
BEYOND = 2.0  # standard errors beyond the allowed change from which a row counts for a part of the rows
TOGETHER = 5  # this many rows count as one there: rows of one network share what disturbed it


@dataclass(frozen=True)
class Change:
    """How much slower (above 0) or faster something is: 0.12 is 12 %; 95 % interval from `low` to `high`.

    `p` is the p-value of the null hypothesis that it is not slower (for `faster`: not faster) than allowed,
    corrected for the number of kinds or rows (Holm). `rows` is the number of rows that it is based on.
    """

    name: str
    change: float
    low: float
    high: float
    p: float
    rows: int
    then_ms: float
    now_ms: float


@dataclass(frozen=True, eq=False)
class Sample:
    """The rows of a check: their changes (N,), log(now / then), and the changes' standard errors (N,).

    `drift` is the error that all rows share, `allowed` the log of the allowed slowdown.
    """

    names: Sequence[str]
    kinds: np.ndarray
    groups: np.ndarray
    then_ms: np.ndarray
    now_ms: np.ndarray
    change: np.ndarray
    error: np.ndarray
    drift: float
    machine: Machine
    allowed: float

    @classmethod
    def of(cls, observations: Sequence[Observation], machine: Machine, allowed: float) -> "Sample":
        then_ms = np.array([o.then_ms for o in observations])
        now_ms = np.array([time_now(o) for o in observations])
        change = np.log(now_ms / then_ms)
        kinds = np.array([o.kind for o in observations], object)
        groups = np.array([o.group for o in observations], object)
        error, shared = standard_errors(observations, then_ms, now_ms, change, groups)
        names = [o.name for o in observations]
        drift = math.hypot(DRIFT, shared)
        return cls(names, kinds, groups, then_ms, now_ms, change, error, drift, machine, allowed)

    @property
    def every(self) -> np.ndarray:
        """The mask that selects all rows."""
        return np.ones(len(self.change), bool)

    @cached_property
    def members(self) -> dict[str, np.ndarray]:
        """The mask of each kind's rows; the kind with the largest total time comes first."""
        kinds = sorted(set(self.kinds), key=lambda kind: -float(self.now_ms[self.kinds == kind].sum()))
        return {kind: self.kinds == kind for kind in kinds}

    def pooled(self, chosen: np.ndarray, sensitivity: tuple[float, float]) -> tuple[float, float, float]:
        """The change of the chosen rows, its standard error, and the part that the machine explains."""
        weights = 1 / self.error[chosen] ** 2
        centre = weighted_median(self.change[chosen], weights)
        own = MEDIAN / math.sqrt(float(weights.sum()))
        explained, explained_error = self.machine.explains(sensitivity)
        return centre, math.sqrt(own**2 + self.drift**2 + explained_error**2), explained

    def summed(self, chosen: np.ndarray, sensitivity: tuple[float, float]) -> tuple[float, float, float]:
        """The same for the total time of the chosen rows."""
        now = self.now_ms[chosen]
        ratio = math.log(float(now.sum()) / float(self.then_ms[chosen].sum()))
        scatter = np.maximum(self.error[chosen], np.abs(self.change[chosen] - ratio))
        own = float(np.linalg.norm(now / now.sum() * scatter))
        explained, explained_error = self.machine.explains(sensitivity)
        return ratio, math.sqrt(own**2 + self.drift**2 + explained_error**2), explained

    @cached_property
    def together(self) -> tuple[float, float, float]:
        """All rows, pooled."""
        return self.pooled(self.every, SENSITIVITY_ALL)

    @cached_property
    def of_kind(self) -> dict[str, tuple[float, float, float]]:
        """Each kind's rows, pooled."""
        return {name: self.pooled(chosen, sensitivity_of(name)) for name, chosen in self.members.items()}

    @cached_property
    def against(self) -> dict[str, tuple[float, float]]:
        """Each kind's change relative to all other rows, and its standard error.

        What both have in common cancels: the scatter of the rounds, the clock, a part of the memory.
        """
        result = {}
        for name, chosen in self.members.items():
            if chosen.all():
                continue
            rest, _, _ = self.pooled(~chosen, SENSITIVITY_ALL)
            explained, explained_error = self.machine.explains_beyond_all(sensitivity_of(name))
            variance = sum(1 / float((self.error[mask] ** -2.0).sum()) for mask in (chosen, ~chosen))
            result[name] = (
                self.of_kind[name][0] - rest - explained,
                math.sqrt(MEDIAN**2 * variance + DRIFT**2 + explained_error**2),
            )
        return result

    def described(self, name: str, chosen: np.ndarray, centre: float, uncertain: float, p: float) -> Change:
        """A change with its 95 % interval and total times."""
        return Change(
            name=name,
            change=math.expm1(centre),
            low=math.expm1(centre - 1.96 * uncertain),
            high=math.expm1(min(centre + 1.96 * uncertain, 50.0)),
            p=p,
            rows=int(np.count_nonzero(chosen)),
            then_ms=float(self.then_ms[chosen].sum()),
            now_ms=float(self.now_ms[chosen].sum()),
        )

    def kinds_tested(self, sign: int) -> tuple[Change, ...]:
        """All kinds with the p-value of being slower (1) or faster (-1), alone or relative to other rows."""
        p = []
        for name, (change, uncertain, explained) in self.of_kind.items():
            beyond = sign * (change - explained) - self.allowed
            smallest = norm.sf(beyond / uncertain)
            if name in self.against and beyond > 0:
                excess, error = self.against[name]
                smallest = min(smallest, norm.sf((sign * excess - self.allowed) / error))
            p.append(min(1.0, 2 * float(smallest)))
        return tuple(
            self.described(name, self.members[name], *self.of_kind[name][:2], value)
            for name, value in zip(self.members, holm(p), strict=True)
        )

    def part_tested(self) -> Change | None:
        """The rows that are clearly slower, if they are significantly more than those that are faster."""
        explained, error = self.single
        slower, faster = (
            sign * (self.change - explained) - self.allowed > BEYOND * error for sign in (1, -1)
        )
        count, opposite = int(slower.sum()), int(faster.sum())
        p = float(norm.sf((count - opposite) / math.sqrt(TOGETHER * max(count + opposite, 1))))
        if p >= ALPHA:
            return None
        ratio, uncertain, _ = self.summed(slower, SENSITIVITY_ALL)
        name = f"{count} of {len(slower)} rows"
        ((group, own),) = Counter(self.groups[slower]).most_common(1)
        name += f" (mostly {group})" if own >= 0.9 * count else ""
        return self.described(name, slower, ratio, uncertain, p)

    def kinds_against_others(self) -> tuple[Change, ...]:
        """All kinds with their change relative to all other rows, tested in both directions."""
        p = [
            min(1.0, 2 * float(norm.sf((abs(change) - self.allowed) / error)))
            for change, error in self.against.values()
        ]
        return tuple(
            self.described(name, self.members[name], *self.against[name], value)
            for name, value in zip(self.against, holm(p), strict=True)
        )

    @cached_property
    def single(self) -> tuple[np.ndarray, np.ndarray]:
        """The changes (N,) of single rows that the machine explains, and their standard errors (N,)."""
        explained, explained_error = np.array(
            [self.machine.explains(sensitivity_of(kind)) for kind in self.kinds]
        ).T
        return explained, np.sqrt(self.error**2 + self.drift**2 + explained_error**2)

    def rows_tested(self, sign: int) -> list[Change]:
        """Single rows that are significantly slower (1) or faster (-1), by Student's t."""
        explained, error = self.single
        p = holm(t.sf((sign * (self.change - explained) - self.allowed) / error, DEGREES).tolist())
        return [
            self.described(self.names[i], np.arange(len(p)) == i, self.change[i], error[i], value)
            for i, value in enumerate(p)
            if value < ALPHA
        ]
