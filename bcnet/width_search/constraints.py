"""Parameters, multiply-accumulates and bytes of weights as polynomials of the widths, and bounds on costs.

In: a space, or the arrays of an ONNX file. Out: exact counts for one network, or for thousands at once.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from bcnet.onnx_export.onnx_supernet import OnnxSupernet
from bcnet.runtimes.onnx_binary import SCALE_BYTES, one_bit_weights
from bcnet.space.width_space import Dimension, Widths, WidthSpace

MEGABYTE = 1_000_000
Pairwise = tuple[float, list[tuple[tuple[int, ...], np.ndarray]]]


class Priced(Protocol):
    """What a network costs, in any unit."""

    def __call__(self, widths: Widths, /) -> float:
        """The cost of one network."""

    def price_many(self, networks: np.ndarray, /) -> np.ndarray:
        """The costs (N,) of networks with widths (N, groups)."""

    def pairwise(self, choices: Sequence[Sequence[int]], /) -> Pairwise:
        """The costs as a sum of an offset and arrays: (offset, [(groups, cost by choice indices)])."""


class Cost:
    """The sum of the tensors' sizes. A size is a product of axes, an axis a sum of groups' channels.

    Expanded, it has a constant, a coefficient for each group and for each pair of groups (including a group
    with itself), and rarely for three groups or more. Counts, of eighths, too, are exact up to 2^50.
    """

    def __init__(self, groups: int, tensors: Iterable[tuple[float, Sequence[Dimension]]]) -> None:
        """`tensors`: for each the product of its fixed axes, and its searchable axes."""
        terms: dict[tuple[int, ...], float] = {}
        for factor, axes in tensors:
            for segments in itertools.product(*axes):
                followed = tuple(sorted(s.group for s in segments if s.group is not None))
                size = factor * math.prod(segment.size for segment in segments)
                terms[followed] = terms.get(followed, 0) + size
        self.constant: float = terms.pop((), 0)
        self._linear = np.zeros(groups)
        self._pairs = np.zeros((groups, groups))
        self._others: dict[tuple[int, ...], float] = {}
        for followed, size in terms.items():
            if len(followed) == 1:
                self._linear[followed] += size
            elif len(followed) == 2:
                self._pairs[followed] += size
            else:
                self._others[followed] = size

    def price_many(self, networks: np.ndarray) -> np.ndarray:
        """The counts (N,) of networks with widths (N, groups)."""
        widths = np.asarray(networks, dtype=np.float64)
        total = self.constant + widths @ self._linear + ((widths @ self._pairs) * widths).sum(axis=1)
        for followed, size in self._others.items():
            total += size * widths[:, list(followed)].prod(axis=1)
        return np.asarray(total)

    def __call__(self, widths: Sequence[int]) -> int:
        """The count of one network; a part counts as a whole one."""
        return math.ceil(float(self.price_many(np.array([widths]))[0]))

    def pairwise(self, choices: Sequence[Sequence[int]]) -> Pairwise:
        """The counts as a sum of an offset and arrays: (offset, [(groups, count by choice indices)])."""
        own = [np.array(group, dtype=np.float64) for group in choices]
        terms: dict[tuple[int, ...], float] = {(int(g),): self._linear[g] for g in self._linear.nonzero()[0]}
        terms |= {(int(a), int(b)): self._pairs[a, b] for a, b in zip(*self._pairs.nonzero(), strict=True)}
        arrays: dict[tuple[int, ...], np.ndarray] = {}
        for followed, size in (terms | self._others).items():
            groups = tuple(sorted(set(followed)))
            powers = [own[group] ** followed.count(group) for group in groups]
            array = np.full([len(power) for power in powers], float(size))
            for power in np.ix_(*powers):
                array = array * power
            arrays[groups] = arrays[groups] + array if groups in arrays else array
        return float(self.constant), list(arrays.items())


def parameters(space: WidthSpace) -> Cost:
    """The number of parameters, without buffers: `space.params` for thousands of networks."""
    return Cost(len(space.groups), (_tensor(space, name, 1) for name in space.parameters))


def multiply_accumulates(space: WidthSpace) -> Cost:
    """Multiply-accumulates per image of convolutions and linear layers: `space.macs` for many networks."""
    tensors = []
    for layer in space.layers:
        size, axes = _tensor(space, layer.weight, layer.positions)
        tensors.append((size, [*axes, layer.each] if layer.each else axes))
    return Cost(len(space.groups), tensors)


def weight_bytes(graph: OnnxSupernet, one_bit: bool = False) -> Cost:
    """Bytes of all constants in the exported file, at the file's precision.

    With `one_bit` a weight of a binary convolution takes one bit, and each of its output channels a scale of
    four bytes, as in `packed_bytes` of a verified file.
    """
    arrays, dimensions = graph.stored
    packed = one_bit_weights(graph.proto.graph, graph.arrays) if one_bit else frozenset()
    tensors: list[tuple[float, Sequence[Dimension]]] = []
    for name, array in arrays.items():
        axes = dimensions.get(name, {})
        fixed = math.prod(size for axis, size in enumerate(array.shape) if axis not in axes)
        tensors.append((fixed * (1 / 8 if name in packed else array.itemsize), tuple(axes.values())))
        if name in packed:
            channels = (axes[0],) if 0 in axes else ()
            tensors.append((SCALE_BYTES * (1 if channels else len(array)), channels))
    return Cost(len(graph.space.groups), tensors)


def _tensor(space: WidthSpace, name: str, each: int) -> tuple[int, Sequence[Dimension]]:
    axes = space.dimensions.get(name, {})
    fixed = math.prod(size for axis, size in enumerate(space.shapes[name]) if axis not in axes)
    return each * fixed, tuple(axes.values())


@dataclass(frozen=True)
class Bound:
    """An upper `limit` on a `cost`, shown in multiples of `unit`; `key` is its name in [search]."""

    key: str
    name: str
    cost: Priced
    limit: float
    unit: int = 1
    of_device: ClassVar[bool] = False  # whether the bound is a latency on a further device

    def holds(self, widths: Widths) -> bool:
        """Whether the network is within the limit."""
        return self.cost(widths) <= self.limit

    def least(self, space: WidthSpace) -> float:
        """The lowest cost of a network in the space."""
        return self.cost(space.smallest())

    def refusal(self, least: float) -> str:
        """The message if no network is within the limit; `least` is the lowest cost."""
        return (
            f"no network has at most {self.limit / self.unit:,.10g} {self.name}: the narrowest has "
            f"{self.shown(least)}; raise search.{self.key}, or widen the choices "
            "(space.min_width, space.bins)"
        )

    def shown(self, count: float) -> str:
        """A count in its unit; megabytes are rounded up to 0.001, so that the shown value suffices."""
        if self.unit == 1:
            return f"{math.floor(count):,}"
        return f"{math.ceil(round(count / self.unit * 1000, 6)) / 1000:,.3f}"
