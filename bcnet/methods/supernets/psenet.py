"""PSE-Net: a width takes its first channels; several widths train at once, each on its part of the batch.

`bcnet/training/parts.py` trains them. Mutations of the search draw widths from the prior, the distributions
of its first generation. Only the paper's abstract and a summary were available to us; what is our own choice:
docs/concepts/parallel-subnets.md.
"""

from typing import final

from bcnet.space.channel_rules import ChannelRule, channel_rule, symmetric_choices


@final
@channel_rule
class PSENet(ChannelRule):
    """The leftmost channels, of several widths in each step."""

    name = "psenet"
    summary = "the first channels; several widths share each batch, in one forward and backward pass"
    paper = "PSE-Net (Neural Networks 2024, arXiv 2408.16233)"
    sides = ("left",)
    parallel = True
    prior_mutation = True
    choices = staticmethod(symmetric_choices)

    def extra(self, choices: tuple[int, ...]) -> int:
        return 0
