"""BCNetV2: l + b channels; left [0, c), right [l + b - c, l + b); complement l + b - c (section 4).

The complement is again in [b, l], so that the widest path has one, too.
"""

import math
from typing import final

from bcnet.space.channel_rules import ChannelRule, channel_rule, evenly_spaced_choices, largest_step


@final
@channel_rule
class BCNetV2(ChannelRule):
    """Both ends of a group that is wider by its narrowest choice."""

    name = "bcnetv2"
    summary = "the same in a supernet whose groups are wider by their narrowest choice"
    paper = "BCNetV2 (arXiv 2203.13714)"
    sides = ("left", "right")

    def choices(
        self, channels: int, bins: int, multiple: int, minimum: int, unit: int = 1
    ) -> tuple[int, ...]:
        step = largest_step(channels, multiple, unit)
        narrowest = min(channels, max(step, math.ceil(minimum / step) * step))
        return evenly_spaced_choices(narrowest, channels, bins, step)

    def extra(self, choices: tuple[int, ...]) -> int:
        return choices[0]

    def complement(self, choices: tuple[int, ...], width: int) -> int | None:
        return choices[0] + choices[-1] - width
