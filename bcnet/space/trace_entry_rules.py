"""Rules for operators that create, combine and reduce entries: pointwise ones, reductions, pools.

In: an operator's call, and the `Record` of the traced network. Out: the labels of the call's results, and the
channels that must be kept or removed together.
"""

from torch import Tensor

from bcnet.space.trace_planes import axes_of, compact, fits_any, tidy
from bcnet.space.trace_record import Call, Record
from bcnet.space.trace_rules import rule


@rule(
    *("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided", "zeros", "ones", "full"),
    *("empty", "empty_strided"),
    always=True,
)
def create(record: Record, call: Call) -> None:
    """A tensor created from sizes that the forward computes may follow any channels, which a trial tests."""
    for output in call.outputs:
        record.label(output, record.fits(output, tuple(range(output.ndim))))


@rule("arange", "linspace", always=True)
def enumerate_positions(record: Record, call: Call) -> None:
    """A tensor created with entries that differ by their positions, from sizes that the forward computes."""
    for output in call.outputs:
        record.label(output, record.fits(output, tuple(range(output.ndim)), positional=True))


# Operators that keep the shape, beside those that PyTorch tags as pointwise.
@rule(
    *("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "zero", "fill"),
    *("bernoulli", "uniform", "normal", "native_dropout", "dropout", "feature_dropout"),
    *("clone", "_to_copy", "contiguous", "where", "masked_fill"),
    *("hardswish", "hardtanh", "_prelu_kernel", "prelu", "rrelu_with_noise"),
)
def pointwise(record: Record, call: Call) -> None:
    """Operands are united entry by entry."""
    combine(record, call.tensors, call.outputs)


@rule("copy")
def copy(record: Record, call: Call) -> None:
    """Operands are united entry by entry; a tensor that is overwritten does not count."""
    combine(record, call.tensors, call.outputs, writes=True)


def combine(record: Record, tensors: list[Tensor], outputs: list[Tensor], *, writes: bool = False) -> None:
    """Operands are united entry by entry; a tensor that does not follow the widths pins the others."""
    for output in outputs:
        shape = output.shape
        try:
            planes = [plane.expand(shape) for t in tensors for plane in record.of(t)]
        except RuntimeError:
            if output is outputs[0]:
                for tensor in tensors:
                    record.pin(tensor, f"it is reshaped in {record.where}")
            continue
        joined = record.joined(planes)
        if any(tensor is output for tensor in tensors):
            record.write(output, joined)
        for tensor in tensors:
            if id(tensor) in record.noise:
                continue
            if writes and tensor is output and tensor._base is None:
                continue  # overwritten
            lead = len(shape) - tensor.ndim
            covered = {axis + lead for plane in record.of(tensor) for axis in axes_of(plane)}
            fixed = {lead + axis for axis, size in enumerate(tensor.shape) if size > 1} - covered
            for plane in joined:
                if fixed & set(axes_of(plane)):
                    size = f"it is combined with a tensor of fixed size in {record.where}"
                    record.pin_plane(plane, record.because or size)
        record.label(output, joined)


@rule("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax")
def along_axis(record: Record, call: Call) -> None:
    """An operator that keeps the shape, and mixes the entries along one axis."""
    record.mark(call.tensors[0], (int(call.named["dim"]),))
    pointwise(record, call)


@rule("cumsum")
def accumulate(record: Record, call: Call) -> None:
    """An operator that keeps the shape, and mixes the entries along one axis in their order."""
    record.mark(call.tensors[0], (int(call.named["dim"]),), ordered=True)
    pointwise(record, call)


@rule(
    *("mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "prod"),
    *("linalg_vector_norm", "norm", "logsumexp", "any", "all", "argmax", "argmin"),
)
def reduce(record: Record, call: Call) -> None:
    """Entries along the reduced axes become one; those of the remaining axes are united across them."""
    x, dims = call.tensors[0], call.named.get("dim")
    dims = [dims] if isinstance(dims, int) else list(dims or range(x.ndim))
    dims = sorted({dim % max(x.ndim, 1) for dim in dims}, reverse=True)
    record.mark(x, tuple(dims))
    for output in call.outputs:
        planes = []
        for plane in record.of(x):
            varying = set(axes_of(plane))
            if varying <= set(dims):
                continue
            for dim in sorted(varying & set(dims)):  # entries that become one are kept or removed together
                record.unite(plane, plane.narrow(dim, 0, 1).expand_as(plane))
                plane = plane.narrow(dim, 0, 1).expand_as(plane)
            for dim in dims:
                plane = plane.narrow(dim, 0, 1) if output.ndim == x.ndim else plane.select(dim, 0)
            planes.append(plane)
        record.label(output, planes)


@rule(
    *("max_pool1d", "max_pool2d", "max_pool2d_with_indices", "max_pool3d_with_indices"),
    *("avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "adaptive_max_pool1d"),
    *("upsample_nearest1d", "upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_nearest3d"),
    *("upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
    *("upsample_linear1d", "upsample_trilinear3d", "reflection_pad1d", "reflection_pad2d"),
    *("reflection_pad3d", "replication_pad3d", "replication_pad1d", "replication_pad2d"),
    *("grid_sampler_2d", "roi_align", "roi_pool"),
)
def spatial(record: Record, call: Call) -> None:
    """The last axes, the spatial ones, change; the axes before them are unchanged."""
    source = call.tensors[0]
    sides = int(next((digit for digit in call.name if digit in "123"), source.ndim - 2))
    kept = []
    for plane in record.of(source):
        before = [axis for axis in axes_of(plane) if axis < source.ndim - sides]
        if before:
            kept.append(compact(record.gathered(plane, *before)))
        elif not fits_any(plane):
            record.pin_plane(plane, f"it becomes a spatial axis in {record.where}")
    for output in call.outputs:
        record.label(output, [p.expand(output.shape) for p in kept])


@rule("glu")
def gate(record: Record, call: Call) -> None:
    """The second half of an axis gates the first."""
    halves = [p.chunk(2, call.named.get("dim", -1)) for p in record.of(call.args[0])]
    for first, second in halves:
        record.unite(first, second)
    record.label(call.outputs[0], [tidy(first) for first, _ in halves])
