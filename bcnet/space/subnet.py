"""A subnet: which channels of each group a narrow network takes from the supernet.

In: widths and a side, or the channels themselves. Out: a `Subnet`, and its part of any tensor. `extract.py`
runs a network with these tensors, and makes an ordinary network of them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from bcnet.errors import SpaceError
from bcnet.plain import counted
from bcnet.space.channel_rules import Side
from bcnet.space.width_space import Dimension, WidthGroup, Widths, WidthSpace

State = dict[str, Tensor]
ChannelSet = range | tuple[int, ...]  # neighbours, whose part of a tensor is a view; or sorted indices


@dataclass(frozen=True)
class Subnet:
    """The channels that a narrow network takes, one set a group, in the order of the space's groups.

    The left and the right path of some widths are two subnets; the channels that a pruning criterion keeps
    are another. Channels are counted in the supernet's tensors, or in the network's own, which lack extra
    channels: whichever the subnet is taken from.
    """

    channels: tuple[ChannelSet, ...]

    @classmethod
    def at(cls, space: WidthSpace, widths: Widths, side: Side = "left") -> "Subnet":
        """The channels that each group's width takes on that side of the supernet."""
        widths = space.check(widths)
        if side == "left":
            return cls(tuple(map(range, widths)))
        if side != "right":
            raise SpaceError(f"a path's side is left or right, not '{side}'")
        totals = (group.supernet_channels for group in space.groups)
        return cls(tuple(range(total - width, total) for total, width in zip(totals, widths, strict=True)))

    @classmethod
    def keeping(cls, space: WidthSpace, channels: Sequence[Iterable[int] | Tensor]) -> "Subnet":
        """The subnet with these channels, in any order, of each group of the supernet.

        Raises SpaceError where they are not distinct channels of their group, in whole units.
        """
        if len(channels) != len(space.groups):
            given = counted(len(channels), "group")
            raise SpaceError(f"channels of {given} given, the space has {len(space.groups)}")
        return cls(tuple(_channel_set(*pair) for pair in zip(space.groups, channels, strict=True)))

    @property
    def widths(self) -> Widths:
        """How many channels each group has."""
        return Widths(map(len, self.channels))


def _channel_set(group: WidthGroup, channels: Iterable[int] | Tensor) -> ChannelSet:
    given = channels.tolist() if isinstance(channels, Tensor) else channels
    own = tuple(sorted(map(int, given)))
    units = {channel // group.unit for channel in own}
    if not own or len(set(own)) != len(own) or len(units) * group.unit != len(own):
        whole = f", in whole units of {group.unit}" if group.unit > 1 else ""
        raise SpaceError(f"the channels to keep of group '{group.name}' must be distinct indices{whole}")
    last = group.supernet_channels - 1
    if own[0] < 0 or own[-1] > last:
        raise SpaceError(f"the channels to keep of group '{group.name}' are not all within 0..{last}")
    return range(own[0], own[-1] + 1) if own[-1] - own[0] + 1 == len(own) else own


def neighbours(channels: ChannelSet) -> Iterator[tuple[int, int]]:
    """The channels as ranges [low, high), in ascending order."""
    if isinstance(channels, range):
        yield channels.start, channels.stop
        return
    for _, run in groupby(enumerate(channels), key=lambda pair: pair[1] - pair[0]):
        own = [channel for _, channel in run]
        yield own[0], own[-1] + 1


def ranges(space: WidthSpace, dimension: Dimension, subnet: Subnet) -> list[tuple[int, int]]:
    """The ranges [low, high) of a supernet tensor's dimension that the subnet uses, in order.

    Adjacent ranges are merged, so that a tensor that is used as a whole is a view, not a copy.
    """
    taken: list[tuple[int, int]] = []
    start = 0
    for segment in dimension:
        if segment.group is None:
            own, total = [(0, 1)], 1
        else:
            own = list(neighbours(subnet.channels[segment.group]))
            total = space.groups[segment.group].supernet_channels
        for first, last in own:
            low, high = (start + channel * segment.size for channel in (first, last))
            if taken and taken[-1][1] == low:
                low, _ = taken.pop()
            taken.append((low, high))
        start += total * segment.size
    return taken


def subnet_state(state: Mapping[str, Tensor], space: WidthSpace, subnet: Subnet) -> State:
    """The subnet's part of every tensor of a supernet's state: views, or copies where channels lie apart."""
    axes, distinct = space.distinct
    member = membership(space, subnet)
    parts: list[tuple[int, int] | Tensor] = []  # a start and a length, or indices
    for dimension, entries in zip(distinct, space.entries, strict=True):
        if len(dimension) == 1 and len(own := ranges(space, dimension, subnet)) == 1:
            low, high = own[0]
            parts.append((low, high - low))
        else:
            taken = np.flatnonzero(member[entries])
            parts.append((0, len(taken)) if len(taken) == len(entries) else torch.from_numpy(taken))
    result = dict(state)
    for name, along in axes.items():
        tensor = state.get(name)
        if tensor is None:
            continue
        for axis, number in along:
            part = parts[number]
            if isinstance(part, Tensor):
                tensor = tensor.index_select(axis, part.to(tensor.device))
            elif part[1] != tensor.shape[axis]:
                start, length = part
                # The same view; indexing is faster than `narrow`.
                tensor = tensor[start : start + length] if axis == 0 else tensor.narrow(axis, start, length)
        result[name] = tensor
    return result


def membership(space: WidthSpace, subnet: Subnet) -> np.ndarray:
    """Whether the subnet takes each channel of the supernet, group after group, and last a fixed entry's."""
    starts = space.starts
    member = np.zeros(starts[-1] + 1, bool)
    member[-1] = True
    for start, channels in zip(starts, subnet.channels, strict=False):
        if isinstance(channels, range):
            member[start + channels.start : start + channels.stop] = True
        else:
            member[start + np.array(channels)] = True
    return member
