"""Rules for layers: convolutions, matrix products and normalisations.

In: an operator's call, and the `Record` of the traced network. Out: the channels of inputs, weights and
outputs that must be kept or removed together, and the layers that produce them.
"""

import math
from typing import Any

from torch import Tensor

from bcnet.space.grouped import narrowed_evenly
from bcnet.space.trace_entry_rules import combine
from bcnet.space.trace_planes import along, axes_of, compact, fits_any, merged
from bcnet.space.trace_record import Call, Record
from bcnet.space.trace_rules import rule, unknown

CONVOLUTIONS = ("convolution", "_convolution", "conv1d", "conv2d", "conv3d")
PRODUCTS = ("mm", "bmm", "matmul")
PRODUCTS_WITH_BIAS = ("addmm", "baddbmm")
LAYERS = frozenset((*CONVOLUTIONS, *PRODUCTS, *PRODUCTS_WITH_BIAS, "linear"))


@rule(*CONVOLUTIONS)
def convolution(record: Record, call: Call) -> None:
    """Input channels are the weight's second axis (if transposed: first), output channels the other one."""
    named, output = call.named, call.outputs[0]
    x, weight, bias = named["input"], named["weight"], named.get("bias")
    groups, transposed = int(named["groups"]), bool(named.get("transposed", False))
    at = 1 if x.ndim == weight.ndim else 0  # the axis of channels
    sides, each = _sides(record, x, at, output)
    entering = record.vector(x, at)
    first, second = record.vector(weight, 0), record.vector(weight, 1)
    makes = True
    if groups == 1:
        record.unite(entering, second if not transposed else first)
        leaving = first if not transposed else second
    elif not transposed and narrowed_evenly(groups, groups * weight.shape[1]):
        # Narrowed evenly inside each group: entry j of every group is one channel.
        blocks = entering.reshape(groups, -1)
        record.unite(blocks, second.expand_as(blocks))
        blocks = first.reshape(groups, -1)
        record.unite(blocks, blocks[:1].expand_as(blocks))
        leaving = first
    else:
        # Narrowed by whole groups: all entries of a group, in and out, are one channel.
        makes = False
        blocks = entering.reshape(groups, -1)
        head = first.reshape(groups, -1)[:, :1]
        record.unite(blocks, head.expand_as(blocks))
        record.unite(first.reshape(groups, -1), head.expand(groups, first.numel() // groups))
        if (second >= 0).any():
            record.pin_atoms(second[second >= 0].numpy(), "the size of a convolution's groups stays")
        if fits_any(first):  # a filter that the forward expands to the number of channels
            head = merged(head, blocks[:, :1])
        leaving = head.expand(groups, output.shape[at] // groups).flatten()
        _groups_follow(record, weight, groups)
    if bias is not None:
        record.unite(leaving, record.vector(bias, 0))
    record.label(output, [along(leaving, at, output.shape), *sides])
    images = math.prod(x.shape[:at]) // record.images if at else 1
    positions = images * math.prod((x if transposed else output).shape[1 + at :])
    if id(weight) in record.expanded:
        each = tuple(entering.tolist())
        positions *= len(each)
    record.layer(weight, positions // max(len(each), 1), 1 if transposed else 0, makes, each)


def _sides(record: Record, x: Tensor, at: int, output: Tensor) -> tuple[list[Tensor], tuple[int, ...]]:
    """Channels on the other axes of a convolution: planes of its output, and the atoms of the positions.

    On the only axis of a signal, if it keeps its length, they are mixed with their neighbours; on the batch
    axis they are images; on other axes they would change the size of the image, so they are pinned.
    """
    planes, each = [], ()
    for plane in record.of(x):
        varying = axes_of(plane)
        if at in varying or fits_any(plane):
            continue
        if len(varying) == 1 and x.shape[varying[0]] == output.shape[varying[0]] and not each:
            atoms = compact(plane).flatten()
            images = record.images if varying[0] < at else 1
            each = tuple(atoms[: len(atoms) // images].tolist())
            planes.append(along(atoms, varying[0], output.shape))
            if varying[0] > at:
                record.mark(x, varying, ordered=True)
        else:
            record.pin_plane(plane, f"it becomes a spatial axis in {record.where}")
    return planes, each


def _groups_follow(record: Record, weight: Tensor, groups: int) -> None:
    """Record that the module's number of groups follows its weight, whatever its attribute is called."""
    each = weight.shape[0] // groups
    if record.sized("groups", weight, each) or not record.inside:
        return
    equal = [
        name for name, value in vars(record.inside[-1][1]).items() if value == groups and type(value) is int
    ]
    for name in equal:
        record.sized(name, weight, each)


@rule("linear")
def linear(record: Record, call: Call) -> None:
    """A product over the last axis of the input and of the weight."""
    x, weight, *bias = call.args
    _multiply(record, call.outputs[0], x, weight, 1, *bias)


@rule(*PRODUCTS)
def product(record: Record, call: Call) -> None:
    """A product over the last axis of the first and the second to last of the second argument."""
    left, right = call.args[:2]
    _multiply_matrices(record, call.outputs[0], left, right)


@rule(*PRODUCTS_WITH_BIAS)
def product_with_bias(record: Record, call: Call) -> None:
    """A product of the second and third argument, added to the first."""
    bias, left, right = call.args[:3]
    _multiply_matrices(record, call.outputs[0], left, right, bias)


def _multiply_matrices(
    record: Record, output: Tensor, left: Tensor, right: Tensor, bias: Tensor | None = None
) -> None:
    for tensor in (left, right):
        whole_products(record, tensor, tensor.ndim - 2)
    _multiply(record, output, left, right, right.ndim - 2, bias)


def _multiply(
    record: Record, output: Tensor, left: Tensor, right: Tensor, across: int, bias: Tensor | None = None
) -> None:
    """The sum over the last axis of `left` and the axis `across` of `right`, the last or the one before."""
    record.unite(record.vector(left, left.ndim - 1), record.vector(right, across))
    planes = [
        compact(plane).expand(output.shape)
        for plane in record.of(left)
        if left.ndim - 1 not in axes_of(plane) and left.ndim == output.ndim
    ]
    for plane in record.of(right):
        if across not in axes_of(plane):
            kept = compact(plane) if across == right.ndim - 2 else compact(plane).mT
            planes.append(kept.expand(output.shape))
    joined = record.joined(planes)
    if bias is not None:
        joined = record.joined([*joined, *(plane.expand(output.shape) for plane in record.of(bias))])
    record.label(output, joined)
    weight = right if id(right) in record.origin else left
    rows = left.numel() // left.shape[-1] if weight is right else right.numel() // right.shape[across]
    positions, each = rows // record.images, ()
    if weight is right:
        for plane in record.of(left):
            varying = axes_of(plane)
            if left.ndim - 1 in varying or len(varying) != 1 or fits_any(plane):
                continue
            atoms = compact(plane).flatten()
            images = record.images if varying == (0,) else 1
            if len(atoms) % images == 0:
                each = tuple(atoms[: len(atoms) // images].tolist())
    record.layer(weight, positions // max(len(each), 1), 0, True, each)


def whole_products(record: Record, tensor: Tensor, batch: int) -> None:
    """If the first `batch` axes carry channels, each of their matrices is kept or removed as a whole.

    These are the heads of an attention: all channels of a head belong to it, in queries, keys and values.
    """
    planes = []
    for plane in record.of(tensor):
        heads = tuple(axis for axis in axes_of(plane) if axis < batch)
        planes.append(record.gathered(plane, *heads) if heads else plane)
    record.label(tensor, planes)


@rule(
    *("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu"),
    *("_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention"),
    *("_scaled_dot_product_cudnn_attention", "_scaled_dot_product_attention_math"),
)
def attention(record: Record, call: Call) -> None:
    """Scaled dot product attention: for each head, a product of queries and keys, and one with the values."""
    named, output = call.named, call.outputs[0]
    query, key, value = inputs = named["query"], named["key"], named["value"]
    batch = query.ndim - 2
    heads = []
    for tensor in inputs:
        whole_products(record, tensor, batch)
        shared = tensor.shape[:batch] != query.shape[:batch]
        for plane in record.of(tensor):
            if batch in axes_of(plane) or (shared and not fits_any(plane)):
                record.pin_plane(plane, f"it is a sequence, or shared by several heads, in {record.where}")
            elif batch + 1 not in axes_of(plane):
                heads.append(compact(plane).expand(output.shape))
    record.unite(record.vector(query, batch + 1), record.vector(key, batch + 1))
    record.mark(query, (batch + 1,))  # the scale depends on the size of a head
    inside = along(record.vector(value, batch + 1), batch + 1, output.shape)
    record.label(output, record.joined([*heads, inside]))


@rule(
    *("_native_multi_head_attention", "_transformer_encoder_layer_fwd"),
    *("mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn"),
)
def fused(record: Record, call: Call) -> None:
    """Several layers, of attention or a recurrent network, on every token: counted, but frozen."""
    unknown(record, call)
    tokens = call.tensors[0]
    positions = tokens.numel() // tokens.shape[-1] // record.images
    for weight in call.tensors:
        if weight.ndim == 2 and id(weight) in record.origin:
            record.layer(weight, positions, 0, False)


@rule(
    *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
    *("_batch_norm_with_update", "_batch_norm_no_update", "cudnn_batch_norm", "batch_norm"),
)
def batch_norm(record: Record, call: Call) -> None:
    """Each channel is normalised on its own."""
    _per_channel(record, call.named, call.outputs[0], ("weight", "bias", "running_mean", "running_var"))


def _per_channel(record: Record, named: dict[str, Any], output: Tensor, keys: tuple[str, ...]) -> None:
    x = named["input"]
    record.mark(x, tuple(axis for axis in range(x.ndim) if axis != 1))
    for key in keys:
        if named.get(key) is not None:
            record.unite(record.vector(x, 1), record.vector(named[key], 0))
    record.label(output, list(record.of(x)))


@rule("native_layer_norm")
def layer_norm(record: Record, call: Call) -> None:
    """Normalisation over the last axes, whose sizes the module keeps in an attribute."""
    named = call.named
    x, weight = named["input"], named["weight"]
    dims = range(x.ndim - len(named["normalized_shape"]), x.ndim)
    record.mark(x, tuple(dims))
    if weight is None or id(weight) not in record.origin:
        fixed = f"{record.where} normalises over a fixed number of channels"
        for plane in record.of(x):
            if set(dims) & set(axes_of(plane)):
                record.pin_plane(plane, fixed)
    else:
        record.sized("normalized_shape", weight, 0)
    combine(record, [t for t in (x, weight, named["bias"]) if t is not None], call.outputs)


@rule("native_group_norm")
def group_norm(record: Record, call: Call) -> None:
    """Narrowed by whole groups if the module's number of groups can follow its weight, else in each group.

    A number of groups that is fixed in the code stays, and a narrow network normalises over fewer channels
    per group.
    """
    named, output = call.named, call.outputs[0]
    channels, groups = int(named["C"]), int(named["group"])
    blocks = record.vector(named["input"], 1).reshape(groups, -1)
    if groups == 1:
        record.mark(named["input"], (1,))
    elif record.sized("num_groups", named.get("weight"), channels // groups):
        record.unite(blocks, blocks[:, :1].expand_as(blocks))
    elif groups < channels:
        record.unite(blocks, blocks[:1].expand_as(blocks))
        record.mark(named["input"], (1,))
    _per_channel(record, named, output, ("weight", "bias"))
