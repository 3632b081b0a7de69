"""AutoSlim's rule: a width is always the leftmost channels, [0, c)."""

from typing import final

from bcnet.space.channel_rules import ChannelRule, channel_rule, largest_step, symmetric_choices


@final
@channel_rule
class Unilateral(ChannelRule):
    """The leftmost channels."""

    name = "unilateral"
    summary = "the first channels"
    paper = "AutoSlim (arXiv 1903.11728)"
    sides = ("left",)

    def choices(
        self, channels: int, bins: int, multiple: int, minimum: int, unit: int = 1
    ) -> tuple[int, ...]:
        return symmetric_choices(channels, bins, minimum, largest_step(channels, multiple, unit))

    def extra(self, choices: tuple[int, ...]) -> int:
        return 0

    def complement(self, choices: tuple[int, ...], width: int) -> int | None:
        return None
