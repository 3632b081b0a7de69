"""How important channels are by their weights, in which order they go, and which of them are kept.

In: a network's tensors and its space. Out: importance, a value a channel (larger is more important); the
network with its channels in another order, which leaves its output as it is; the subnet of the best.
Criteria that need training images (Taylor, Fisher) are in `training/gradient_importance.py`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from bcnet.errors import SpaceError
from bcnet.space.subnet import State, Subnet
from bcnet.space.width_space import Dimension, WidthGroup, Widths, WidthSpace

Criterion = Literal["l1", "l2", "bn-scale", "fpgm", "taylor", "fisher"]
CRITERIA: tuple[Criterion, ...] = ("fisher", "taylor", "fpgm", "l2", "l1", "bn-scale")
Importances = Mapping[Criterion, Sequence[Tensor]]  # by each criterion, for each group (channels,)
Rows = list[list[Tensor]]  # for each group, of each tensor a matrix (channels, entries of one channel)


def l1(rows: Sequence[Tensor]) -> Tensor:
    """The sum of absolute weights in all layers that make a channel (Li et al., ICLR 2017, section 3.1)."""
    return torch.stack([own.abs().sum(1) for own in rows]).sum(0)


def l2(rows: Sequence[Tensor]) -> Tensor:
    """The norm of a channel's weights in all layers that make it (He et al., IJCAI 2018, section 3.2).

    Coupled layers count as one: the root of the sum of their squares.
    """
    return torch.stack([own.square().sum(1) for own in rows]).sum(0).sqrt()


def fpgm(rows: Sequence[Tensor]) -> Tensor:
    """The sum of a filter's distances to all filters of its layer (FPGM: He et al., CVPR 2019, section 3.3).

    A filter near the geometric median can be replaced by the others. Over coupled layers it is summed.
    """
    return torch.stack([torch.cdist(own, own).sum(1) for own in rows]).sum(0)


def bn_scale(rows: Sequence[Tensor]) -> Tensor:
    """The sum of absolute batch-norm scales (network slimming: Liu et al., ICCV 2017, section 3)."""
    return torch.stack([own.abs().sum(1) for own in rows]).sum(0)


BY_WEIGHTS: dict[Criterion, Callable[[Sequence[Tensor]], Tensor]] = {
    "l1": l1,
    "l2": l2,
    "fpgm": fpgm,
    "bn-scale": bn_scale,
}


def importances(
    model: nn.Module, space: WidthSpace, tensors: Mapping[str, Tensor], by: Criterion
) -> tuple[Tensor, ...]:
    """For each group the importance of its channels (channels,), by a criterion of `BY_WEIGHTS`.

    `tensors` are the network's own, without a supernet's extra channels. `bn-scale` is `l1` in groups
    without batch norm (`without_batch_norm`). Raises SpaceError where a criterion needs training images: see
    `measured_importances`.
    """
    if by not in BY_WEIGHTS:
        raise SpaceError(f"importance by {by} is measured on training images: use measured_importances")
    made = rows_of(space, tensors, made_along(model, space))
    if by != "bn-scale":
        return _by(BY_WEIGHTS[by], made, space)
    scales = rows_of(space, tensors, dict.fromkeys(batch_norm_scales(model), 0))
    return tuple(
        scale if norms else weight
        for norms, scale, weight in zip(
            scales, _by(bn_scale, scales, space), _by(l1, made, space), strict=True
        )
    )


def _by(criterion: Callable[[Sequence[Tensor]], Tensor], rows: Rows, space: WidthSpace) -> tuple[Tensor, ...]:
    return tuple(
        criterion(own) if own else torch.zeros(group.channels)
        for own, group in zip(rows, space.groups, strict=True)
    )


def made_along(model: nn.Module, space: WidthSpace) -> dict[str, int]:
    """The weights of the layers that make the groups' channels, and the axis of these channels."""
    modules = dict(model.named_modules())
    return {
        f"{layer}.weight": int(isinstance(modules.get(layer), nn.modules.conv._ConvTransposeNd))
        for group in space.groups
        for layer in group.layers
    }


def batch_norm_scales(model: nn.Module) -> list[str]:
    """The names of all batch norms' scales."""
    return [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.weight is not None
    ]


def without_batch_norm(model: nn.Module, space: WidthSpace) -> list[str]:
    """The groups none of whose channels has a batch norm with scales."""
    normed = {
        segment.group
        for name in batch_norm_scales(model)
        for segment in space.dimensions.get(name, {}).get(0, ())
    }
    return [group.name for number, group in enumerate(space.groups) if number not in normed]


def rows_of(space: WidthSpace, tensors: Mapping[str, Tensor], axes: Mapping[str, int]) -> Rows:
    """For each group the values of each of its channels, one matrix for each tensor along whose axis it lies.

    What a tensor has of a channel in several places of that axis is one row.
    """
    found: Rows = [[] for _ in space.groups]
    for name, axis in axes.items():
        dimension = space.dimensions.get(name, {}).get(axis)
        if dimension is None or name not in tensors:
            continue
        flat = tensors[name].detach().transpose(0, axis).flatten(1) if tensors[name].ndim > 1 else None
        along = tensors[name].detach()[:, None] if flat is None else flat
        parts: dict[int, list[Tensor]] = {}
        for group, start, stop in stretches(space, dimension):
            if group is not None:
                channels = space.groups[group].channels
                parts.setdefault(group, []).append(along[start:stop].reshape(channels, -1))
        for group, own in parts.items():
            found[group].append(torch.cat(own, 1).float())
    return found


def stretches(space: WidthSpace, dimension: Dimension) -> Iterator[tuple[int | None, int, int]]:
    """The segments of a dimension of the network's own tensors: (group or None, start, stop)."""
    start = 0
    for segment in dimension:
        channels = 1 if segment.group is None else space.groups[segment.group].channels
        yield segment.group, start, start + segment.size * channels
        start += segment.size * channels


def places_of(
    space: WidthSpace, dimension: Dimension, channels: Sequence[Tensor]
) -> Iterator[tuple[int | None, Tensor]]:
    """Of each segment of a dimension of the network's own tensors: (group, where these of its channels lie).

    Of fixed entries: (None, where they lie).
    """
    for (group, start, stop), segment in zip(stretches(space, dimension), dimension, strict=True):
        if group is None:
            yield None, torch.arange(start, stop)
        else:
            yield group, start + _each(channels[group], segment.size)


def channels_of(group: WidthGroup, units: Tensor) -> Tensor:
    """The channels of these units (units,), one unit after the other."""
    return _each(units, group.unit)


def _each(index: Tensor, size: int) -> Tensor:
    return (index[:, None] * size + torch.arange(size)).flatten()


def channel_order(space: WidthSpace, importance: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """For each group the channels in their new order.

    Unilateral: strongest first. Methods with a right side: the strongest at both ends, alternating, and the
    weakest in the middle; strongest first would begin their right paths with the weakest. Groups whose
    channels a layer uses by their positions keep their order.
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
        orders.append(channels_of(group, units))
    return tuple(orders)


def kept_channels(space: WidthSpace, widths: Widths, importance: Sequence[Tensor]) -> Subnet:
    """The subnet of the network's most important channels of each group, as many as the widths say.

    Units are kept or dropped as a whole, by the sum of their channels' importance; of equal ones the first.
    Groups whose channels a layer uses by their positions keep their first ones.
    """
    kept = []
    for group, width, values in zip(space.groups, space.check(widths), importance, strict=True):
        units = values.detach().cpu().reshape(-1, group.unit).sum(1)
        order = torch.arange(len(units)) if group.ordered else units.argsort(descending=True, stable=True)
        kept.append(channels_of(group, order[: width // group.unit]))
    return Subnet.keeping(space.without_extra(), kept)


def reordered(tensors: Mapping[str, Tensor], space: WidthSpace, order: Sequence[Tensor]) -> State:
    """The tensors with every group's channels in that order (channels,), wherever they occur.

    `tensors` are the network's own, without a supernet's extra channels. Raises SpaceError where the order
    does not have every channel once, or separates channels of one unit.
    """
    orders = [own.detach().cpu().long() for own in order]
    _check_orders(space, orders)
    state = dict(tensors)
    for name, axes in space.dimensions.items():
        if name not in state:
            continue
        for axis, dimension in axes.items():
            index = torch.cat([places for _, places in places_of(space, dimension, orders)])
            state[name] = state[name].index_select(axis, index.to(state[name].device))
    return state


def _check_orders(space: WidthSpace, orders: Sequence[Tensor]) -> None:
    widths = Subnet.keeping(space.without_extra(), orders).widths
    for group, own, width in zip(space.groups, orders, widths, strict=True):
        units = own.reshape(-1, group.unit)
        if width != group.channels or not torch.equal(units, units[:, :1] + torch.arange(group.unit)):
            whole = f", in whole units of {group.unit}" if group.unit > 1 else ""
            raise SpaceError(f"the order of group '{group.name}' must have all of its channels{whole}")
