"""Which channels a width takes, which widths a group offers, and how widths are drawn in training.

Each method is a file of `bcnet/methods/supernets/`, or of another package. `l` is a group's channels, `b` its
narrowest choice, `c` a width. Choices are closed under the complement (the widest of BCNet has none), so that
with evenly drawn widths every channel is trained equally often.
"""

import math
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import ClassVar, Literal, TypeVar

import numpy as np

from bcnet.registry import SUPERNETS

Side = Literal["left", "right"]


class ChannelRule(ABC):
    """The rule that assigns channels to widths: a method of `train.method`."""

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    sides: ClassVar[tuple[Side, ...]]
    free: ClassVar[bool] = False  # whether the channels near a width's edge are free (free_channels.py)
    parallel: ClassVar[bool] = False  # whether the widths of a step share its batch (training/parts.py)
    prior_mutation: ClassVar[bool] = False  # whether mutations draw from the prior, unless configured

    @abstractmethod
    def choices(
        self, channels: int, bins: int, multiple: int, minimum: int, unit: int = 1
    ) -> tuple[int, ...]:
        """Ascending widths a group of `channels` offers: about `bins`, the last is `channels`.

        All are multiples of `unit`, and of `multiple` where `channels` is one.
        """

    @abstractmethod
    def extra(self, choices: tuple[int, ...]) -> int:
        """Channels that the supernet has beyond the network's own."""

    def complement(self, choices: tuple[int, ...], width: int) -> int | None:
        """The width that together with `width` covers every channel once; None where there is none."""
        return None

    @property
    def complements(self) -> bool:
        """Whether the method has complements."""
        return type(self).complement is not ChannelRule.complement


Rule = TypeVar("Rule", bound=type[ChannelRule])


def channel_rule(rule: Rule) -> Rule:
    """Register a rule under its name."""
    SUPERNETS.add(rule())
    return rule


def largest_step(channels: int, multiple: int, unit: int) -> int:
    """The largest step, in units, that divides `channels` and `multiple`: complements are aligned, too."""
    return unit * math.gcd(channels // unit, math.lcm(unit, multiple) // unit)


def symmetric_choices(
    channels: int, bins: int, multiple: int, minimum: int, unit: int = 1
) -> tuple[int, ...]:
    """`ChannelRule.choices` closed under c -> l - c: l/bins, 2 l/bins, ... l, rounded in pairs."""
    step = largest_step(channels, multiple, unit)
    lower = {max(step, round(channels * index / bins / step) * step) for index in range(1, (bins + 1) // 2)}
    if bins % 2 == 0:
        lower.add(channels // 2 // step * step)
    kept = {width for width in lower if max(step, minimum) <= width <= channels / 2}
    return tuple(sorted(kept | {channels - width for width in kept} | {channels}))


def evenly_spaced_choices(low: int, high: int, bins: int, step: int) -> tuple[int, ...]:
    """At most `bins` multiples of `step` from `low` to `high`, closed under c -> low + high - c."""
    count = max(1, min(bins - 1, (high - low) // step))
    lower = {low + round((high - low) * index / count / step) * step for index in range(count // 2 + 1)}
    return tuple(sorted(lower | {low + high - width for width in lower}))


class WidthSampler:
    """Draws training widths evenly: each group goes through shuffled permutations of its choices.

    `at(step)` depends on nothing but the seed and the step, so a continued training draws what an
    uninterrupted one would have drawn. With `complementary`, odd steps take the complements of the step
    before; a width without a complement is drawn from permutations of its own.
    """

    def __init__(
        self, rule: ChannelRule, choices: tuple[tuple[int, ...], ...], seed: int, complementary: bool
    ) -> None:
        self.rule = rule
        self.choices = choices
        self.seed = seed
        self.paired = complementary and any(
            rule.complement(own, width) is not None for own in choices for width in own
        )

    def at(self, step: int) -> tuple[int, ...]:
        """The widths of training step `step`, one a group."""
        if not self.paired:
            return tuple(self._draw(group, 0, step) for group in range(len(self.choices)))
        drawn = tuple(self._draw(group, 0, step // 2) for group in range(len(self.choices)))
        if step % 2 == 0:
            return drawn
        widths = []
        for group, width in enumerate(drawn):
            complement = self.rule.complement(self.choices[group], width)
            if complement is None:
                # The widest comes once in each permutation, so its number counts how often it came.
                complement = self._draw(group, 1, step // 2 // len(self.choices[group]))
            widths.append(complement)
        return tuple(widths)

    def _draw(self, group: int, kind: int, index: int) -> int:
        own = self.choices[group]
        return own[_permutation(len(own), self.seed, group, kind, index // len(own))[index % len(own)]]


@lru_cache(maxsize=4096)
def _permutation(size: int, seed: int, group: int, kind: int, number: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng((seed, group, kind, number)).permutation(size).tolist())
