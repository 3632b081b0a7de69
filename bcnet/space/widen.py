"""Widen the tensors of a network: a supernet's extra channels (BCNetV2), or a wider network.

In: a network's tensors and its space. Out: tensors with more channels per group. The first channels are the
network's own, so a left path with its widths is the network itself.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bcnet.space.extract import tensors_of, with_state
from bcnet.space.importance import reordered
from bcnet.space.subnet import State
from bcnet.space.width_space import WidthSpace

NOISE = 0.01  # relative noise of copied values, which lets the copies diverge in training


def grown(
    tensors: Mapping[str, Tensor],
    space: WidthSpace,
    sizes: Sequence[int],
    *,
    copies: bool = False,
    seed: int = 0,
) -> State:
    """The tensors with `sizes` channels per group, which must not be fewer than the space's.

    The values of new channels are sampled from those of the tensor, for the same distribution in untrained
    weights. With `copies`, for trained weights, channel l + i of a group of l is channel i with a little
    noise: any l adjacent channels of BCNetV2's l + b are then approximately the network.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    for name, axes in space.dimensions.items():
        for axis, dimension in axes.items():
            if all(s.group is None or sizes[s.group] == space.groups[s.group].channels for s in dimension):
                continue  # unchanged
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
    """A supernet's tensors, copied from the network; groups with extra channels are widened (see `grown`).

    `order` first reorders each group's channels (see `importance.channel_order`).
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
    """The network with `factor` times the channels in every group: the same code with wider tensors.

    Searching it at the original network's cost can improve on the original (BCNet, section 4:
    EfficientNet-B0). Channels are rounded to `channel_multiple` if the group's are a multiple of it.
    """
    base = space.without_extra()
    sizes = []
    for group in base.groups:
        step = math.lcm(group.unit, channel_multiple)
        step = group.unit if group.channels % step else step
        sizes.append(max(group.channels, round(group.channels * factor / step) * step))
    return with_state(model, base, grown(tensors_of(model), base, sizes, copies=copies, seed=seed))
