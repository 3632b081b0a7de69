"""ONNX operators as PyTorch functions: those that PyTorch's exporter uses for convolutional networks.

In: attributes and inputs of a node, as ONNX defines them at opsets 13 to 20. Out: one tensor, or several.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor

from bcnet.errors import NetworkError

Attributes = Mapping[str, Any]
# Inputs that are parameters of an operator rather than data: lists of Python numbers, constant in the
# network.
LISTS = {
    "Expand": (1,),
    "Pad": (1, 2, 3),
    "ReduceL2": (1,),
    "ReduceMax": (1,),
    "ReduceMean": (1,),
    "ReduceMin": (1,),
    "ReduceSum": (1,),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
}


def dtype_of(number: int) -> torch.dtype:
    """The PyTorch type of an ONNX type, given as its number."""
    try:
        return torch.from_numpy(np.empty(0, helper.tensor_dtype_to_np_dtype(number))).dtype
    except (TypeError, KeyError):
        kind = onnx.TensorProto.DataType.Name(number)
        raise NetworkError(f"PyTorch does not support the ONNX type {kind}") from None


def tensor_of(entry: onnx.TensorProto) -> Tensor:
    """The tensor of a constant in an ONNX file."""
    return torch.from_numpy(numpy_helper.to_array(entry).copy())


def _refuse(condition: bool, what: str) -> None:
    """Raise NetworkError if an operator has a form that is not supported."""
    if condition:
        raise NetworkError(f"torch-cuda does not support {what}; use another runtime")


def _all_ones(values: Sequence[float]) -> bool:
    return all(value == 1 for value in values)


def _padded(at: Attributes, x: Tensor, fill: float = 0.0, limit: Sequence[int] = ()) -> tuple[Tensor, Any]:
    """An operator's input and its padding: the input is padded here if PyTorch's operator cannot do it.

    PyTorch supports only equal padding on both sides, in pooling up to `limit` on an axis.
    """
    axes = x.ndim - 2
    _refuse(at.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"), f"auto_pad {at.get('auto_pad')}")
    pads = list(at.get("pads") or [0] * 2 * axes)
    begins, ends = pads[:axes], pads[axes:]
    if begins == ends and all(pad <= most for pad, most in zip(begins, limit, strict=False)):
        return x, begins
    return F.pad(x, _last_first(begins, ends), value=fill), [0] * axes


def _last_first(begins: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Padding in the order of F.pad: pairs, the last axis first."""
    return [pad for pair in zip(reversed(begins), reversed(ends), strict=True) for pad in pair]


def _conv(at: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x, padding = _padded(at, x)
    convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3]
    ones = [1] * (x.ndim - 2)
    strides, dilations = at.get("strides", ones), at.get("dilations", ones)
    result: Tensor = convolve(x, weight, bias, strides, padding, dilations, at.get("group", 1))
    return result


def _conv_transpose(at: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    axes = x.ndim - 2
    pads, extra = at.get("pads", [0] * 2 * axes), at.get("output_padding", [0] * axes)
    _refuse(at.get("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in at, "ConvTranspose of a given size")
    _refuse(pads[:axes] != pads[axes:], "ConvTranspose with unequal padding")
    convolve: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
    strides, dilations = at.get("strides", [1] * axes), at.get("dilations", [1] * axes)
    group = at.get("group", 1)
    result: Tensor = convolve(x, weight, bias, strides, pads[:axes], extra, group, dilations)
    return result


def _gemm(at: Attributes, a: Tensor, b: Tensor, c: Any = None) -> Tensor:
    alpha, beta = at.get("alpha", 1.0), at.get("beta", 1.0)
    a = a.T if at.get("transA", 0) else a
    if (
        at.get("transB", 0)
        and alpha == 1
        and (c is None or (beta == 1 and isinstance(c, Tensor) and c.ndim == 1))
    ):
        return F.linear(a, b, c)
    product: Tensor = alpha * (a @ (b.T if at.get("transB", 0) else b))
    if c is not None:
        product = product + beta * c
    return product


def _max_pool(at: Attributes, x: Tensor) -> Tensor:
    kernel = at["kernel_shape"]
    x, padding = _padded(at, x, -math.inf, [size // 2 for size in kernel])
    pool: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    ones = [1] * len(kernel)
    strides, dilations = at.get("strides", ones), at.get("dilations", ones)
    result: Tensor = pool(x, kernel, strides, padding, dilations, bool(at.get("ceil_mode", 0)))
    return result


def _average_pool(at: Attributes, x: Tensor) -> Tensor:
    kernel = at["kernel_shape"]
    counted = bool(at.get("count_include_pad", 0))
    _refuse(not _all_ones(at.get("dilations", ())), "AveragePool with dilations")
    before = x
    x, padding = _padded(at, x, 0.0, [size // 2 for size in kernel])
    _refuse(
        x is not before and bool(at.get("ceil_mode", 0)), "AveragePool with unequal padding and ceil_mode"
    )
    pool: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel) - 1]
    strides, ceiled = at.get("strides", [1] * len(kernel)), bool(at.get("ceil_mode", 0))
    result: Tensor = pool(x, kernel, strides, padding, ceiled, counted)
    if x is not before and not counted:  # the padding is in the sums, but must not be in the counts
        ones, _ = _padded(at, torch.ones_like(before[:1, :1]), 0.0, [size // 2 for size in kernel])
        result = result / pool(ones, kernel, strides, padding, ceiled, True)
    return result


def _spatial(x: Tensor) -> list[int]:
    return list(range(2, x.ndim))


def _reduce(how: Callable[..., Tensor], at: Attributes, x: Tensor, axes: Any = None) -> Tensor:
    axes = at.get("axes", axes)
    if not axes:
        if at.get("noop_with_empty_axes", 0):
            return x
        axes = list(range(x.ndim))
    return how(x, dim=axes, keepdim=bool(at.get("keepdims", 1)))


def _batch_norm(at: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    _refuse(bool(at.get("training_mode", 0)), "BatchNormalization in training mode")
    scale, bias = scale.to(mean.dtype), bias.to(mean.dtype)  # statistics of an fp16 file may be float32
    return F.batch_norm(x, mean, var, scale, bias, eps=at.get("epsilon", 1e-5))


def _layer_norm(at: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    shape = list(x.shape[at.get("axis", -1) :])
    return F.layer_norm(x, shape, scale, bias, at.get("epsilon", 1e-5))


def _instance_norm(at: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=at.get("epsilon", 1e-5))


def _hard_sigmoid(at: Attributes, x: Tensor) -> Tensor:
    alpha, beta = at.get("alpha", 0.2), at.get("beta", 0.5)
    if beta == 0.5 and math.isclose(alpha, 1 / 6, rel_tol=1e-6):
        return F.hardsigmoid(x)  # one kernel
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


def _divide(at: Attributes, a: Any, b: Any) -> Tensor:
    whole = not any(
        value.is_floating_point() if isinstance(value, Tensor) else isinstance(value, float)
        for value in (a, b)
    )
    result: Tensor = torch.div(torch.as_tensor(a), b, rounding_mode="trunc") if whole else a / b
    return result


def _extreme(how: Callable[..., Tensor], at: Attributes, *inputs: Any) -> Tensor:
    kind = next(value.dtype for value in inputs if isinstance(value, Tensor))
    return reduce(how, [torch.as_tensor(value, dtype=kind) for value in inputs])


def _reshape(at: Attributes, x: Tensor, shape: list[int]) -> Tensor:
    copied = not at.get("allowzero", 0)
    return x.reshape([x.shape[i] if size == 0 and copied else size for i, size in enumerate(shape)])


def _flatten(at: Attributes, x: Tensor) -> Tensor:
    axis = at.get("axis", 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _squeeze(at: Attributes, x: Tensor, axes: list[int] | None = None) -> Tensor:
    axes = at.get("axes", axes)
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _unsqueeze(at: Attributes, x: Tensor, axes: Any = None) -> Tensor:
    axes = at.get("axes", axes)
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _slice(at: Attributes, x: Tensor, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Tensor:
    _refuse(any(step < 1 for step in steps or ()), "Slice with a negative step")
    places: list[Any] = [slice(None)] * x.ndim
    axes, steps = axes or range(len(starts)), steps or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        places[axis] = slice(start, end, step)
    return x[tuple(places)]


def _split(at: Attributes, x: Tensor, sizes: list[int] | None = None) -> tuple[Tensor, ...]:
    axis = at.get("axis", 0)
    parts = torch.split(x, sizes or -(-x.shape[axis] // at["outputs"]), axis)
    _refuse(len(parts) != at["outputs"], f"Split of {x.shape[axis]} into {at['outputs']} parts")
    return parts


def _gather(at: Attributes, x: Tensor, indices: Any) -> Tensor:
    axis = at.get("axis", 0) % x.ndim
    if isinstance(indices, int):
        return x.select(axis, indices)
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    picked = x.index_select(axis, indices.flatten())
    return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _gather_nd(at: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    _refuse(bool(at.get("batch_dims", 0)), "GatherND with batch_dims")
    return x[indices.unbind(-1)]


def _pad(at: Attributes, x: Tensor, pads: list[int], fill: Any = None, axes: Any = None) -> Tensor:
    count = len(pads) // 2
    begins, ends = [0] * x.ndim, [0] * x.ndim
    for place, axis in enumerate(range(x.ndim) if axes is None else axes):
        begins[axis], ends[axis] = pads[place], pads[place + count]
    mode = at.get("mode", "constant")
    both = _last_first(begins, ends)
    if mode == "constant":
        return F.pad(x, both, value=fill or 0.0)
    inner = 2 * max(x.ndim - 2, 1)  # PyTorch supports only all inner axes
    _refuse(any(both[inner:]), f"Pad of batch or channels, {mode}")
    return F.pad(x, both[:inner], {"edge": "replicate", "wrap": "circular"}.get(mode, str(mode)))


def _resize(at: Attributes, x: Tensor, roi: Any = None, scales: Any = None, sizes: Any = None) -> Tensor:
    mode, where = at.get("mode", "nearest"), at.get("coordinate_transformation_mode", "half_pixel")
    rounding = at.get("nearest_mode", "round_prefer_floor")
    axes = [axis % x.ndim for axis in at.get("axes", range(x.ndim))]
    to = dict(zip(axes, sizes or scales, strict=True))
    factors = [size / x.shape[axis] if sizes else size for axis, size in to.items()]
    # PyTorch rounds halfway cases up. With integer factors there are none.
    halfway_up = rounding == "round_prefer_ceil" or (
        rounding == "round_prefer_floor" and all(factor == int(factor) > 0 for factor in factors)
    )
    exact = mode == "nearest" and where == "half_pixel" and halfway_up
    plain = mode == "nearest" and where == "asymmetric" and rounding == "floor"
    smooth = mode != "nearest" and where in ("half_pixel", "align_corners")
    _refuse(
        not (exact or plain or smooth)
        or bool(at.get("antialias", 0) or at.get("exclude_outside", 0))
        or at.get("keep_aspect_ratio_policy", "stretch") != "stretch"
        or (mode == "cubic" and at.get("cubic_coeff_a", -0.75) != -0.75),
        f"Resize of this kind ({mode}, {where}, {rounding})",
    )
    unchanged = [
        to.get(axis, x.shape[axis] if sizes else 1) == (x.shape[axis] if sizes else 1) for axis in (0, 1)
    ]
    _refuse(not all(unchanged), "Resize of batch or channels")
    spatial = [to.get(axis, x.shape[axis] if sizes else 1.0) for axis in _spatial(x)]
    names = {"nearest": "nearest-exact" if exact else "nearest", "cubic": "bicubic"}
    name = names.get(mode, ("linear", "bilinear", "trilinear")[len(spatial) - 1])
    corners = None if mode == "nearest" else where == "align_corners"
    if sizes:
        return F.interpolate(x, size=spatial, mode=name, align_corners=corners)
    return F.interpolate(x, scale_factor=spatial, mode=name, align_corners=corners)


def _depth_to_space(at: Attributes, x: Tensor) -> Tensor:
    block = at["blocksize"]
    if at.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    spread = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return spread.reshape(n, c // block**2, h * block, w * block)


def _constant(at: Attributes) -> Tensor:
    ((kind, value),) = at.items()
    _refuse(
        kind not in ("value", "value_int", "value_ints", "value_float", "value_floats"), f"Constant {kind}"
    )
    if kind == "value":
        return tensor_of(value)
    return torch.tensor(value, dtype=torch.float32 if "float" in kind else torch.int64)


def _plain(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An operator without attributes."""
    return lambda at, *inputs: function(*inputs)


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "Abs": _plain(torch.abs),
    "Add": _plain(operator.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": lambda at, x: x.to(dtype_of(at["to"])),
    "Clip": lambda at, x, low=None, high=None: (
        torch.clamp(x, low, high) if (low, high) != (None, None) else x
    ),
    "Concat": lambda at, *inputs: torch.cat(inputs, at["axis"]),
    "Constant": _constant,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": _depth_to_space,
    "Div": _divide,
    "Elu": lambda at, x: F.elu(x, at.get("alpha", 1.0)),
    "Equal": _plain(operator.eq),
    "Erf": _plain(torch.erf),
    "Exp": _plain(torch.exp),
    "Expand": lambda at, x, shape: x.expand(np.broadcast_shapes(tuple(x.shape), tuple(shape))),
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Gelu": lambda at, x: F.gelu(x, approximate=at.get("approximate", "none")),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda at, x: x.mean(_spatial(x), keepdim=True),
    "GlobalMaxPool": lambda at, x: x.amax(_spatial(x), keepdim=True),
    "Greater": _plain(operator.gt),
    "GreaterOrEqual": _plain(operator.ge),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _plain(F.hardswish),
    "Identity": _plain(lambda x: x),
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda at, x: F.leaky_relu(x, at.get("alpha", 0.01)),
    "Less": _plain(operator.lt),
    "LessOrEqual": _plain(operator.le),
    "Log": _plain(torch.log),
    "MatMul": _plain(torch.matmul),
    "Max": partial(_extreme, torch.maximum),
    "MaxPool": _max_pool,
    "Min": partial(_extreme, torch.minimum),
    "Mish": _plain(F.mish),
    "Mul": _plain(operator.mul),
    "Neg": _plain(torch.neg),
    "PRelu": _plain(lambda x, slope: torch.where(x >= 0, x, x * slope)),
    "Pad": _pad,
    "Pow": _plain(operator.pow),
    "Reciprocal": _plain(torch.reciprocal),
    "ReduceL2": partial(_reduce, torch.linalg.vector_norm),
    "ReduceMax": partial(_reduce, torch.amax),
    "ReduceMean": partial(_reduce, torch.mean),
    "ReduceMin": partial(_reduce, torch.amin),
    "ReduceSum": partial(_reduce, torch.sum),
    "Relu": _plain(torch.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Sigmoid": _plain(torch.sigmoid),
    "Slice": _slice,
    "Softmax": lambda at, x: torch.softmax(x, at.get("axis", -1)),
    "Softplus": _plain(F.softplus),
    "Split": _split,
    "Sqrt": _plain(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _plain(operator.sub),
    "Tanh": _plain(torch.tanh),
    "Transpose": lambda at, x: x.permute(at.get("perm", tuple(reversed(range(x.ndim))))),
    "Unsqueeze": _unsqueeze,
    "Where": _plain(torch.where),
}
