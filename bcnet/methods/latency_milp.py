"""The widths of the least loss within a latency table, exactly: a mixed-integer linear program.

In: tables of losses by group and choice, a latency table, a limit, bounds. Out: the best networks.
MDP (Sun et al., "Multi-dimensional pruning", CVPR 2025, section 3.3) with its bilinear latency linearised, so
that a linear solver (HiGHS) finds the optimum and proves it.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from bcnet.allocation.additive import additive
from bcnet.allocation.limits import Limits
from bcnet.allocation.loss_tables import check_tables, total
from bcnet.allocation.problem import AllocationProblem
from bcnet.allocation.rows import Columns, Sum
from bcnet.allocation.silent import silent
from bcnet.errors import BudgetError
from bcnet.latency_tables.model import LatencyModel
from bcnet.methods.latency_greedy import narrowed_by
from bcnet.progress import say
from bcnet.registry import method
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.width_search.constraints import Bound, Pairwise
from bcnet.width_search.device_limit import device_limits

ROUNDS = 6  # of correcting the program's latency by the table's
# An array of the table gets columns of its own if it has at most so many groups, or at most so many entries.
MOST = 3
ENTRIES = 1024
CLOSE = 1e-3  # of the limit: so well the two have to agree
POOL = 8  # networks that are proposed
SHORTEST = 0.1  # seconds that are always left for the solver
ATTEMPTS = 4  # solves for each network of a pool: some are excluded because the table finds them too slow
SOLVED, INFEASIBLE = 0, 2  # what `milp` reports


@dataclass(frozen=True)
class SolverSettings:
    """How many of the best networks to look for, to which relative gap, and for how many seconds in all."""

    pool: int = 1
    gap: float = 1e-3
    seconds: float = 60.0


@dataclass(frozen=True)
class Allocation:
    """Widths, their latency by the table in ms, the sum of their losses.

    `gap` is the part of the loss that another network could save at most (by the approximated latencies,
    where there are some); 1 where the solver did not come so far as to know. The least loss of each group
    counts as none: tables may be below zero.
    """

    widths: Widths
    predicted_ms: float
    loss: float
    gap: float


def allocate_exactly(
    space: WidthSpace,
    losses: Sequence[np.ndarray],
    latency: LatencyModel,
    limit_ms: float,
    bounds: Sequence[Bound] = (),
    settings: SolverSettings | None = None,
) -> tuple[Allocation, ...]:
    """The networks of the least summed loss of at most `limit_ms` within the bounds, best first.

    `losses` hold (choices,) a group, as `LossTables.losses` and `importance_tables` do. What the table's
    arrays of few groups or entries do not tell (weights that come from memory, layers behind concatenations)
    is approximated by a sum over groups near the limit, and corrected until the table itself confirms the
    latency. At the time limit the best networks so far are returned, and their gap is reported. Raises
    BudgetError, with the lowest possible latency, where no network fits, SpaceError where the tables do not
    fit the space.
    """
    check_tables(space, losses)
    limits = Limits(space, latency, limit_ms, bounds)
    return _Allocator(limits, losses, latency, settings or SolverSettings()).pool()


@method(
    "latency-milp",
    "exact minimum of the summed losses, each measured with only one group narrowed, within the latency "
    "table; the eight best are scored",
    paper="MDP (CVPR 2025), Puzzle (ICML 2025)",
    auto=3,
)
def propose(problem: AllocationProblem) -> list[Widths]:
    """The best few by the measured losses of single widths."""
    given = problem.tables(), problem.latency, problem.limit_ms, problem.bounds
    return [own.widths for own in allocate_exactly(problem.space, *given, SolverSettings(pool=POOL))]


def _on(limit: Bound, limits: Limits) -> Callable[[np.ndarray], np.ndarray]:
    """A further device's latencies (N,) of choice indices (N, groups)."""
    return lambda indices: limit.cost.price_many(limits.networks(indices))


class _Latency:
    """A device's latency in the linear program: the sums of its table's arrays, and a fit to the rest."""

    def __init__(
        self, limits: Limits, latencies_of: Callable[[np.ndarray], np.ndarray], sums: Pairwise, at_most: float
    ) -> None:
        """`latencies_of` gives ms (N,) of choice indices (N, groups), `sums` the table's arrays."""
        self._sizes, self._latencies_of = [len(own) for own in limits.choices], latencies_of
        arrays = [own for own in sums[1] if len(own[0]) <= MOST or own[1].size <= ENTRIES]
        self._table = Sum(sums[0], arrays, at_most)
        self.sum, self.exact = self._table, True
        self.fit()

    def fit(self, around: np.ndarray | None = None) -> None:
        """Fit what the arrays do not cover; exact at the choice indices `around`, if given."""
        rest = additive(self._sizes, self._latencies_of, self._table, around)
        self.exact = rest is None
        self.sum = self._table if rest is None else self._table.plus(rest)

    def close(self, index: np.ndarray) -> bool:
        """Whether the program's latency of a network equals that of the table."""
        miss = float(self._latencies_of(index[None])[0] - self.sum.at(index[None])[0])
        return abs(miss) <= CLOSE * self.sum.at_most


class _Allocator:
    def __init__(
        self, limits: Limits, losses: Sequence[np.ndarray], latency: LatencyModel, settings: SolverSettings
    ) -> None:
        self.limits, self.losses, self.settings = limits, losses, settings
        self.end = time.monotonic() + settings.seconds
        choices, devices = [group.choices for group in limits.space.groups], device_limits(limits.bounds)
        self.times = [_Latency(limits, limits.latencies, latency.pairwise(), limits.limit_ms)]
        for own in devices:  # a constraint for each
            self.times.append(_Latency(limits, _on(own, limits), own.cost.pairwise(choices), own.limit))
        counted = [bound for bound in limits.bounds if bound not in devices]
        self.others = [Sum(*bound.cost.pairwise(choices), at_most=bound.limit) for bound in counted]
        sums = [*(own.sum for own in self.times), *self.others]
        self.columns = Columns([len(own) for own in losses], sums)
        self.objective = np.zeros(self.columns.count)
        self.objective[: self.columns.binary] = np.concatenate([own - own.min() for own in losses])
        self.excluded: list[np.ndarray] = []
        self.stopped = False

    def pool(self) -> tuple[Allocation, ...]:
        """As many networks as are wanted and fit, best first."""
        best, least = self._best(self._start())
        found = [best]
        self.excluded.append(best)
        for _ in range(ATTEMPTS * self.settings.pool):
            if len(found) >= self.settings.pool or self.stopped:
                break
            index, _ = self._solved(self.objective)
            if index is None:
                break
            self.excluded.append(index)
            if self.limits.fit(index[None])[0]:
                found.append(index)
        allocations = [self._allocation(index, least) for index in found]
        allocations.sort(key=lambda own: (own.loss, own.predicted_ms))
        if self.stopped:
            bound = f"no network has a loss more than {allocations[0].gap:.1%} below that of the best of them"
            unknown = "how far the best of them is from the optimum is not known"
            say(
                f"the allocation stopped at its limit of {self.settings.seconds:g} s with {len(found)} of "
                f"{self.settings.pool} networks: {bound if allocations[0].gap < 1 else unknown}"
            )
        return tuple(allocations)

    @property
    def exact(self) -> bool:
        """Whether the program's latencies are those of the tables for every network."""
        return all(own.exact for own in self.times)

    def _start(self) -> np.ndarray:
        """Choice indices within all limits. Raises BudgetError where there are none."""
        try:
            return self.limits.index(narrowed_by(self.limits.space, self.losses, self.limits))
        except BudgetError as reason:
            # No network was found group by group; whether there is one at all, the program knows.
            index, _ = self._solved(self.columns.row(self.times[0].sum)[0], timed=False)
            if index is None:
                raise
            if self.limits.fit(index[None])[0]:
                return index
            lowest = float(self.limits.latencies(index[None])[0])
            if not self.limits.limit_ms < lowest < self.limits.latency_of(self.limits.narrowest()):
                raise
            raise self.limits.too_low(lowest) from reason

    def _best(self, best: np.ndarray) -> tuple[np.ndarray, float]:
        """The best choice indices within all limits, from some that are, and the least loss that is possible.

        That is above the least of the tables.
        """
        least, rounds = -math.inf, 0
        while not self.stopped and rounds < ROUNDS:
            index, least = self._solved(self.objective)
            if index is None:
                if self.stopped or self.exact:
                    break
                index = best  # which the approximated latency takes to be slower than it is
            fits = bool(self.limits.fit(index[None])[0])
            if not fits:
                self.excluded.append(index)
            elif total(self.losses, index) < total(self.losses, best):
                best = index
            if self.exact:
                if fits:
                    break
                continue  # it is over a limit by less than the solver's tolerance
            if fits and all(own.close(index) for own in self.times):
                break
            for own in self.times:
                if not own.exact:
                    own.fit(index)
            rounds += 1
        return best, least

    def _solved(self, objective: np.ndarray, timed: bool = True) -> tuple[np.ndarray | None, float]:
        """Choice indices with the lowest objective that the solver finds, and a lower bound of it.

        `timed` is whether the first latency is limited. None where there is no network, or none in time.
        """
        times = [own.sum for own in self.times]
        rows = [self.columns.row(own) for own in (times if timed else times[1:]) + self.others]
        # The solver's tolerances are absolute: rows and objective are in units of their own size.
        units = [max(abs(free), 1e-12) for _, free in rows]
        scaled = [(row / unit, free / unit) for (row, free), unit in zip(rows, units, strict=True)]
        scaled += [self.columns.other_than(index) for index in self.excluded]
        matrix, right = self.columns.ties
        constraints = [LinearConstraint(matrix, right, right)]
        if scaled:
            at_most = csr_array(np.stack([row for row, _ in scaled]))
            constraints.append(LinearConstraint(at_most, -np.inf, np.array([free for _, free in scaled])))
        unit = float(np.median(objective[objective > 0])) if (objective > 0).any() else 1.0
        with silent():
            result = milp(
                objective / unit,
                integrality=np.arange(self.columns.count) < self.columns.binary,
                bounds=Bounds(0.0, self.columns.possible(rows)),
                constraints=constraints,
                options={
                    "mip_rel_gap": self.settings.gap,
                    "time_limit": max(SHORTEST, self.end - time.monotonic()),
                },
            )
        self.stopped |= result.status not in (SOLVED, INFEASIBLE)
        least = -math.inf if result.mip_dual_bound is None else unit * result.mip_dual_bound
        return None if result.x is None else self.columns.index(result.x), least

    def _allocation(self, index: np.ndarray, least: float) -> Allocation:
        loss = total(self.losses, index)
        above = loss - sum(float(own.min()) for own in self.losses)
        gap = min(max(0.0, (above - least) / above), 1.0) if above > 0 else 0.0
        return Allocation(self.limits.widths(index), float(self.limits.latencies(index[None])[0]), loss, gap)
