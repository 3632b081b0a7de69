"""What widths have to keep: a latency, and bounds on what else a network costs.

In: a space, its latency as a function of widths, a limit in ms, bounds. Out: the costs of thousands of
networks at once, and the fastest widths. Networks are given by the indices of their choices, (N, groups).
"""

from collections.abc import Sequence

import numpy as np

from bcnet.errors import BudgetError
from bcnet.latency_tables.failed import runs
from bcnet.latency_tables.model import LatencyModel
from bcnet.plain import milliseconds
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.width_search.constraints import Bound
from bcnet.width_search.device_limit import device_names
from bcnet.width_search.evolution import LatencyOf, as_share, fastest


class Limits:
    """A latency limit `limit_ms` and further bounds on the networks of one space.

    A network is given by its choice indices: for each group the place of its width among `group.choices`, an
    integer array (groups,); several networks are an array (N, groups). `index` and `widths` convert.
    """

    def __init__(
        self, space: WidthSpace, latency_of: LatencyOf, limit_ms: float, bounds: Sequence[Bound] = ()
    ) -> None:
        """`latency_of`: a latency table's model, which prices many networks at once, or any function."""
        self.space = space
        self.latency_of = latency_of
        self.limit_ms = limit_ms
        self.bounds = tuple(bounds)
        self.choices = [np.array(group.choices, dtype=np.int64) for group in space.groups]
        self.at_most = np.array([limit_ms, *(bound.limit for bound in bounds)], dtype=float)

    def widths(self, index: Sequence[int] | np.ndarray) -> Widths:
        """The widths of one network from its choice indices (groups,)."""
        return Widths(int(own[i]) for own, i in zip(self.choices, index, strict=True))

    def index(self, widths: Widths) -> np.ndarray:
        """The choice indices (groups,) of widths. Raises ValueError where one is not among the choices."""
        found = [group.choices.index(width) for group, width in zip(self.space.groups, widths, strict=True)]
        return np.array(found, dtype=np.int64)

    def latencies(self, indices: np.ndarray) -> np.ndarray:
        """Predicted latencies (N,) in ms of networks given by choice indices (N, groups)."""
        if isinstance(self.latency_of, LatencyModel):
            return self.latency_of.price_many(indices)
        return np.array([self.latency_of(self.widths(index)) for index in indices], dtype=float)

    def networks(self, indices: np.ndarray) -> np.ndarray:
        """Widths (N, groups) of networks given by choice indices (N, groups)."""
        return np.stack([own[column] for own, column in zip(self.choices, indices.T, strict=True)], axis=1)

    def costs(self, indices: np.ndarray) -> np.ndarray:
        """Predicted latency in ms and what each bound counts, (1 + bounds, N), for indices (N, groups)."""
        networks = self.networks(indices)
        return np.stack(
            [self.latencies(indices), *(bound.cost.price_many(networks) for bound in self.bounds)]
        )

    def excess(self, costs: np.ndarray) -> np.ndarray:
        """By how much costs (1 + bounds, N) are over their limits; 0 where they are not."""
        return np.asarray(np.maximum(costs - self.at_most[:, None], 0.0))

    def fit(self, indices: np.ndarray) -> np.ndarray:
        """Whether each network is within the latency and all bounds, bool (N,), for indices (N, groups)."""
        return np.asarray((self.excess(self.costs(indices)) == 0).all(axis=0))

    def narrowest(self) -> Widths:
        """The widths of the lowest predicted latency within the bounds; they may exceed the latency limit."""
        return fastest(self.space, self.latency_of, self.bounds)

    def fastest(self) -> Widths:
        """The widths of the lowest predicted latency within the bounds.

        Raises BudgetError, with the lowest latency or count possible, where no network is within the limits.
        """
        for bound in self.bounds:
            least = bound.least(self.space)
            if least > bound.limit:
                raise BudgetError(bound.refusal(least))
        found = self.narrowest()
        if not all(bound.holds(found) for bound in self.bounds):
            raise self._none_at_once(found)
        lowest = self.latency_of(found)
        if not runs(lowest):
            raise BudgetError(
                f"the runtime runs no network of this space{self._on}{self._within}; "
                "the table's rows show which layers fail"
            )
        if lowest > self.limit_ms:
            raise self.too_low(lowest)
        return found

    def too_low(self, lowest_ms: float, kind: str = "network") -> BudgetError:
        """The error for a limit that no network, or none of a kind, can meet."""
        limit, lowest = milliseconds(self.limit_ms), milliseconds(lowest_ms)
        share = as_share(self.latency_of, self.space, lowest_ms)
        on, there, budget = (self._on, " there", "that budget") if self._on else ("", "", "the budget")
        return BudgetError(
            f"no {kind} meets {limit} ms{on}: the fastest takes {lowest} ms{there}{self._within}{share}; "
            f"raise {budget}, or widen the choices (space.min_width, space.bins)"
        )

    def _none_at_once(self, closest: Widths) -> BudgetError:
        """The error if each bound can be met, but not all at once; `closest` exceeds them the least."""
        worst = max(self.bounds, key=lambda bound: bound.cost(closest) / bound.limit)
        over = worst.cost(closest) / worst.limit - 1
        return BudgetError(
            "no network was found within the budgets of all devices and all bounds at once: the closest has "
            f"{worst.shown(worst.cost(closest))} {worst.name}, {over:.1%} above the limit of "
            f"{worst.shown(worst.limit)}; raise that one, or widen the choices (space.min_width, space.bins)"
        )

    @property
    def _on(self) -> str:
        """The device whose latency is limited, where there are several."""
        names = device_names(self.latency_of, self.bounds)
        return f" on {names[0]}" if names else ""

    @property
    def _within(self) -> str:
        if self._on:
            return " within the other budgets and bounds"
        return " within the other bounds" if self.bounds else ""
