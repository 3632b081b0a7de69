"""Layers of binary networks: activations and weights of one bit (ReActNet, arXiv 2003.03488).

In: real maps (N, C, H, W). Out: real maps; between `RSign` and the end of a `BinaryConv2d` all values are -1
or 1, so that a convolution gives integers, which every runtime computes exactly. Training goes on through
real weights and approximate derivatives. `Operations` counts what is binary and what is not.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bcnet.errors import ModelError

WORD = 32  # channels that a kernel packs into one word: widths of binary layers are multiples of it
BITS = 8 * 4  # of a real parameter


class _Signs(torch.autograd.Function):
    """1 for positive values, -1 for all others.

    Its derivative is that of a piecewise quadratic approximation (Bi-Real Net, arXiv 1808.00278):
    2 - 2 |x| where |x| < 1, else 0.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _signs(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope: Tensor = (2 - 2 * x.abs()).clamp_min(0)
        return gradient * slope


class _WeightSigns(torch.autograd.Function):
    """The signs of a weight. The gradient is the one of the published layer, `mean|W| * sign(W)`.

    There the mean is over each output channel and takes no part in the derivative, and gradients pass where
    |W| <= 1. The factor itself is left out, because a batch norm follows and divides by it again.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return weight.sign()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (weight,) = ctx.saved_tensors
        size = weight.abs()
        scale = size.mean((1, 2, 3), keepdim=True).clamp_min(torch.finfo(size.dtype).tiny)
        passed: Tensor = gradient / scale * (size <= 1)
        return passed


def _signs(x: Tensor) -> Tensor:
    one = x.new_ones(())
    return torch.where(x > 0, one, -one)


def _differentiable(function: Any, plain: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The function with its own derivative; an exported program has the plain operators alone."""
    if torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_exporting():
        found: Tensor = function.apply(x)
        return found
    return plain(x)


class RSign(nn.Module):
    """The sign of each entry above a learnt threshold of its channel. Not `binary`: the shift alone.

    See `only_binary` for `real`.
    """

    def __init__(self, channels: int, binary: bool = True) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.binary = binary
        self.real = False

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.bias
        return _differentiable(_Signs, _signs, x) if self.binary else x

    def extra_repr(self) -> str:
        return f"binary={self.binary}"


class Shift(nn.Module):
    """A learnt shift of each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class RPReLU(nn.Sequential):
    """PReLU with a slope for each channel, between two learnt shifts."""

    def __init__(self, channels: int) -> None:
        super().__init__(Shift(channels), nn.PReLU(channels), Shift(channels))


class BinaryConv2d(nn.Conv2d):
    """A convolution with the signs of its real weights, padded by zeros. Not `binary`: the weights as such.

    A batch norm has to follow: see `_WeightSigns`. `channel_multiple` is what the widths of its channels are
    multiples of in a width space, whether it is binary or not. See `only_binary` for `real`.
    """

    channel_multiple = WORD

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, *, binary: bool = True
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.binary = binary
        self.real = False

    def reset_parameters(self) -> None:
        """Initial weights as usual, but none is zero, which has no sign; of millions, one often is."""
        super().reset_parameters()
        with torch.no_grad():
            self.weight.masked_fill_(self.weight == 0, torch.finfo(self.weight.dtype).eps)

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.weight
        if self.binary:
            weight = _differentiable(_WeightSigns, torch.sign, weight)
        sums: Tensor = self._conv_forward(x, weight, None)
        return sums

    def deployed(self) -> nn.Conv2d:
        """The ordinary convolution that a file holds. Raises ModelError where a weight has no sign."""
        weight = self.weight.detach()
        if self.binary:
            weight = weight.sign()
            zeros = int((weight == 0).sum())
            if zeros:
                weights, are = ("weight", "is") if zeros == 1 else ("weights", "are")
                raise ModelError(
                    f"{zeros:,} {weights} of a binary convolution of shape {tuple(weight.shape)} {are} zero, "
                    "which one bit cannot hold: train the network, or load trained weights"
                )
        sizes = (self.in_channels, self.out_channels, self.kernel_size[0], self.stride[0], self.padding[0])
        layer = nn.Conv2d(*sizes, bias=False, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        return layer

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, binary={self.binary}"  # type: ignore[no-untyped-call]


def set_binary(model: nn.Module, *, activations: bool, weights: bool) -> None:
    """Choose what a network's binary layers compute with from now on; its tensors stay as they are.

    Layers that `only_binary` made real stay so.
    """
    for module in model.modules():
        if isinstance(module, RSign):
            module.binary = activations and not module.real
        elif isinstance(module, BinaryConv2d):
            module.binary = weights and not module.real


def has_binary(model: nn.Module) -> bool:
    """Whether anything in a network is binary now: activations or weights of any layer."""
    return any(isinstance(own, RSign | BinaryConv2d) and own.binary for own in model.modules())


def layers_of_one_bit(model: nn.Module) -> dict[str, tuple[nn.Module, ...]]:
    """The layers that can be binary, by the name of their convolution, in order: the sign, the convolution.

    A sign belongs to all convolutions that are registered between it and the next one, which read it; they
    are one layer, with the name of the first.
    """
    found: dict[str, tuple[nn.Module, ...]] = {}
    sign: RSign | None = None
    layer = ""
    for name, module in model.named_modules():
        if isinstance(module, RSign):
            sign, layer = module, ""
        elif isinstance(module, BinaryConv2d) and sign is not None:
            layer = layer or name
            found[layer] = (*found.get(layer, (sign,)), module)
    return found


def only_binary(model: nn.Module, names: Iterable[str]) -> None:
    """Make these layers binary, and all others real: `set_binary`, and so training, leaves those real.

    Names are those of `layers_of_one_bit`. Raises ModelError for another one.
    """
    layers, names = layers_of_one_bit(model), set(names)
    if unknown := sorted(names - layers.keys(), key=str):
        known = ", ".join(layers) or "none"
        raise ModelError(f"there is no layer '{unknown[0]}' that can be binary; known: {known}")
    for name, modules in layers.items():
        for module in modules:
            assert isinstance(module, RSign | BinaryConv2d)
            module.binary, module.real = name in names, name not in names


@dataclass(frozen=True)
class Operations:
    """Multiply-accumulates per image of convolutions and linear layers, and parameters, by their kind.

    A product is binary if its weights are; their parameters then take one bit each when they are deployed.
    """

    binary_macs: int = 0
    real_macs: int = 0
    binary_params: int = 0
    real_params: int = 0

    @classmethod
    def of(cls, model: nn.Module, example: Tensor) -> "Operations":
        """Those of a network for one image of `example` (N, C, H, W)."""
        macs = {True: 0, False: 0}

        def count(module: nn.Module, _: Any, output: Tensor) -> None:
            weight = module.weight
            assert isinstance(weight, Tensor)
            positions = output[0].numel() // weight.shape[0]
            macs[_is_binary(module)] += positions * weight.numel()

        layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        handles = [module.register_forward_hook(count) for module in layers]
        training = model.training
        try:
            with torch.no_grad():
                model.eval()(example[:1])
        finally:
            model.train(training)
            for handle in handles:
                handle.remove()
        bits = sum(module.weight.numel() for module in layers if _is_binary(module))
        total = sum(parameter.numel() for parameter in model.parameters())
        return cls(macs[True], macs[False], bits, total - bits)

    @property
    def packed_bytes(self) -> int:
        """The size of the parameters where binary weights take one bit and all others 32."""
        return -(-(self.binary_params + BITS * self.real_params) // 8)

    @property
    def equivalent_macs(self) -> float:
        """Real multiply-accumulates, and the binary ones as a 64th of them, as papers count (`OPs`)."""
        return self.real_macs + self.binary_macs / 64


def _is_binary(module: nn.Module) -> bool:
    return isinstance(module, BinaryConv2d) and module.binary
