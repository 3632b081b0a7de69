"""The width space of a network: its groups of channels, and the size and cost at any widths.

In: groups and, for every parameter and buffer, the groups of its dimensions. Out: shapes, parameters and
multiply-accumulates at any widths. `discover.py` creates the space of a network.
"""

import math
import operator
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import SupportsIndex

import numpy as np
from pydantic import TypeAdapter, ValidationError

from bcnet.errors import SpaceError
from bcnet.registry import SUPERNETS
from bcnet.space.channel_rules import ChannelRule


class Widths(tuple[int, ...]):
    """One channel count per group, in the order of the space's groups; prints as 16-32-64."""

    __slots__ = ()

    def __str__(self) -> str:
        return "-".join(map(str, self))

    def __repr__(self) -> str:
        return f"Widths({self})"


@dataclass(frozen=True)
class WidthGroup:
    """Channels of several layers that must have the same width.

    `layers` are the modules that produce them; `choices` are in ascending order, up to `channels`; `extra`
    channels exist only in the supernet (BCNetV2). `unit` is the granularity: every width is a multiple of it,
    e.g. the channels per group of a grouped convolution. `repeat` is the number of copies of the channels in
    each layer: the number of groups of a convolution that is narrowed inside each group. `mixed`: a layer
    normalises across the channels, so a narrow network is not the wide one with masked channels. `ordered`: a
    layer depends on the positions of the channels, so they keep their order. `original` is the width before
    the space was widened, if it was.
    """

    name: str
    channels: int
    choices: tuple[int, ...]
    layers: tuple[str, ...]
    extra: int = 0
    original: int | None = None
    unit: int = 1
    repeat: int = 1
    mixed: bool = False
    ordered: bool = False

    @property
    def supernet_channels(self) -> int:
        """Channels of this group in the supernet."""
        return self.channels + self.extra


@dataclass(frozen=True)
class Segment:
    """A part of a dimension: `size` entries for each channel of `group`, or `size` fixed ones (None)."""

    group: int | None
    size: int


Dimension = tuple[Segment, ...]


@dataclass(frozen=True)
class Sized:
    """A module with an attribute that holds a size, which depends on an axis of a tensor.

    The attribute is the length of that axis divided by `each` (for `groups`, the channels per group); if
    `each` is 0 it is the tensor's shape (`normalized_shape`). If no axis of a tensor has that size, it is the
    length of the dimension `follows`, divided by `each`. `item` is the index in an attribute with several
    sizes.
    """

    module: str
    attribute: str
    tensor: str
    axis: int
    each: int
    follows: Dimension = ()
    item: int | None = None


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer: its weight's name and its number of output positions per image.

    If it runs along an axis of channels, there are `positions` for each entry of the dimension `each`.
    """

    weight: str
    positions: int
    each: Dimension = ()


@dataclass(frozen=True)
class Frozen:
    """Channels that keep their width, and why."""

    name: str
    channels: int
    reason: str


@dataclass(frozen=True)
class WidthSpace:
    """The groups of a network, and how its tensors depend on them.

    `dimensions` maps a parameter's or buffer's name to its searchable dimensions {axis: segments};
    `shapes` has every tensor's full shape; `layers` and `groups` are in order of execution.
    """

    method: str
    groups: tuple[WidthGroup, ...]
    dimensions: dict[str, dict[int, Dimension]]
    shapes: dict[str, tuple[int, ...]]
    parameters: tuple[str, ...]
    layers: tuple[Layer, ...]
    sized: tuple[Sized, ...]
    frozen: tuple[Frozen, ...]

    @cached_property
    def rule(self) -> ChannelRule:
        """The method that determines which channels a width uses."""
        return SUPERNETS[self.method]

    @cached_property
    def distinct(self) -> tuple[dict[str, tuple[tuple[int, int], ...]], tuple[Dimension, ...]]:
        """For each tensor its searchable axes, as (axis, index of a dimension), and the distinct dimensions.

        Many tensors share a dimension: the entries of a path are computed once for all of them.
        """
        numbers: dict[Dimension, int] = {}
        axes = {
            name: tuple((axis, numbers.setdefault(d, len(numbers))) for axis, d in found.items())
            for name, found in self.dimensions.items()
        }
        return axes, tuple(numbers)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where the supernet's channels of each group begin, counted over all groups; last their number."""
        return tuple(accumulate((group.supernet_channels for group in self.groups), initial=0))

    @cached_property
    def entries(self) -> tuple[np.ndarray, ...]:
        """For each distinct dimension the channel of every entry, counted over all groups (`starts`).

        Fixed entries belong to one more channel, the last.
        """
        return tuple(
            np.concatenate(
                [
                    np.full(segment.size, self.starts[-1])
                    if segment.group is None
                    else np.arange(*self.starts[segment.group : segment.group + 2]).repeat(segment.size)
                    for segment in dimension
                ]
            )
            for dimension in self.distinct[1]
        )

    def widths_of(self, shapes: Mapping[str, Sequence[int]]) -> list[int]:
        """The groups' widths in a network with tensors of these shapes; 0 if no tensor determines it."""
        found = [0] * len(self.groups)
        for group, name, axis in self._witnesses:
            dimension = self.dimensions[name][axis]
            own = sum(segment.size for segment in dimension if segment.group == group)
            found[group] = (shapes[name][axis] - length(dimension, found)) // own
        return found

    @cached_property
    def _witnesses(self) -> tuple[tuple[int, str, int], ...]:
        return witnesses(self.dimensions)

    def without_extra(self) -> "WidthSpace":
        """The space without the extra channels of a supernet."""
        if not any(group.extra for group in self.groups):
            return self
        return replace(self, groups=tuple(replace(group, extra=0) for group in self.groups))

    def with_choices(self, choices: Sequence[tuple[int, ...]]) -> "WidthSpace":
        """The space with other choices for each group, and the extra channels that these need."""
        groups = (
            replace(group, choices=own, extra=self.rule.extra(own))
            for group, own in zip(self.groups, choices, strict=True)
        )
        return replace(self, groups=tuple(groups))

    def narrowed(self, widths: Widths) -> "WidthSpace":
        """The space of the small network of these widths, which has no others."""
        groups = tuple(
            replace(group, channels=width, choices=(width,), extra=0, original=None)
            for group, width in zip(self.groups, self.check(widths), strict=True)
        )
        shapes = {name: self.shape(name, widths) for name in self.shapes}
        return replace(self, groups=groups, shapes=shapes)

    def largest(self) -> Widths:
        """All groups at their widest choice."""
        return Widths(group.channels for group in self.groups)

    def original(self) -> Widths:
        """The widths of the network as it was given: the widest, unless the space was widened."""
        return Widths(group.channels if group.original is None else group.original for group in self.groups)

    def smallest(self) -> Widths:
        """All groups at their narrowest choice."""
        return Widths(group.choices[0] for group in self.groups)

    def random(self, rng: SupportsIndex | random.Random | np.random.Generator) -> Widths:
        """All groups at random choices, uniformly and independently.

        `rng` is a seed (any integer), or a generator of Python or NumPy, whose state advances.
        """
        if isinstance(rng, random.Random):
            return Widths(rng.choice(group.choices) for group in self.groups)
        generator = (
            rng if isinstance(rng, np.random.Generator) else np.random.default_rng(operator.index(rng))
        )
        return Widths(group.choices[generator.integers(len(group.choices))] for group in self.groups)

    def uniform(self, ratio: float, multiple: int = 1) -> Widths:
        """All groups at `ratio` of their channels, rounded to multiples of `multiple`, and at least that."""

        def rounded(group: WidthGroup) -> int:
            step = math.lcm(multiple, group.unit)
            return min(group.channels, max(step, round(group.channels * ratio / step) * step))

        return Widths(rounded(group) for group in self.groups)

    def check(self, widths: Iterable[int]) -> Widths:
        """`widths` as Widths, if they are valid: one per group, from 1 to the group's channels."""
        checked = Widths(widths)
        if len(checked) != len(self.groups):
            raise SpaceError(f"{len(checked)} widths given, the space has {len(self.groups)} groups")
        for group, width in zip(self.groups, checked, strict=True):
            if not 1 <= width <= group.channels:
                raise SpaceError(f"width {width} of group '{group.name}' is not within 1..{group.channels}")
            if width % group.unit:
                raise SpaceError(
                    f"width {width} of group '{group.name}' is not a multiple of {group.unit}: its channels "
                    "are cut in whole groups"
                )
        return checked

    def shape(self, name: str, widths: Widths) -> tuple[int, ...]:
        """The shape of a tensor in the network of these widths."""
        shape = list(self.shapes[name])
        for axis, dimension in self.dimensions.get(name, {}).items():
            shape[axis] = length(dimension, widths)
        return tuple(shape)

    def params(self, widths: Widths) -> int:
        """The number of parameters of the network with these widths, without buffers."""
        return sum(int(np.prod(self.shape(name, widths))) for name in self.parameters)

    def macs(self, widths: Widths) -> int:
        """Multiply-accumulates per image of convolutions and linear layers."""
        return sum(
            int(np.prod(self.shape(layer.weight, widths)))
            * layer.positions
            * (length(layer.each, widths) if layer.each else 1)
            for layer in self.layers
        )

    def searchable_macs(self) -> float:
        """The fraction of the full network's multiply-accumulates in layers that can be narrowed."""
        widest = self.largest()
        full = {
            layer: int(np.prod(self.shapes[layer.weight]))
            * layer.positions
            * (length(layer.each, widest) if layer.each else 1)
            for layer in self.layers
        }
        return sum(full[layer] for layer in self.layers if layer.weight in self.dimensions) / sum(
            full.values()
        )

    def searchable_params(self) -> float:
        """The fraction of the full network's parameters in tensors that can be narrowed."""
        full = {name: int(np.prod(self.shapes[name])) for name in self.parameters}
        return sum(full[name] for name in self.parameters if name in self.dimensions) / sum(full.values())

    def to_json(self) -> str:
        """The space as JSON text."""
        return _ADAPTER.dump_json(self, indent=1).decode()

    @classmethod
    def from_json(cls, text: str) -> "WidthSpace":
        """The space of a text by `to_json`. Raises SpaceError for another text."""
        try:
            return _ADAPTER.validate_json(text)
        except ValidationError as cause:
            raise SpaceError(f"not a width space of this version: {cause.errors()[0]['msg']}") from None


def length(dimension: Dimension, widths: Sequence[int]) -> int:
    """The length of a dimension in the network with these widths."""
    return sum(
        segment.size if segment.group is None else segment.size * widths[segment.group]
        for segment in dimension
    )


def witnesses(dimensions: dict[str, dict[int, Dimension]]) -> tuple[tuple[int, str, int], ...]:
    """(group, tensor, axis): the axis determines the group's width, given those of the groups before it."""
    found: dict[int, tuple[int, str, int]] = {}
    left = [
        (name, axis, {segment.group for segment in dimension if segment.group is not None})
        for name, axes in dimensions.items()
        for axis, dimension in axes.items()
    ]
    while True:
        known = len(found)
        for name, axis, groups in left:
            unknown = [group for group in groups if group not in found]
            if len(unknown) == 1:
                found[unknown[0]] = (unknown[0], name, axis)
        if len(found) == known:
            return tuple(found.values())


_ADAPTER: TypeAdapter[WidthSpace] = TypeAdapter(WidthSpace)


def shares(space: WidthSpace) -> dict[int, set[int]]:
    """For each group the others that share a layer with it, i.e. a weight of exactly these two groups.

    Weights of three or more groups, after a concatenation, have too many combinations to cover them all.
    """
    meets: dict[int, set[int]] = {index: set() for index in range(len(space.groups))}
    for layer in space.layers:
        present = {
            segment.group
            for dimension in space.dimensions.get(layer.weight, {}).values()
            for segment in dimension
            if segment.group is not None
        }
        if len(present) == 2:
            for group in present:
                meets[group] |= present - {group}
    return meets
