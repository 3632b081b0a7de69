"""Free channels: those around a width's edge, of which it takes some, after CafeNet (arXiv 2102.05258).

In: a group, a width, an offset `r` in steps of the group's choices. Out: sets of channels. A width of `c`
steps always takes the base channels `[0, c - r)`, and `r` of the `2 r` free ones `[c - r, c + r)`; at both
ends of the group there are fewer. With an offset of 0, a width takes its first channels, as in AutoSlim.

The paper's text was not available to us, only its abstract and reviews, so these borders are our own choice.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bcnet.space.subnet import ChannelSet, Subnet
from bcnet.space.width_space import WidthGroup, Widths, WidthSpace


@dataclass(frozen=True)
class FreeZone:
    """A width takes all channels below `low`, and `taken` of the steps between `low` and `high`."""

    low: int
    high: int
    step: int
    taken: int

    @classmethod
    def of(cls, group: WidthGroup, width: int, offset: int) -> "FreeZone":
        """The zone of a width; groups whose channels a layer uses by position have no free channels.

        A step is the greatest common divisor of the group's choices, the width and the zone's ends.
        """
        step = math.gcd(*group.choices)
        reach = 0 if group.ordered else offset * step
        low, high = max(0, width - reach), min(group.channels, width + reach)
        step = math.gcd(step, width - low, high - low)
        return cls(low, high, step, (width - low) // step)

    @property
    def count(self) -> int:
        """The number of sets of channels."""
        return math.comb((self.high - self.low) // self.step, self.taken)

    def sets(self) -> Iterator[ChannelSet]:
        """All sets of channels; the first set is that of the first channels."""
        steps = (self.high - self.low) // self.step
        return map(self._set, itertools.combinations(range(steps), self.taken))

    def draw(self, rng: np.random.Generator) -> ChannelSet:
        """One of the sets, each with the same probability."""
        steps = (self.high - self.low) // self.step
        return self._set(sorted(rng.permutation(steps)[: self.taken].tolist()))

    def _set(self, steps: Iterable[int]) -> ChannelSet:
        starts = (self.low + own * self.step for own in steps)
        free = [channel for start in starts for channel in range(start, start + self.step)]
        width = self.low + len(free)
        return range(width) if not free or free[-1] == width - 1 else (*range(self.low), *free)


@dataclass(frozen=True)
class Assignments:
    """How widths choose among the free channels, which are `offset` steps on each side of their edge.

    For the first share `random` of the steps, training takes a random assignment of a drawn width. After
    that, it compares `trained` assignments by their loss on another batch, and trains the best. A score is
    that of the best of `scored` assignments, which is chosen on the other half of the validation images.
    """

    offset: int = 1
    trained: int = 2
    scored: int = 4
    random: float = 0.25

    def of(self, space: WidthSpace, widths: Widths, count: int, *seed: int) -> list[Subnet]:
        """`count` different assignments of these widths, drawn by the seed; all, if there are no more.

        Each group's set is drawn independently of the others'.
        """
        zones = _Zones(space, widths, self.offset)
        return zones.all() if zones.count <= count else zones.drawn(count, np.random.default_rng(seed))


class _Zones:
    """The free zones of all groups at some widths."""

    def __init__(self, space: WidthSpace, widths: Widths, offset: int) -> None:
        pairs = zip(space.groups, space.check(widths), strict=True)
        self._zones = [FreeZone.of(group, width, offset) for group, width in pairs]

    @cached_property
    def count(self) -> int:
        return math.prod(zone.count for zone in self._zones)

    def all(self) -> list[Subnet]:
        return [Subnet(sets) for sets in itertools.product(*(zone.sets() for zone in self._zones))]

    def drawn(self, count: int, rng: np.random.Generator) -> list[Subnet]:
        found: dict[Subnet, None] = {}
        while len(found) < count:
            found[Subnet(tuple(zone.draw(rng) for zone in self._zones))] = None
        return list(found)
