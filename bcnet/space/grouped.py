"""How grouped convolutions are narrowed: what the trace of a network and the rows of a table agree on."""

EVEN_GROUPS = 4


def narrowed_evenly(groups: int, in_channels: int) -> bool:
    """Whether every group of a convolution keeps the same part of its channels; else whole groups go.

    Depthwise convolutions, and those of more than four groups, are narrowed by whole groups.
    """
    return groups == 1 or (groups <= EVEN_GROUPS and groups != in_channels)
