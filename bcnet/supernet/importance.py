"""Channels in the order of their importance: a supernet made from trained weights keeps what they know.

In: a network's tensors and its space. Out: the same network with its channels reordered: left paths begin
with the strongest. The full network's output does not change.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from bcnet.errors import SpaceError
from bcnet.supernet.paths import State
from bcnet.supernet.space import WidthSpace

Importance = Literal["l1", "bn-scale", "taylor"]


def importances(
    model: nn.Module,
    space: WidthSpace,
    tensors: Mapping[str, Tensor],
    by: Importance,
    gradients: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """For each group the importance of its channels, (channels,); larger is more important.

    `l1` is the sum of a channel's absolute weights in the layers that make it (Li et al., ICLR 2017);
    `bn-scale` that of its batch-norm scales (Liu et al., ICCV 2017), `l1` where a group has none; `taylor`
    the absolute sum of its weights times their gradients (Molchanov et al., CVPR 2019), for which `gradients`
    of the loss are given.
    """
    made = {f"{layer}.weight": 0 for group in space.groups for layer in group.layers}
    scales = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvTransposeNd) and f"{name}.weight" in made:
            made[f"{name}.weight"] = 1
        if isinstance(module, nn.modules.batchnorm._NormBase):
            scales[f"{name}.weight"] = 0
    if by == "taylor":
        if gradients is None:
            raise SpaceError("an order by Taylor importance needs gradients")
        products = {name: tensors[name] * gradients[name] for name in made if name in gradients}
        return _sums(space, products, made)
    weights = _sums(space, {name: tensors[name].abs() for name in made if name in tensors}, made)
    if by == "l1":
        return weights
    found = _sums(space, {name: tensors[name].abs() for name in scales if name in tensors}, scales)
    return tuple(scale if bool(scale.any()) else weight for scale, weight in zip(found, weights, strict=True))


def _sums(space: WidthSpace, values: Mapping[str, Tensor], axes: Mapping[str, int]) -> tuple[Tensor, ...]:
    """For each group, absolute sums of the values of each of its channels, over all tensors."""
    sums = [torch.zeros(group.channels) for group in space.groups]
    for name, value in values.items():
        axis = axes[name]
        along = value.transpose(0, axis).flatten(1).sum(1) if value.ndim > 1 else value
        start = 0
        for segment in space.dimensions.get(name, {}).get(axis, ()):
            if segment.group is None:
                start += segment.size
                continue
            channels = space.groups[segment.group].channels
            part = along[start : start + segment.size * channels]
            sums[segment.group] += part.reshape(channels, segment.size).sum(1).abs()
            start += segment.size * channels
    return tuple(sums)


def channel_order(space: WidthSpace, importance: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """For each group the channels in their new order.

    Unilateral: strongest first. Methods with a right side: the strongest at both ends, by turns, the weakest
    in the middle; strongest first would begin their right paths with the weakest. Groups whose channels a
    layer uses by their positions keep their order.
    """
    orders = []
    for group, values in zip(space.groups, importance, strict=True):
        if group.ordered:
            orders.append(torch.arange(group.channels))
            continue
        # Channels of one unit stay together.
        units = values.reshape(-1, group.unit).sum(1).argsort(descending=True, stable=True)
        if len(space.rule.sides) > 1:
            units = torch.cat((units[0::2], units[1::2].flip(0)))
        orders.append((units[:, None] * group.unit + torch.arange(group.unit)).flatten())
    return tuple(orders)


def reordered(tensors: Mapping[str, Tensor], space: WidthSpace, order: Sequence[Tensor]) -> State:
    """The tensors with every group's channels in that order, wherever they occur."""
    state = dict(tensors)
    for name, axes in space.dimensions.items():
        for axis, dimension in axes.items():
            index, start = [], 0
            for segment in dimension:
                if segment.group is None:
                    index.append(torch.arange(start, start + segment.size))
                    start += segment.size
                    continue
                channels = order[segment.group]
                entries = channels[:, None] * segment.size + torch.arange(segment.size)
                index.append(start + entries.flatten())
                start += segment.size * len(channels)
            state[name] = state[name].index_select(axis, torch.cat(index))
    return state
