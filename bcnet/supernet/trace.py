"""Follows channels through a network's forward: which entries of which tensors belong together.

In: a network that is run as it is, operator by operator, on real inputs. Out: for every axis of every
parameter and buffer, which of its entries are kept or dropped together (`Trace.classes`), what must stay as
it is and why (`Trace.pinned`), and the layers that make and use channels.

Every entry of a parameter's axis is an atom. A tensor carries planes: integer tensors of its own shape that
name the atom behind each entry (-1: an entry that stays). An operator that moves entries moves the planes
with them, one that combines entries unites their atoms. Planes do not vary along most axes and are expanded
along those: they cost no memory, and a reshape or a concatenation of a plane is PyTorch's own.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bcnet.latency_tables.rows import EVEN_GROUPS

Atoms = tuple[int, int]  # the first atom of an axis and how many there are

MOVES = frozenset(
    (
        *(
            "view",
            "_unsafe_view",
            "reshape",
            "_reshape_alias",
            "permute",
            "transpose",
            "t",
            "slice",
            "select",
        ),
        *("split", "split_with_sizes", "chunk", "unbind", "squeeze", "unsqueeze", "expand", "repeat", "flip"),
        *("roll", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "alias", "detach", "lift_fresh"),
        *("movedim", "flatten", "unflatten", "narrow", "native_channel_shuffle"),
    )
)
# Keep the first two axes, (N, C), and change the others.
SPATIAL = frozenset(
    (
        *("max_pool1d", "max_pool2d", "max_pool2d_with_indices", "max_pool3d_with_indices"),
        *("avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"),
        *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "adaptive_max_pool1d"),
        *("upsample_nearest1d", "upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_nearest3d"),
        *("upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
        *("upsample_linear1d", "upsample_trilinear3d", "reflection_pad1d", "reflection_pad2d"),
        *("replication_pad1d", "replication_pad2d", "grid_sampler_2d", "roi_align", "roi_pool"),
    )
)
REDUCE = frozenset(
    (
        *("mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "prod"),
        *("linalg_vector_norm", "norm", "logsumexp", "any", "all", "argmax", "argmin"),
    )
)
# Keep the shape; PyTorch does not tag them as pointwise.
SAME_SHAPE = frozenset(
    (
        *(
            "hardswish",
            "hardtanh",
            "native_dropout",
            "dropout",
            "feature_dropout",
            "bernoulli",
            "fill",
            "copy",
        ),
        *("zero", "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "clone"),
        *("_to_copy", "contiguous", "where", "masked_fill", "_softmax", "_log_softmax", "softmax", "cumsum"),
        *("uniform", "normal", "_prelu_kernel", "prelu", "rrelu_with_noise"),
    )
)
ALONG = frozenset(("_softmax", "_log_softmax", "softmax", "log_softmax", "cumsum"))
RANDOM = frozenset(("bernoulli", "uniform", "normal", "rand", "randn", "rand_like", "randn_like"))
BATCH_NORM = frozenset(
    (
        *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
        *("_batch_norm_with_update", "_batch_norm_no_update", "cudnn_batch_norm", "batch_norm"),
    )
)
NEW = frozenset(("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided"))
CONVOLUTION = frozenset(("convolution", "_convolution", "conv1d", "conv2d", "conv3d"))
MATMUL = frozenset(("mm", "bmm", "addmm", "baddbmm", "matmul", "linear"))


@dataclass(frozen=True)
class LayerUse:
    """One use of a weight by a convolution or matrix product, at `positions` an image."""

    weight: str
    positions: int
    out_axis: int
    makes_channels: bool


@dataclass
class Trace:
    """What was seen of a network, over one or more runs of it."""

    tensors: dict[str, Tensor]
    axes: dict[str, dict[int, Atoms]] = field(default_factory=dict)
    layers: list[LayerUse] = field(default_factory=list)
    sized: dict[str, tuple[str, str, int]] = field(default_factory=dict)
    dynamic: bool = False
    reads_values: str | None = None
    operators: list[str] = field(default_factory=list)
    count: int = 0
    pairs: list[np.ndarray] = field(default_factory=list)
    pins: list[tuple[np.ndarray, str]] = field(default_factory=list)
    across: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, tensor in self.tensors.items():
            self.axes[name] = {}
            for axis, size in enumerate(tensor.shape):
                if size > 1:
                    self.axes[name][axis] = (self.count, size)
                    self.count += size

    def classes(self) -> np.ndarray:
        """For each atom the number of its class: atoms of one class are kept or dropped together."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        first, second = np.concatenate([*self.pairs, np.empty((2, 0), dtype=np.int64)], axis=1)
        graph = coo_matrix((np.ones(len(first), dtype=bool), (first, second)), (self.count, self.count))
        classes: np.ndarray = connected_components(graph, directed=False)[1]
        return classes

    def pinned(self, classes: np.ndarray) -> dict[int, str]:
        """The classes that must stay as they are, each with the first reason that was met."""
        reasons: dict[int, str] = {}
        for atoms, reason in self.pins:
            for number in np.unique(classes[atoms]).tolist():
                reasons.setdefault(number, reason)
        return reasons


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fills a Trace while a network runs inside `with tracer:`; use `torch.no_grad()` around it."""

    def __init__(self, trace: Trace, model: nn.Module, images: int) -> None:
        """`images` is the batch size of the inputs: positions are counted an image."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = trace
        self.model = model
        self.images = images
        self.planes: dict[int, tuple[Tensor, ...]] = {}
        self.origin: dict[int, str] = {}  # a weight, or what was computed from it in its shape
        self.noise: set[int] = set()  # random numbers fit any width
        self.lost: dict[int, str] = {}  # tensors whose channels could not be followed, and why
        self.because: str | None = None  # that of the operator at hand
        self.slices: dict[tuple[int, int], list[Tensor]] = {}
        self.alive: list[Tensor] = []  # an id is unique only as long as its tensor lives
        self.inside: list[tuple[str, nn.Module]] = []
        for name, tensor in trace.tensors.items():
            self.origin[id(tensor)] = name
            self._label(
                tensor,
                [
                    _along(torch.arange(start, start + size), axis, tensor.shape)
                    for axis, (start, size) in trace.axes[name].items()
                ],
            )

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Trace what runs inside, and know in which module it runs."""
        with running_modules(self.model) as self.inside, torch.no_grad(), self:
            yield

    @property
    def where(self) -> str:
        """The module that is running."""
        return f"'{self.inside[-1][0]}'" if self.inside and self.inside[-1][0] else "the network's forward"

    def finish(self, outputs: Any) -> None:
        """Outputs keep their channels."""
        for leaf in tree_leaves(outputs):
            if isinstance(leaf, Tensor):
                self._pin(leaf, "it is the network's output")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name.partition("::")[2]
        if name.endswith("_") and not name.startswith("__"):
            name = name[:-1]  # in place
        self.trace.operators.append(name)
        if torch.Tag.data_dependent_output in func.tags:
            self.trace.reads_values = self.trace.reads_values or self.where
        if torch.Tag.dynamic_output_shape in func.tags:
            self.trace.dynamic = True
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if name in RANDOM or (tensors and all(id(t) in self.noise or t.numel() == 1 for t in tensors)):
            self.noise.update(id(t) for t in outputs)
            self.alive += outputs
        self.because = next((self.lost[id(t)] for t in tensors if id(t) in self.lost), None)
        if self.because is not None:
            self._lose(outputs, self.because)
        if any(id(tensor) in self.planes for tensor in tensors):
            self._follow(name, func, args, kwargs, tensors, outputs)
            self._inherit(tensors, outputs)
        return result

    def _follow(
        self, name: str, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], outputs: list[Tensor]
    ) -> None:
        named = dict(zip((entry.name for entry in func._schema.arguments), args, strict=False)) | kwargs
        if name in MOVES:
            self._move(func, args, kwargs, outputs)
            if name in ("split", "chunk", "split_with_sizes"):
                self._tie_parts(outputs)
            elif name == "slice":
                self._slice(args[0], int(named.get("dim", 0)), outputs[0])
        elif name in ("cat", "stack"):
            self._concatenate(named["tensors"], named.get("dim", 0), outputs[0], stacked=name == "stack")
        elif name == "constant_pad_nd":
            planes = [torch.ops.aten.constant_pad_nd(p, named["pad"], -1) for p in self._of(args[0])]
            self._label(outputs[0], planes)
        elif name in CONVOLUTION:
            self._convolution(named, outputs[0])
        elif name in MATMUL:
            self._matmul(name, named, outputs[0])
        elif name in BATCH_NORM:
            self._per_channel(named, outputs[0], ("weight", "bias", "running_mean", "running_var"))
        elif name == "native_layer_norm":
            self._layer_norm(named, outputs[0])
        elif name == "native_group_norm":
            self._group_norm(named, outputs[0])
        elif name in SPATIAL:
            source = tensors[0]
            for plane in self._of(source):
                if any(axis > 1 for axis in _varying(plane)):
                    self._pin_plane(plane, f"it becomes an image's side in {self.where}")
            kept = [_compact(p) for p in self._of(source) if all(axis < 2 for axis in _varying(p))]
            for output in outputs:
                self._label(output, [p.expand(output.shape) for p in kept])
        elif name in REDUCE:
            self._reduce(named, tensors[0], outputs)
        elif name == "glu":
            halves = [p.chunk(2, named.get("dim", -1)) for p in self._of(args[0])]
            for first, second in halves:
                self._unite(first, second)
            self._label(outputs[0], [_tidy(first) for first, _ in halves])
        elif name in NEW or (name == "as_strided" and tensors[0].shape == outputs[0].shape):
            pass  # made anew, of sizes that are given; another layout in memory
        elif torch.Tag.pointwise in func.tags or name in SAME_SHAPE:
            if name in ALONG:
                self._mark(tensors[0], (int(named["dim"]),))
            self._pointwise(tensors, outputs, writes=name == "copy")
        else:
            reason = self._unknown(name)
            for tensor in tensors:
                self._pin(tensor, reason)
            self._lose(outputs, reason)

    def _unknown(self, name: str) -> str:
        computed = next((m for path, m in self.inside if ".parametrizations." in f".{path}."), None)
        if computed is not None or "weight_norm" in name:
            kind = type(self.inside[-1][1]).__name__.lstrip("_") if computed is not None else "weight_norm"
            return (
                f"its weight is computed anew at every call ({kind}, in {self.where}); remove that with "
                "torch.nn.utils.parametrize.remove_parametrizations (or remove_weight_norm)"
            )
        return f"it goes through '{name}' in {self.where}, where channels cannot be followed"

    def _lose(self, outputs: list[Tensor], reason: str) -> None:
        for output in outputs:
            self.lost.setdefault(id(output), reason)
            self.alive.append(output)

    # What a tensor carries

    def _of(self, tensor: Any) -> tuple[Tensor, ...]:
        return self.planes.get(id(tensor), ()) if isinstance(tensor, Tensor) else ()

    def _label(self, tensor: Tensor, planes: list[Tensor]) -> None:
        kept = tuple(plane for plane in planes if _varying(plane))
        if kept:
            self.planes[id(tensor)] = kept
            self.alive.append(tensor)
        else:
            self.planes.pop(id(tensor), None)

    def _vector(self, tensor: Any, axis: int) -> Tensor:
        """The atoms along one axis; -1 where there is none."""
        for plane in self._of(tensor):
            varying = _varying(plane)
            if varying == (axis,):
                return _compact(plane).flatten()
            if axis in varying:
                self._pin_plane(plane, f"its channels are rearranged over two axes in {self.where}")
        return torch.full((tensor.shape[axis],), -1)

    def _inherit(self, tensors: list[Tensor], outputs: list[Tensor]) -> None:
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

    def _unite(self, first: Tensor, second: Tensor) -> None:
        """Entry by entry, the two are kept or dropped together. Shapes are equal, or one is broadcast."""
        first, second = _compact(first), _compact(second)
        pair = np.stack(np.broadcast_arrays(first.numpy(), second.numpy())).reshape(2, -1)
        if (pair[0] == pair[1]).all():
            return
        both = (pair >= 0).all(0)
        self.trace.pairs.append(pair[:, both])
        alone = pair[:, ~both].max(0)
        if (alone >= 0).any():
            stays = f"it is combined with channels that stay, in {self.where}"
            self._pin_atoms(alone[alone >= 0], self.because or stays)

    def _pin(self, tensor: Any, reason: str) -> None:
        for plane in self._of(tensor):
            self._pin_plane(plane, reason)

    def _pin_plane(self, plane: Tensor, reason: str) -> None:
        atoms = _compact(plane).flatten().numpy()
        self._pin_atoms(atoms[atoms >= 0], reason)

    def _pin_atoms(self, atoms: np.ndarray, reason: str) -> None:
        self.trace.pins.append((np.unique(atoms), reason))

    def _mark(self, tensor: Tensor, dims: tuple[int, ...]) -> None:
        """Channels that are mixed with each other along these axes, as by a normalisation."""
        dims = tuple(dim % max(tensor.ndim, 1) for dim in dims)
        for plane in self._of(tensor):
            if set(dims) & set(_varying(plane)):
                atoms = _compact(plane).flatten().numpy()
                self.trace.across.append(np.unique(atoms[atoms >= 0]))

    # Rules

    def _move(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        """Planes go where the entries go."""
        moved: list[list[Tensor]] = [[] for _ in outputs]
        for plane in self._of(args[0]):
            try:
                result = func(plane, *args[1:], **kwargs)
            except RuntimeError:  # a view that a plane's strides do not allow
                result = plane.reshape(outputs[0].shape)
            for planes, leaf in zip(moved, tree_leaves(result), strict=True):
                planes.append(_tidy(leaf))
        for output, planes in zip(outputs, moved, strict=True):
            self._label(output, planes)

    def _tie_parts(self, parts: list[Tensor]) -> None:
        """Equal parts of an axis stay equal: `chunk` divides a narrow tensor in halves, too."""
        if len({part.shape for part in parts}) == 1:
            for planes in zip(*(self._of(part) for part in parts), strict=True):
                for plane in planes[1:]:
                    self._unite(planes[0], plane)

    def _slice(self, source: Tensor, dim: int, part: Tensor) -> None:
        """Slices that together are a whole axis, in equal parts, are the parts of a `chunk`."""
        slices = self.slices.setdefault((id(source), dim), [])
        slices.append(part)
        if len(slices) * part.shape[dim] == source.shape[dim] and len(slices) > 1:
            self._tie_parts(slices)

    def _concatenate(self, tensors: list[Tensor], dim: int, output: Tensor, *, stacked: bool) -> None:
        dim %= output.ndim
        parts = [[p.unsqueeze(dim) if stacked else p for p in self._of(tensor)] for tensor in tensors]
        shapes = [t.unsqueeze(dim).shape if stacked else t.shape for t in tensors]
        result: list[Tensor] = []
        for varying in dict.fromkeys(_varying(plane) for planes in parts for plane in planes):
            pieces = []
            for planes, shape in zip(parts, shapes, strict=True):
                own = next((p for p in planes if _varying(p) == varying), None)
                if own is None:
                    own = torch.full((1,) * len(shape), -1).expand(shape)
                for axis in range(len(shape)):
                    if axis not in varying and axis != dim:
                        own = own.narrow(axis, 0, 1)
                pieces.append(own)
            if dim in varying:
                result.append(_tidy(torch.cat(pieces, dim).expand(output.shape)))
            else:
                for piece in pieces[1:]:
                    self._unite(pieces[0].narrow(dim, 0, 1), piece.narrow(dim, 0, 1))
                result.append(pieces[0].narrow(dim, 0, 1).expand(output.shape))
        # An input of one entry along the axis varies with nothing, but the whole does.
        self._label(output, self._joined(result))

    def _joined(self, planes: list[Tensor]) -> list[Tensor]:
        """At most one plane for each axis: those that meet on an axis are united, or pinned."""
        result: list[Tensor] = []
        for plane in planes:
            axes = set(_varying(plane))
            met = [i for i, other in enumerate(result) if axes & set(_varying(other))]
            if not met:
                result.append(plane)
                continue
            first = result[met[0]]
            own = set(_varying(first))
            if len(met) == 1 and (own <= axes or axes <= own):
                self._unite(first, plane)
                result[met[0]] = first if own <= axes else plane
            else:
                for each in (plane, *(result[i] for i in met)):
                    self._pin_plane(each, f"its channels are rearranged over two axes in {self.where}")
        return result

    def _pointwise(self, tensors: list[Tensor], outputs: list[Tensor], *, writes: bool = False) -> None:
        """Operands are united entry by entry; a tensor that does not follow the widths pins what it meets."""
        for output in outputs:
            shape = output.shape
            try:
                planes = [plane.expand(shape) for t in tensors for plane in self._of(t)]
            except RuntimeError:
                if output is outputs[0]:
                    for tensor in tensors:
                        self._pin(tensor, f"it is reshaped in {self.where}")
                continue
            joined = self._joined(planes)
            for tensor in tensors:
                if id(tensor) in self.noise:
                    continue
                if writes and tensor is output and tensor._base is None:
                    continue  # filled anew
                lead = len(shape) - tensor.ndim
                covered = {axis + lead for plane in self._of(tensor) for axis in _varying(plane)}
                fixed = {lead + axis for axis, size in enumerate(tensor.shape) if size > 1} - covered
                for plane in joined:
                    if fixed & set(_varying(plane)):
                        size = f"it is combined with a tensor of fixed size in {self.where}"
                        self._pin_plane(plane, self.because or size)
            self._label(output, joined)

    def _convolution(self, named: dict[str, Any], output: Tensor) -> None:
        x, weight, bias = named["input"], named["weight"], named.get("bias")
        groups, transposed = int(named["groups"]), bool(named.get("transposed", False))
        unbatched = 1 if x.ndim == weight.ndim else 0
        entering = self._vector(x, unbatched)
        first, second = self._vector(weight, 0), self._vector(weight, 1)
        makes = True
        if groups == 1:
            self._unite(entering, second if not transposed else first)
            leaving = first if not transposed else second
        elif not transposed and 1 < groups <= EVEN_GROUPS and weight.shape[1] > 1:
            # Narrowed evenly inside each group: entry j of every group is one channel.
            blocks = entering.reshape(groups, -1)
            self._unite(blocks, second.expand_as(blocks))
            blocks = first.reshape(groups, -1)
            self._unite(blocks, blocks[:1].expand_as(blocks))
            leaving = first
        else:
            # Narrowed by whole groups: all entries of a group, in and out, are one channel.
            makes = False
            blocks = entering.reshape(groups, -1)
            head = first.reshape(groups, -1)[:, :1]
            self._unite(blocks, head.expand_as(blocks))
            self._unite(first.reshape(groups, -1), head.expand(groups, first.numel() // groups))
            if (second >= 0).any():
                self._pin_atoms(second[second >= 0].numpy(), "the size of a convolution's groups stays")
            leaving = first if not transposed else head.expand(groups, weight.shape[1]).flatten()
            self._sized("groups", weight, first.numel() // groups)
        if bias is not None:
            self._unite(leaving, self._vector(bias, 0))
        self._label(output, [_along(leaving, unbatched, output.shape)])
        spatial = (x if transposed else output).shape[1 + unbatched :]
        self._layer(weight, math.prod(spatial), 1 if transposed else 0, makes)

    def _matmul(self, name: str, named: dict[str, Any], output: Tensor) -> None:
        """Contracts the last axis of the first with the second to last of the second."""
        bias = named.get("bias") if name == "linear" else named.get("self") if "add" in name else None
        left = named.get("input") if name == "linear" else named.get("mat1", named.get("batch1"))
        right = named.get("weight") if name == "linear" else named.get("mat2", named.get("batch2"))
        if left is None:
            left = named["self"]
        if right is None:
            right = named["other"]
        across = right.ndim - 2 if name != "linear" else 1
        self._unite(self._vector(left, left.ndim - 1), self._vector(right, across))
        planes = [
            _compact(p).expand(output.shape)
            for p in self._of(left)
            if left.ndim - 1 not in _varying(p) and left.ndim == output.ndim
        ]
        for plane in self._of(right):
            if across in _varying(plane):
                continue
            kept = _compact(plane)
            if name == "linear":
                kept = kept.transpose(0, 1)
            planes.append(kept.expand(output.shape))
        joined = self._joined(planes)
        if bias is not None:
            joined = self._joined([*joined, *(plane.expand(output.shape) for plane in self._of(bias))])
        self._label(output, joined)
        weight = right if id(right) in self.origin else left
        rows = left.numel() // left.shape[-1] if weight is right else right.numel() // right.shape[across]
        self._layer(weight, rows // self.images, 0, True)

    def _layer(self, weight: Tensor, positions: int, out_axis: int, makes: bool) -> None:
        name = self.origin.get(id(weight))
        if name is not None:
            self.trace.layers.append(LayerUse(name, positions, out_axis, makes))

    def _sized(self, attribute: str, tensor: Any, each: int) -> None:
        """The running module keeps a size in an attribute: it follows this tensor's first axis."""
        name = self.origin.get(id(tensor))
        if self.inside and name is not None:
            module = self.inside[-1][0]
            if hasattr(self.inside[-1][1], attribute):
                self.trace.sized[module] = (attribute, name, each)

    def _per_channel(self, named: dict[str, Any], output: Tensor, keys: tuple[str, ...]) -> None:
        x = named["input"]
        self._mark(x, tuple(axis for axis in range(x.ndim) if axis != 1))
        for key in keys:
            if named.get(key) is not None:
                self._unite(self._vector(x, 1), self._vector(named[key], 0))
        self._label(output, list(self._of(x)))

    def _layer_norm(self, named: dict[str, Any], output: Tensor) -> None:
        x, weight = named["input"], named["weight"]
        dims = range(x.ndim - len(named["normalized_shape"]), x.ndim)
        self._mark(x, tuple(dims))
        if weight is None or id(weight) not in self.origin:
            for plane in self._of(x):
                if set(dims) & set(_varying(plane)):
                    self._pin_plane(plane, f"{self.where} normalises over a fixed number of channels")
        else:
            self._sized("normalized_shape", weight, 0)
        self._pointwise([t for t in (x, weight, named["bias"]) if t is not None], [output])

    def _group_norm(self, named: dict[str, Any], output: Tensor) -> None:
        channels, groups = int(named["C"]), int(named["group"])
        if groups == 1:
            self._mark(named["input"], (1,))
        elif groups < channels:
            blocks = self._vector(named["input"], 1).reshape(groups, -1)
            self._unite(blocks, blocks[:, :1].expand_as(blocks))
        if groups > 1:
            if named.get("weight") is None:
                self._pin(named["input"], f"{self.where} normalises over a fixed number of groups")
            self._sized("num_groups", named.get("weight"), channels // groups)
        self._per_channel(named, output, ("weight", "bias"))

    def _reduce(self, named: dict[str, Any], x: Tensor, outputs: list[Tensor]) -> None:
        dims = named.get("dim")
        dims = [dims] if isinstance(dims, int) else list(dims or range(x.ndim))
        dims = sorted({dim % max(x.ndim, 1) for dim in dims}, reverse=True)
        self._mark(x, tuple(dims))
        for output in outputs:
            planes = []
            for plane in self._of(x):
                varying = set(_varying(plane))
                if varying <= set(dims):
                    continue
                for dim in sorted(varying & set(dims)):  # entries that end in one are kept or dropped as one
                    self._unite(plane, plane.narrow(dim, 0, 1).expand_as(plane))
                    plane = plane.narrow(dim, 0, 1).expand_as(plane)
                for dim in dims:
                    plane = plane.narrow(dim, 0, 1) if output.ndim == x.ndim else plane.select(dim, 0)
                planes.append(plane)
            self._label(output, planes)


@contextmanager
def running_modules(model: nn.Module) -> Iterator[list[tuple[str, nn.Module]]]:
    """The modules that are running, the innermost last, with their names; after an error, where it was."""
    inside: list[tuple[str, nn.Module]] = []

    def enter(name: str) -> Any:
        return lambda module, _: inside.append((name, module))

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(lambda *_: inside.pop() and None))
    try:
        yield inside
    finally:
        for handle in handles:
            handle.remove()


def _varying(plane: Tensor) -> tuple[int, ...]:
    """The axes along which a plane is not expanded."""
    return tuple(
        axis
        for axis, (size, stride) in enumerate(zip(plane.shape, plane.stride(), strict=True))
        if size > 1 and stride != 0
    )


def _compact(plane: Tensor) -> Tensor:
    """The plane with every expanded axis at one entry."""
    for axis, stride in enumerate(plane.stride()):
        if stride == 0 and plane.shape[axis] > 1:
            plane = plane.narrow(axis, 0, 1)
    return plane


def _along(atoms: Tensor, axis: int, shape: torch.Size) -> Tensor:
    """A plane of `shape` that varies along one axis."""
    return atoms.reshape([-1 if i == axis else 1 for i in range(len(shape))]).expand(shape)


def _tidy(plane: Tensor) -> Tensor:
    """Expand anew along every axis on which a copied plane is constant."""
    if plane.numel() == 0:
        return plane
    shape = plane.shape
    for axis in _varying(plane):
        first = plane.narrow(axis, 0, 1)
        if torch.equal(first.expand_as(plane), plane):
            plane = first.expand(shape) if _compact(first).numel() else first
    if bool((_compact(plane) < 0).all()):
        return torch.full((1,) * plane.ndim, -1).expand(shape)
    return plane
