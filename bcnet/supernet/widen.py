"""Wider tensors than a network has: a supernet's extra channels (BCNetV2), or a wider network throughout.

In: a network's tensors and its space. Out: tensors with more channels a group. The first channels are the
network's own, so that a left path of its own widths is the network itself.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bcnet.supernet.importance import reordered
from bcnet.supernet.paths import State, tensors_of, with_state
from bcnet.supernet.space import WidthSpace

NOISE = 0.01  # of a copied value: copies are near to what is known, and yet can part


def grown(
    tensors: Mapping[str, Tensor],
    space: WidthSpace,
    sizes: Sequence[int],
    *,
    copies: bool = False,
    seed: int = 0,
) -> State:
    """The tensors with `sizes` channels a group; none may have fewer than the space's.

    New channels are drawn from the values that the tensor already has: the same distribution, for weights
    that are still to be trained. With `copies`, channel l + i of a group of l is channel i with a little
    noise, for weights that know something: any l neighbours of BCNetV2's l + b channels are the network.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    for name, axes in space.dimensions.items():
        for axis, dimension in axes.items():
            if all(s.group is None or sizes[s.group] == space.groups[s.group].channels for s in dimension):
                continue  # nothing is added: a copy is enough
            parts, start = [], 0
            for segment in dimension:
                channels = 1 if segment.group is None else space.groups[segment.group].channels
                own = state[name].narrow(axis, start, segment.size * channels)
                parts.append(own)
                start += own.shape[axis]
                more = 0 if segment.group is None else (sizes[segment.group] - channels) * segment.size
                if more > 0:
                    new = _copied if copies else _drawn
                    parts.append(new(own, axis, more, generator))
            state[name] = torch.cat(parts, axis)
    return state


def _drawn(own: Tensor, axis: int, count: int, generator: torch.Generator) -> Tensor:
    shape = list(own.shape)
    shape[axis] = count
    index = torch.randint(own.numel(), (math.prod(shape),), generator=generator)
    return own.flatten()[index].reshape(shape)


def _copied(own: Tensor, axis: int, count: int, generator: torch.Generator) -> Tensor:
    copy = own.index_select(axis, torch.arange(count) % own.shape[axis])
    if not copy.is_floating_point():
        return copy
    return copy * (1 + NOISE * torch.randn(copy.shape, generator=generator))


def supernet_state(
    model: nn.Module,
    space: WidthSpace,
    seed: int = 0,
    *,
    order: Sequence[Tensor] | None = None,
    copies: bool = False,
) -> State:
    """A supernet's tensors, copied from the network; groups with extra channels are grown (see `grown`).

    `order` rearranges each group's channels first (see `importance.channel_order`).
    """
    tensors = tensors_of(model)
    if order is not None:
        tensors = reordered(tensors, space, order)
    return grown(
        tensors, space, [group.supernet_channels for group in space.groups], copies=copies, seed=seed
    )


def widened(
    model: nn.Module,
    space: WidthSpace,
    factor: float,
    *,
    channel_multiple: int = 8,
    copies: bool = False,
    seed: int = 0,
) -> nn.Module:
    """The network with `factor` times the channels in every group: its own code, wider tensors.

    A search of it at the network's own cost can beat the network (BCNet, section 4: EfficientNet-B0).
    Channels are rounded to `channel_multiple` where the group's are a multiple of it.
    """
    base = space.without_extra()
    sizes = []
    for group in base.groups:
        step = math.lcm(group.unit, channel_multiple)
        step = group.unit if group.channels % step else step
        sizes.append(max(group.channels, round(group.channels * factor / step) * step))
    return with_state(model, base, grown(tensors_of(model), base, sizes, copies=copies, seed=seed))
