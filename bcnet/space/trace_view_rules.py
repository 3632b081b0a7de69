"""Rules for operators that move, select, join and repeat entries: views, slices, concatenations, padding.

In: an operator's call, and the `Record` of the traced network. Out: the labels of the call's results, and the
channels that must be kept or removed together.
"""

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from bcnet.space.trace_planes import STAYS, axes_of, compact, first_along, merged, tidy
from bcnet.space.trace_record import Call, Record
from bcnet.space.trace_rules import rule, unknown


@rule(
    *(
        "_reshape_alias",
        "permute",
        "transpose",
        "t",
        "movedim",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
    ),
    *("select", "unbind", "narrow", "flip", "roll", "lift_fresh", "pixel_shuffle", "pixel_unshuffle"),
    *("channel_shuffle", "native_channel_shuffle"),
)
def move(record: Record, call: Call) -> None:
    """Planes are rearranged like the entries."""
    moved: list[list[Tensor]] = [[] for _ in call.outputs]
    for plane in record.of(call.args[0]):
        try:
            result = call.func(plane, *call.args[1:], **call.kwargs)
        except RuntimeError:  # the plane's strides do not allow the view
            result = plane.reshape(call.outputs[0].shape)
        for planes, leaf in zip(moved, tree_leaves(result), strict=True):
            planes.append(tidy(leaf))
    for output, planes in zip(call.outputs, moved, strict=True):
        record.label(output, planes)


@rule("view", "_unsafe_view", "reshape")
def view(record: Record, call: Call) -> None:
    """Planes are rearranged; the sizes that are passed may be attributes of the module."""
    move(record, call)
    output = call.outputs[0]
    vectors = [torch.full((size,), STAYS) for size in output.shape]
    for plane in record.of(output):
        for axis in axes_of(plane):
            others = tuple(other for other in axes_of(plane) if other != axis)
            vectors[axis] = compact(first_along(plane, others)).flatten()
            record.kept([output.shape[axis]], [vectors[axis]])
    record.kept(output.shape, vectors)


@rule("as_strided")
def relayout(record: Record, call: Call) -> None:
    """Another memory layout of a tensor of the same shape changes nothing; other views have no rule."""
    if call.tensors[0].shape != call.outputs[0].shape:
        unknown(record, call)


@rule("alias", "detach")
def alias(record: Record, call: Call) -> None:
    """The same tensor, returned to the forward that made it."""
    move(record, call)
    record.alias(call.args[0], call.outputs[0])


@rule("expand", "repeat", always=True)
def expand(record: Record, call: Call) -> None:
    """One entry is repeated along the new axes, which may follow any channels."""
    move(record, call)
    source, output = call.args[0], call.outputs[0]
    lead = output.ndim - source.ndim
    new = (axis for axis in range(output.ndim) if axis < lead or source.shape[axis - lead] == 1)
    record.label(output, [*record.of(output), *record.fits(output, tuple(new))])
    name = record.origin.get(id(source))
    if name is not None and output.numel() > source.numel():
        record.expanded[id(output)] = name


@rule("index", "index_select")
def pick(record: Record, call: Call) -> None:
    """Entries are selected by an index that the network stores: channels along indexed axes are frozen."""
    source = call.args[0]
    indices = call.named["indices"] if call.name == "index" else None
    axes = [call.named["dim"] % source.ndim] if indices is None else range(len(indices))
    indexed = {axis for axis, by in zip(axes, indices or [True], strict=True) if by is not None}
    numbers = [by for by in call.tensors if by is not source]
    reason, planes = record.unknown(call.name), []
    if any(id(by) not in record.origin or by.dtype in (torch.bool, torch.uint8) for by in numbers):
        unknown(record, call)
        return
    for plane in record.of(source):
        if indexed & set(axes_of(plane)):
            record.pin_plane(plane, reason)
        else:
            planes.append(tidy(call.func(plane, *call.args[1:], **call.kwargs)))
    record.label(call.outputs[0], planes)


@rule("split", "chunk", "split_with_sizes")
def split(record: Record, call: Call) -> None:
    """Equal parts of an axis stay equal, because `chunk` also splits a narrow tensor evenly."""
    move(record, call)
    _tie_parts(record, call.outputs)
    source, dim = call.args[0], int(call.named.get("dim", 0)) % call.args[0].ndim
    parts = [record.vector(part, dim) for part in call.outputs]
    record.kept([len(part) for part in parts], parts)
    record.kept([source.shape[dim]], [torch.cat(parts)])


@rule("slice")
def take_slice(record: Record, call: Call) -> None:
    """Equal slices that together make up an axis are treated like the parts of a `chunk`."""
    move(record, call)
    source, dim, part = call.args[0], int(call.named.get("dim", 0)), call.outputs[0]
    slices = record.slices.setdefault((id(source), dim), [])
    slices.append(part)
    if part.shape[dim] != source.shape[dim]:
        whole, own = record.vector(source, dim), record.vector(part, dim)
        start = int(call.named.get("start") or 0) % source.shape[dim]
        if call.named.get("step", 1) == 1:
            for low, high in ((0, start), (0, start + len(own)), (start, start + len(own))):
                record.kept([high - low], [whole[low:high]])
    if len(slices) * part.shape[dim] == source.shape[dim] and len(slices) > 1:
        _tie_parts(record, slices)


def _tie_parts(record: Record, parts: list[Tensor]) -> None:
    if len({part.shape for part in parts}) == 1:
        for planes in zip(*(record.of(part) for part in parts), strict=True):
            for plane in planes[1:]:
                record.unite(planes[0], plane)


@rule("cat", "stack")
def concatenate(record: Record, call: Call) -> None:
    """Parts are joined along one axis, and united along the others."""
    tensors, output, stacked = call.named["tensors"], call.outputs[0], call.name == "stack"
    dim = call.named.get("dim", 0) % output.ndim
    parts = [[p.unsqueeze(dim) if stacked else p for p in record.of(tensor)] for tensor in tensors]
    shapes = [t.unsqueeze(dim).shape if stacked else t.shape for t in tensors]
    result: list[Tensor] = []
    for varying in dict.fromkeys(axes_of(plane) for planes in parts for plane in planes):
        pieces = []
        for planes, shape in zip(parts, shapes, strict=True):
            own = next((p for p in planes if axes_of(p) == varying), None)
            if own is None:
                own = torch.full((1,) * len(shape), STAYS).expand(shape)
            for axis in range(len(shape)):
                if axis not in varying and axis != dim:
                    own = own.narrow(axis, 0, 1)
            pieces.append(own)
        if dim in varying:
            result.append(tidy(torch.cat(pieces, dim).expand(output.shape)))
        else:
            whole, *others = (piece.narrow(dim, 0, 1) for piece in pieces)
            for piece in others:
                record.unite(whole, piece)
                whole = merged(whole, piece)
            result.append(whole.expand(output.shape))
    # An input of one entry along the axis does not vary, but the result does.
    record.label(output, record.joined(result))


@rule("constant_pad_nd")
def pad_constant(record: Record, call: Call) -> None:
    """Entries that are padded to an axis of channels are frozen; other axes become longer or shorter."""
    source, output, pad = call.args[0], call.outputs[0], call.named["pad"]
    sides = {source.ndim - 1 - i // 2 for i, width in enumerate(pad) if width}
    planes = []
    for plane in record.of(source):
        varying = set(axes_of(plane))
        if varying & sides and varying - sides:
            plane = record.gathered(plane, *(varying - sides))
        own = compact(plane)
        if varying <= sides:
            widths = [width if source.ndim - 1 - i // 2 in varying else 0 for i, width in enumerate(pad)]
            own = torch.ops.aten.constant_pad_nd(own, widths, STAYS)
        planes.append(own.expand(output.shape))
    record.label(output, planes)
