"""AutoSlim's rule: a width is always the leftmost channels, [0, c)."""

from typing import final

from bcnet.space.channel_rules import ChannelRule, channel_rule, symmetric_choices


@final
@channel_rule
class Unilateral(ChannelRule):
    """The leftmost channels."""

    name = "unilateral"
    summary = "the first channels"
    paper = "AutoSlim (arXiv 1903.11728)"
    sides = ("left",)
    choices = staticmethod(symmetric_choices)

    def extra(self, choices: tuple[int, ...]) -> int:
        return 0
