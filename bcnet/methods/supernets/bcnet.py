"""BCNet: left [0, c) and right [l - c, l); complement l - c (sections 3.1 and 3.2)."""

from typing import final

from bcnet.space.channel_rules import ChannelRule, channel_rule, symmetric_choices


@final
@channel_rule
class BCNet(ChannelRule):
    """Both ends: every channel serves the same number of (width, side) pairs."""

    name = "bcnet"
    summary = "the first channels, and the last: two paths, so that all channels are trained equally often"
    paper = "BCNet (CVPR 2021, arXiv 2105.10533)"
    sides = ("left", "right")
    choices = staticmethod(symmetric_choices)

    def extra(self, choices: tuple[int, ...]) -> int:
        return 0

    def complement(self, choices: tuple[int, ...], width: int) -> int | None:
        return choices[-1] - width if width < choices[-1] else None
