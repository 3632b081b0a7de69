"""The widths of the least loss within a latency table, exactly: a mixed-integer linear program.

In: tables of losses by group and choice, a latency table, a limit, bounds. Out: the best networks, best first.
MDP (Sun et al., "Multi-dimensional pruning", CVPR 2025, section 3.3) with its bilinear latency linearised, so
that a linear solver (HiGHS) finds the optimum and proves it.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from bcnet.errors import BudgetError
from bcnet.latency_tables.model import LatencyModel
from bcnet.latency_tables.rows import FAILED_MS
from bcnet.methods.additive import additive
from bcnet.methods.latency_greedy import narrowed_by
from bcnet.methods.limits import Limits
from bcnet.methods.loss_tables import total
from bcnet.methods.rows import Columns, Sum
from bcnet.progress import say
from bcnet.supernet.costs import Bound
from bcnet.supernet.space import Widths, WidthSpace

ROUNDS = 6  # of correcting the program's latency by the table's
CLOSE = 1e-3  # of the limit: so well the two have to agree
SHORTEST = 0.1  # seconds that are always left for the solver
OPTIMAL, STOPPED = 0, 1  # what `milp` reports


@dataclass(frozen=True)
class Program:
    """How many of the best networks to look for, to which relative gap, and for how many seconds in all."""

    pool: int = 1
    gap: float = 1e-3
    seconds: float = 60.0


@dataclass(frozen=True)
class Allocation:
    """Widths, their latency by the table in ms, the sum of their losses.

    `gap` is the part of the loss that another network could save at most. The least loss of each group counts
    as none, so that tables of which some are below zero have a gap, too.
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
    program: Program | None = None,
) -> tuple[Allocation, ...]:
    """The networks of the least summed loss of at most `limit_ms` within the bounds, best first.

    `losses` hold (choices,) a group, as `LossTables.losses` and `importance_tables` do. What the table's
    arrays do not tell (weights that come from memory, layers behind many concatenated groups) is approximated
    by a sum over groups near the limit, and corrected until the table itself confirms the latency. At the
    time limit the best networks so far are returned, and their gap is reported. Raises BudgetError, with the
    lowest possible latency, where no network fits.
    """
    limits = Limits(space, latency, limit_ms, bounds)
    return _Allocator(limits, losses, latency, program or Program()).pool()


class _Allocator:
    def __init__(
        self, limits: Limits, losses: Sequence[np.ndarray], latency: LatencyModel, program: Program
    ) -> None:
        self.limits, self.losses, self.program = limits, losses, program
        self.end = time.monotonic() + program.seconds
        table = Sum(*latency.pairwise(), at_most=limits.limit_ms)
        rest = additive(limits, table)
        self.confirmed = rest is None  # whether the table's arrays tell all of its latencies
        self.time = table if rest is None else table.plus(rest)
        self.others = [
            Sum(*bound.cost.pairwise(limits.choices), at_most=bound.limit) for bound in limits.bounds
        ]
        self.columns = Columns([len(own) for own in losses], [self.time, *self.others])
        self.shift = 0.0  # ms that the program's latency was found to lack
        self.excluded: list[np.ndarray] = []
        self.floor = float(sum(own.min() for own in losses))
        self.stopped = False

    def pool(self) -> tuple[Allocation, ...]:
        """As many networks as are wanted and fit, best first."""
        best, least = self._best(self._start())
        found = [best]
        self.excluded.append(best)
        while len(found) < self.program.pool and not self.stopped:
            index, _ = self._solved(self._objective())
            if index is None:
                break
            self.excluded.append(index)
            if self.limits.fit(index[None])[0]:
                found.append(index)
        allocations = [self._allocation(index, least) for index in found]
        allocations.sort(key=lambda own: (own.loss, own.predicted_ms))
        if self.stopped and allocations[0].gap > self.program.gap:
            say(
                f"the allocation stopped after {self.program.seconds:g} s: another network's loss could be "
                f"{100 * allocations[0].gap:.2g} % lower at most"
            )
        return tuple(allocations)

    def _start(self) -> np.ndarray:
        """Choice indices within all limits. Raises BudgetError where there are none."""
        try:
            return self.limits.index(narrowed_by(self.limits.space, self.losses, self.limits))
        except BudgetError:
            index, _ = self._solved(self.columns.row(self.time)[0], timed=False)
            if index is None:
                raise
            lowest = float(self.limits.latencies(index[None])[0])
            if lowest >= FAILED_MS:
                raise
            if lowest > self.limits.limit_ms:
                raise self.limits.too_low(lowest) from None
            return index

    def _best(self, start: np.ndarray) -> tuple[np.ndarray, float]:
        """The best choice indices within all limits, and a loss below which there are none."""
        best, least = start, -math.inf
        rounds = 0
        while not self.stopped and rounds < ROUNDS:
            index, lower = self._solved(self._objective())
            least = lower
            if index is None:
                break
            latency = float(self.limits.latencies(index[None])[0])
            miss = latency - float(self.time.at(index[None])[0]) - self.shift
            fits = bool(self.limits.fit(index[None])[0])
            if not fits:
                self.excluded.append(index)
            elif total(self.losses, index) <= total(self.losses, best):
                best = index
            if self.confirmed:
                if fits:
                    break
                continue  # it is over a limit by less than the solver's tolerance
            if fits and abs(miss) <= CLOSE * self.limits.limit_ms:
                break
            self.shift += miss
            rounds += 1
        return best, least

    def _objective(self) -> np.ndarray:
        objective = np.zeros(self.columns.count)
        objective[: self.columns.binary] = np.concatenate([own - own.min() for own in self.losses])
        return objective

    def _solved(self, objective: np.ndarray, timed: bool = True) -> tuple[np.ndarray | None, float]:
        """Choice indices of the least objective that the solver finds, and a bound below it.

        `timed` is whether the latency is limited. None where there is no network, or none in time.
        """
        rows = [self.columns.row(own) for own in self.others]
        if timed:
            coefficients, free = self.columns.row(self.time)
            rows.append((coefficients, free - self.shift))
        upper = self.columns.possible(rows)
        # Rows and objective in units of their own size: the solver's tolerances are absolute.
        scaled = [(row / scale, free / scale) for row, free in rows for scale in [max(abs(free), 1e-12)]]
        scaled += [self.columns.other_than(index) for index in self.excluded]
        unit = max(float(objective.max()), 1e-300)
        matrix, right = self.columns.ties
        constraints = [LinearConstraint(matrix, right, right)]
        if scaled:
            constraints.append(
                LinearConstraint(
                    csr_array(np.stack([row for row, _ in scaled])),
                    -np.inf,
                    np.array([free for _, free in scaled]),
                )
            )
        result = milp(
            objective / unit,
            integrality=np.arange(self.columns.count) < self.columns.binary,
            bounds=Bounds(0.0, upper),
            constraints=constraints,
            options={
                "mip_rel_gap": self.program.gap,
                "time_limit": max(SHORTEST, self.end - time.monotonic()),
            },
        )
        self.stopped |= result.status == STOPPED
        lower = -math.inf if result.mip_dual_bound is None else unit * result.mip_dual_bound
        return None if result.x is None else self.columns.index(result.x), lower

    def _allocation(self, index: np.ndarray, least: float) -> Allocation:
        loss = total(self.losses, index)
        above = loss - self.floor
        gap = max(0.0, (above - least) / above) if above > 0 else 0.0
        return Allocation(
            self.limits.widths(index), float(self.limits.latencies(index[None])[0]), loss, min(gap, 1.0)
        )
