"""CafeNet: a width takes its first channels but for a few near its edge, of which it takes some.

Which ones is learned: `bcnet/space/free_channels.py` has the sets of channels, and what of it is our choice.
"""

from typing import final

from bcnet.space.channel_rules import ChannelRule, channel_rule, symmetric_choices


@final
@channel_rule
class CafeNet(ChannelRule):
    """The leftmost channels, the last of which are free."""

    name = "cafenet"
    summary = "the first channels, of which those near the edge are chosen among their neighbours by the loss"
    paper = "CafeNet (ICLR 2021, arXiv 2102.05258)"
    sides = ("left",)
    free = True
    choices = staticmethod(symmetric_choices)

    def extra(self, choices: tuple[int, ...]) -> int:
        return 0

    def complement(self, choices: tuple[int, ...], width: int) -> int | None:
        return None
