"""The channels near a width's edge that it may take in several ways, after CafeNet (arXiv 2102.05258).

In: a group, a width, an offset `r`, in steps of the group's choices. Out: sets of channels. Of a width of `c`
steps, the base channels `[0, c - r)` are always taken, and `r` of the `2 r` free ones in `[c - r, c + r)`; at
both ends of the group there are fewer. With an offset of 0 a width is the first channels, as in AutoSlim.

Reconstructed: the paper's text was not available to us, only its abstract and reviews, so these borders are
our choice.
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
    """A width takes all channels below `low`, and of the steps between `low` and `high` so many: `taken`."""

    low: int
    high: int
    step: int
    taken: int

    @classmethod
    def of(cls, group: WidthGroup, width: int, offset: int) -> "FreeZone":
        """That of a width; a group whose channels a layer uses by their positions has no free ones.

        A step is the largest that all choices of the group are multiples of, and the width, too.
        """
        step = math.gcd(*group.choices)
        reach = 0 if group.ordered else offset * step
        low, high = max(0, width - reach), min(group.channels, width + reach)
        step = math.gcd(step, width - low, high - low)
        return cls(low, high, step, (width - low) // step)

    @property
    def count(self) -> int:
        """How many sets of channels there are."""
        return math.comb((self.high - self.low) // self.step, self.taken)

    def sets(self) -> Iterator[ChannelSet]:
        """All sets of channels; the first is the first channels."""
        steps = (self.high - self.low) // self.step
        return map(self._set, itertools.combinations(range(steps), self.taken))

    def draw(self, rng: np.random.Generator) -> ChannelSet:
        """One of them, evenly."""
        steps = (self.high - self.low) // self.step
        return self._set(sorted(rng.permutation(steps)[: self.taken].tolist()))

    def _set(self, steps: Iterable[int]) -> ChannelSet:
        starts = (self.low + own * self.step for own in steps)
        free = [channel for start in starts for channel in range(start, start + self.step)]
        width = self.low + len(free)
        return range(width) if not free or free[-1] == width - 1 else (*range(self.low), *free)


@dataclass(frozen=True)
class Assignments:
    """How widths take their free channels: `offset` steps around their edge.

    In training, `trained` assignments of a drawn width are compared by their loss on another batch, and the
    best is trained, after a first `random` share of the steps, in which any is. A score is that of the best
    of `scored`, which the other half of the validation images choose.
    """

    offset: int = 1
    trained: int = 2
    scored: int = 4
    random: float = 0.25

    def of(self, space: WidthSpace, widths: Widths, count: int, *seed: int) -> list[Subnet]:
        """So many different assignments of these widths, drawn by the seed; all, where there are no more.

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
