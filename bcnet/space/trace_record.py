"""The record of a traced network: the atom of every entry of its tensors, and which atoms are united.

In: a network's tensors, and the relations of inputs and outputs from the rules for operators
(`trace_rules.py`). Out: a `Trace` with equivalence classes of atoms, pinned ones, and the executed layers.

Every entry of a parameter's axis is an atom. A tensor carries planes: integer tensors of its own shape with
the atom of each entry (-1: a fixed entry). An operator that moves entries is applied to the planes as well,
one that combines entries unites their atoms. Planes are constant along most axes and expanded along these, so
they take no memory, and PyTorch itself reshapes or concatenates them.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bcnet.space.trace_planes import ANY, STAYS, along, axes_of, compact, first_along, fits_any, merged

Atoms = tuple[int, int]  # the first atom of an axis and the number of atoms


@dataclass(frozen=True)
class LayerUse:
    """One use of a weight by a convolution or matrix product, at `positions` per image.

    Where channels lie on an axis of the positions, these are `positions` for each entry of `each`, the atoms
    of that axis.
    """

    weight: str
    positions: int
    out_axis: int
    makes_channels: bool
    each: tuple[int, ...] = ()


@dataclass
class Trace:
    """What was recorded of a network, over one or more runs of it."""

    tensors: dict[str, Tensor]
    axes: dict[str, dict[int, Atoms]] = field(default_factory=dict)
    layers: list[LayerUse] = field(default_factory=list)
    sized: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict)
    dynamic: bool = False
    reads_values: str | None = None
    operators: list[str] = field(default_factory=list)
    count: int = 0
    pairs: list[np.ndarray] = field(default_factory=list)
    pins: list[tuple[np.ndarray, str]] = field(default_factory=list)
    across: list[np.ndarray] = field(default_factory=list)
    ordered: list[np.ndarray] = field(default_factory=list)
    kept: list[tuple[str, tuple[int, ...], list[Tensor]]] = field(default_factory=list)
    by_size: list[tuple[np.ndarray, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, tensor in self.tensors.items():
            self.axes[name] = {}
            for axis, size in enumerate(tensor.shape):
                if size > 1:
                    self.axes[name][axis] = (self.count, size)
                    self.count += size

    def classes(self) -> np.ndarray:
        """For each atom the number of its class: atoms of one class are kept or removed together."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        first, second = np.concatenate([*self.pairs, np.empty((2, 0), dtype=np.int64)], axis=1)
        graph = coo_matrix((np.ones(len(first), dtype=bool), (first, second)), (self.count, self.count))
        classes: np.ndarray = connected_components(graph, directed=False)[1]
        return classes

    def pinned(self, classes: np.ndarray) -> dict[int, str]:
        """The classes that must stay, each with the first reason that was found."""
        return self._reasons(self.pins, classes)

    def doubtful(self, classes: np.ndarray) -> dict[int, str]:
        """The classes that are combined with a tensor of a fixed size, with the reason if they must stay."""
        return self._reasons(self.by_size, classes)

    @staticmethod
    def _reasons(found: list[tuple[np.ndarray, str]], classes: np.ndarray) -> dict[int, str]:
        reasons: dict[int, str] = {}
        for atoms, reason in found:
            for number in np.unique(classes[atoms]).tolist():
                reasons.setdefault(number, reason)
        return reasons


@dataclass(frozen=True)
class Call:
    """An operator's call: its arguments in order and by name, all tensors among them, and its result."""

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: list[Tensor]
    outputs: list[Tensor]

    @property
    def named(self) -> dict[str, Any]:
        """The arguments by the names of the operator's schema."""
        names = (entry.name for entry in self.func._schema.arguments)
        return dict(zip(names, self.args, strict=False)) | self.kwargs


class Record:
    """Fills a Trace: the planes of every live tensor, and what operators do with them."""

    def __init__(self, trace: Trace, images: int) -> None:
        """`images` is the batch size of the inputs: positions are counted per image."""
        self.trace = trace
        self.images = images
        self.planes: dict[int, tuple[Tensor, ...]] = {}
        self.origin: dict[int, str] = {}  # a weight, or what was computed from it in its shape
        self.expanded: dict[int, str] = {}  # a weight that stands for many alike
        self.noise: set[int] = set()  # random numbers fit any width
        self.lost: dict[int, str] = {}  # tensors whose channels could not be followed, and why
        self.because: str | None = None  # the reason of the current operator
        self.slices: dict[tuple[int, int], list[Tensor]] = {}
        self.alive: list[Tensor] = []  # an id is unique only as long as its tensor lives
        self.inside: list[tuple[str, nn.Module]] = []
        self._next = ANY  # the first number that fits any atom and is not in use
        self._made: list[tuple[int, Tensor, int]] = []  # last number, tensor and axis of such numbers
        self._positional: list[tuple[int, int]] = []  # numbers whose entries differ, as those of arange
        for name, tensor in trace.tensors.items():
            self.origin[id(tensor)] = name
            self.label(
                tensor,
                [
                    along(torch.arange(start, start + size), axis, tensor.shape)
                    for axis, (start, size) in trace.axes[name].items()
                ],
            )

    @property
    def where(self) -> str:
        """The module that is running."""
        return f"'{self.inside[-1][0]}'" if self.inside and self.inside[-1][0] else "the network's forward"

    def lose(self, outputs: list[Tensor], reason: str) -> None:
        for output in outputs:
            self.lost.setdefault(id(output), reason)
            self.alive.append(output)

    # What a tensor carries

    def of(self, tensor: Any) -> tuple[Tensor, ...]:
        return self.planes.get(id(tensor), ()) if isinstance(tensor, Tensor) else ()

    def label(self, tensor: Tensor, planes: list[Tensor]) -> None:
        kept = tuple(plane for plane in planes if axes_of(plane))
        if kept:
            self.planes[id(tensor)] = kept
            self.alive.append(tensor)
        else:
            self.planes.pop(id(tensor), None)

    def vector(self, tensor: Any, axis: int) -> Tensor:
        """The atoms along one axis; -1 where there is none."""
        for plane in self.of(tensor):
            if axis in axes_of(plane):
                return compact(self.gathered(plane, axis)).flatten()
        return torch.full((tensor.shape[axis],), STAYS)

    def gathered(self, plane: Tensor, *axes: int) -> Tensor:
        """The plane along these axes alone: its entries along all others are united."""
        others = tuple(axis for axis in axes_of(plane) if axis not in axes)
        if not others:
            return plane
        first = first_along(plane, others)
        self.unite(plane, first)
        return first

    def fits(self, tensor: Tensor, axes: tuple[int, ...], *, positional: bool = False) -> list[Tensor]:
        """Planes of a tensor whose size on these axes the forward computes: they may follow any channels."""
        planes = []
        for axis in axes:
            size = tensor.shape[axis]
            if size < 2:
                continue
            planes.append(along(torch.arange(self._next, self._next - size, -1), axis, tensor.shape))
            if positional:
                self._positional.append((self._next - size, self._next))
            self._next -= size
            self._made.append((self._next, tensor, axis))
        return planes

    def alias(self, source: Tensor, alias: Tensor) -> None:
        """Replace a tensor that the forward has created by an alias of it."""
        for i, (last, tensor, axis) in enumerate(self._made):
            if tensor is source:
                self._made[i] = (last, alias, axis)

    def write(self, view: Tensor, planes: list[Tensor]) -> None:
        """Record writing to a part of a tensor that the forward has created: the whole tensor is affected."""
        for plane in planes:
            if fits_any(plane):
                continue
            varying = axes_of(plane)
            target = next((p for p in self.of(view) if axes_of(p) == varying), None)
            if len(varying) > 1 or target is None:
                if any(fits_any(own) for own in self.of(view)):
                    self.pin_plane(plane, f"it is written into a part of a tensor in {self.where}")
                continue
            numbers, atoms = compact(target).flatten(), compact(plane).flatten()
            if bool((numbers <= ANY).any()) and not self._put(view, numbers, atoms):
                self.pin_plane(plane, f"it is written into a part of a tensor in {self.where}")

    def _put(self, view: Tensor, numbers: Tensor, atoms: Tensor) -> bool:
        """Assign the atoms to the tensor of these numbers; returns whether it was found."""
        free = numbers <= ANY
        some = -int(numbers[free][0])
        last, whole, axis = self._made[bisect.bisect_right(self._made, some, key=lambda made: -made[0])]
        planes = list(self.of(whole))
        at = next((i for i, own in enumerate(planes) if axes_of(own) == (axis,)), None)
        index = last + whole.shape[axis] - numbers[free]
        if (
            at is None
            or whole.untyped_storage().data_ptr() != view.untyped_storage().data_ptr()
            or not bool(((index >= 0) & (index < whole.shape[axis])).all())
        ):
            return False
        vector = compact(planes[at]).flatten().clone()
        self.unite(vector[index], atoms[free])
        vector[index] = merged(vector[index], atoms[free])
        planes[at] = along(vector, axis, whole.shape)
        self.label(whole, planes)
        return True

    def inherit(self, tensors: list[Tensor], outputs: list[Tensor]) -> None:
        """A computed weight counts as the weight that it was computed from."""
        for output in outputs:
            if id(output) in self.origin:
                continue
            for tensor in tensors:
                name = self.origin.get(id(tensor))
                if name is not None and tensor.numel() == output.numel() and output.ndim > 1:
                    self.origin[id(output)] = name
                    self.alive.append(output)
                    break

    # What is recorded

    def unite(self, first: Tensor, second: Tensor) -> None:
        """Record that corresponding entries are kept or removed together. Shapes can be broadcast."""
        first, second = compact(first), compact(second)
        pair = np.stack(np.broadcast_arrays(first.numpy(), second.numpy())).reshape(2, -1)
        if (pair[0] == pair[1]).all():
            return
        both = (pair >= 0).all(0)
        self.trace.pairs.append(pair[:, both])
        some = (pair <= ANY).any(0)
        if some.any() and (pair[:, some] >= 0).any():
            self._follow_any(pair[:, some])
        alone = pair[:, ~both & ~some].max(0)
        if (alone >= 0).any():
            stays = f"it is combined with fixed channels in {self.where}"
            self.pin_atoms(alone[alone >= 0], self.because or stays)

    def _follow_any(self, pair: np.ndarray) -> None:
        """Record channels combined with a tensor that the forward creates: a trial tests it."""
        numbers, atoms = pair.min(0), pair.max(0)
        met = np.unique(atoms[atoms >= 0])
        self.trace.by_size.append((met, f"it is combined with a tensor of fixed size in {self.where}"))
        if any(((low < numbers) & (numbers <= high) & (atoms >= 0)).any() for low, high in self._positional):
            self.trace.across.append(met)
            self.trace.ordered.append(met)

    def pin(self, tensor: Any, reason: str) -> None:
        for plane in self.of(tensor):
            self.pin_plane(plane, reason)

    def pin_plane(self, plane: Tensor, reason: str) -> None:
        atoms = compact(plane).flatten().numpy()
        self.pin_atoms(atoms[atoms >= 0], reason)

    def pin_atoms(self, atoms: np.ndarray, reason: str) -> None:
        self.trace.pins.append((np.unique(atoms), reason))

    def mark(self, tensor: Tensor, dims: tuple[int, ...], *, ordered: bool = False) -> None:
        """Record channels that are mixed along these axes, e.g. by a normalisation.

        `ordered`: depending on their positions, e.g. by a convolution over channels; they must keep their
        order.
        """
        dims = tuple(dim % max(tensor.ndim, 1) for dim in dims)
        for plane in self.of(tensor):
            if set(dims) & set(axes_of(plane)):
                atoms = compact(plane).flatten().numpy()
                self.trace.across.append(np.unique(atoms[atoms >= 0]))
                if ordered:
                    self.trace.ordered.append(self.trace.across[-1])

    def joined(self, planes: list[Tensor]) -> list[Tensor]:
        """Join planes to one per axis: planes that share an axis are united, or pinned."""
        result: list[Tensor] = []
        for plane in planes:
            axes = set(axes_of(plane))
            met = [i for i, other in enumerate(result) if axes & set(axes_of(other))]
            if not met:
                result.append(plane)
                continue
            first = result[met[0]]
            own = set(axes_of(first))
            if len(met) == 1 and (own <= axes or axes <= own):
                less, more = (first, plane) if own <= axes else (plane, first)
                self.unite(less, more)
                if fits_any(less) and not fits_any(more):
                    less, more = more, less
                elif not fits_any(more) and bool((compact(less) <= ANY).any()):
                    less = merged(less, self.gathered(more, *axes_of(less))).expand(first.shape)
                result[met[0]] = less
            elif fits_any(plane):
                continue
            elif all(fits_any(result[i]) for i in met):
                result = [plane, *(own for i, own in enumerate(result) if i not in met)]
            else:
                for each in (plane, *(result[i] for i in met)):
                    self.pin_plane(each, f"its channels are rearranged over two axes in {self.where}")
        return result

    def unknown(self, name: str) -> str:
        computed = next((m for path, m in self.inside if ".parametrizations." in f".{path}."), None)
        if computed is not None or "weight_norm" in name:
            kind = type(self.inside[-1][1]).__name__.lstrip("_") if computed is not None else "weight_norm"
            return (
                f"its weight is computed at every call ({kind}, in {self.where}); remove that with "
                "torch.nn.utils.parametrize.remove_parametrizations (or remove_weight_norm)"
            )
        return f"it is an input of '{name}' in {self.where}, through which channels cannot be traced"

    def layer(
        self, weight: Tensor, positions: int, out_axis: int, makes: bool, each: tuple[int, ...] = ()
    ) -> None:
        name = self.origin.get(id(weight), self.expanded.get(id(weight)))
        if name is not None:
            self.trace.layers.append(LayerUse(name, positions, out_axis, makes, each))

    def kept(self, sizes: Sequence[int], vectors: Sequence[Tensor]) -> None:
        """Record sizes passed to an operator, of these channels: the module may keep them in attributes."""
        if self.inside and any(bool((vector >= 0).any()) for vector in vectors):
            self.trace.kept.append((self.inside[-1][0], tuple(map(int, sizes)), list(vectors)))

    def sized(self, attribute: str, tensor: Any, each: int) -> bool:
        """Record an attribute of the running module that depends on this tensor's first axis, if any."""
        name = self.origin.get(id(tensor))
        if not self.inside or name is None:
            return False
        path, module = self.inside[-1]
        if hasattr(module, attribute):
            self.trace.sized[path, attribute] = (name, each)
            return True
        return False
