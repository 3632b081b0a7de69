"""CafeNet: a width takes its first channels, and some of those around its edge.

Which of these are taken is learned. `bcnet/space/free_channels.py` has the sets of channels, and states which
details are our own choice.
"""

from typing import final

from bcnet.space.channel_rules import ChannelRule, channel_rule, symmetric_choices


@final
@channel_rule
class CafeNet(ChannelRule):
    """The leftmost channels, the last of which are free."""

    name = "cafenet"
    summary = "the first channels, except that those around the edge are chosen by the loss"
    paper = "CafeNet (ICLR 2021, arXiv 2102.05258)"
    sides = ("left",)
    free = True
    choices = staticmethod(symmetric_choices)

    def extra(self, choices: tuple[int, ...]) -> int:
        return 0
