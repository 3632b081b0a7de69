"""The numbers of an INT8 file as PyTorch tensors that can be trained.

In: floats, and how ONNX Runtime quantises them. Out: the floats that its integers represent, to the last bit.
Gradients pass through the rounding, and are zero where values are outside the integers' range (a
straight-through estimator; Jacob et al., CVPR 2018, section 3).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bcnet.runtimes.onnx_torch import Operators
from bcnet.runtimes.torch_operators import OPERATORS

WEIGHTS = (-127, 127)  # symmetric
LEVELS = WEIGHTS[1] - WEIGHTS[0]
BIASES = 2**32 - 2  # difference between the largest and the smallest integer of a bias
ROOM = 1.0001  # factor by which a scale exceeds the smallest at which a bias fits into 32 bits
TINY = torch.finfo(torch.float32).tiny


class _Rounded(torch.autograd.Function):
    """ONNX's QuantizeLinear, which rounds halves to even, followed by DequantizeLinear."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, zero: Tensor, limits: tuple[int, int]) -> Tensor:
        levels = (values / scale).round_().add_(zero)
        ctx.save_for_backward((levels >= limits[0]) & (levels <= limits[1]))
        return levels.clamp_(*limits).sub_(zero).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None, None


def rounded(values: Tensor, scale: Tensor, zero: Tensor, limits: tuple[int, int]) -> Tensor:
    """The values rounded to integers between the limits, as floats; `scale` and `zero` are broadcast."""
    found: Tensor = _Rounded.apply(values, scale, zero, limits)
    return found


def weight_scale(
    weight: Tensor, axis: int | None, bias: Tensor | None = None, input_scale: Tensor | None = None
) -> Tensor:
    """The scales of a weight: one for each entry of `axis`, or a single one if that is None.

    With a `bias`, they are large enough for its integers, whose scale is theirs times `input_scale`.
    """
    size = weight.detach().abs()
    largest = size.max() if axis is None else size.movedim(axis, 0).flatten(1).amax(1)
    scale = 2 * largest.double() / LEVELS
    scale = torch.where(scale < TINY, 1.0, scale).float()
    if bias is None or input_scale is None:
        return scale
    own = bias.detach().double().abs()
    needed = ROOM * 2 * (own.max() if axis is None else own) / BIASES
    given = input_scale.double() * scale.double()
    grown = (scale.double() * (needed / given)).float()
    return torch.where((given < needed) & (given > 0), grown, scale)


def rounded_weight(weight: Tensor, axis: int | None, scale: Tensor) -> Tensor:
    """A weight rounded to its 8-bit integers, as floats."""
    if axis is not None:
        scale = scale.reshape([-1 if place == axis else 1 for place in range(weight.ndim)])
    return rounded(weight, scale, torch.zeros_like(scale), WEIGHTS)


class _RoundedBias(torch.autograd.Function):
    """A bias rounded to 32-bit integers, with the gradient of an unrounded one."""

    @staticmethod
    def forward(ctx: Any, bias: Tensor, scale: Tensor) -> Tensor:
        limit = torch.iinfo(torch.int32)
        levels = (bias.double() / scale.double()).round_().clamp_(limit.min, limit.max)
        return levels.float().mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient, None


def rounded_bias(bias: Tensor, scale: Tensor) -> Tensor:
    """A bias rounded to its 32-bit integers; `scale` is the product of the input's and the weight's."""
    found: Tensor = _RoundedBias.apply(bias, scale)
    return found


def _quantize(
    limits: tuple[int, int], at: Mapping[str, Any], values: Tensor, scale: Tensor, zero: Tensor
) -> Tensor:
    return rounded(values, scale, zero, limits)


def _dequantize(at: Mapping[str, Any], values: Tensor, scale: Any, zero: Any = 0) -> Tensor:
    if values.is_floating_point():
        return values  # those of `_quantize`, which has already rounded them
    scale, zero = torch.as_tensor(scale), torch.as_tensor(zero)
    if scale.ndim:
        axis = at.get("axis", 1) % values.ndim
        sides = [-1 if place == axis else 1 for place in range(values.ndim)]
        scale, zero = scale.reshape(sides), zero.reshape(sides)
    found: Tensor = (values.int() - zero.int()).float() * scale
    return found


def quantising_operators(unsigned: bool) -> Operators:
    """The operators of quantised files, on floats that integers can represent."""
    limits = (0, 255) if unsigned else (-128, 127)
    return {**OPERATORS, "QuantizeLinear": partial(_quantize, limits), "DequantizeLinear": _dequantize}
