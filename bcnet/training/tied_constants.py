"""Find how constants of an exported graph follow from a network's tensors, so that these can be trained.

In: a network and its ONNX graph. Out: for each constant that is a parameter (unchanged, transposed, or with
batch norm folded in), a function that computes it from the network's tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

from bcnet.space.inputs import arguments

Tensors = Mapping[str, Tensor]  # those of a network, by name
BatchNorm = nn.modules.batchnorm._BatchNorm
CLOSE = 1e-4  # relative to the largest value, since the exporter folds in another order
OUTPUTS = {"Conv": 0, "Gemm": 0, "ConvTranspose": 1}  # the axis of a weight's output channels


@dataclass(frozen=True)
class Tied:
    """A constant of the graph: the network's tensor `name`, or None for a bias that only batch norm adds.

    With `transposed`, its two axes are swapped. `norm` is the batch norm that is folded in: along `axis` of a
    weight, or into a bias if that is None; `eps` is the norm's epsilon.
    """

    name: str | None
    transposed: bool = False
    norm: str | None = None
    axis: int | None = None
    eps: float = 0.0

    def of(self, tensors: Tensors) -> Tensor:
        """The constant."""
        own = None if self.name is None else tensors[self.name]
        if self.norm is None:
            assert own is not None
            return own.T if self.transposed else own
        mean, var = (tensors[f"{self.norm}.running_{kind}"] for kind in ("mean", "var"))
        factor = torch.rsqrt(var + self.eps)
        if f"{self.norm}.weight" in tensors:
            factor = factor * tensors[f"{self.norm}.weight"]
        if self.axis is None:
            shifted = -mean * factor if own is None else (own - mean) * factor
            return shifted + tensors[f"{self.norm}.bias"] if f"{self.norm}.bias" in tensors else shifted
        assert own is not None
        return own * factor.reshape([-1 if place == self.axis else 1 for place in range(own.ndim)])

    def needs(self, tensors: Tensors) -> set[str]:
        """The names of the tensors that it is computed from."""
        named = [] if self.name is None else [self.name]
        named += [f"{self.norm}.{kind}" for kind in ("weight", "bias")] if self.norm else []
        return {name for name in named if name in tensors}


def tied_constants(network: nn.Module, proto: ModelProto, example: Any) -> dict[str, Tied]:
    """The constants of the graph that are the network's parameters; `example` are inputs of the network.

    Each is compared with its value in the graph. Others, e.g. weights that the network computes from its
    parameters, are left out.
    """
    tensors = named_tensors(network)
    arrays = {entry.name: numpy_helper.to_array(entry) for entry in proto.graph.initializer}
    floats = {name: array for name, array in arrays.items() if array.dtype == np.float32}
    norms = _norms(network, example)
    found: dict[str, Tied] = {}

    def keep(constant: str, *guesses: Tied) -> None:
        for guess in guesses:
            if constant in floats and constant not in found and _same(guess, tensors, floats[constant]):
                found[constant] = guess

    for node in proto.graph.node:
        if node.op_type not in OUTPUTS or len(node.input) < 2:
            continue
        weight, *bias = node.input[1:3]
        module = weight.removesuffix(".weight")
        norm = norms.get(module)
        if norm is None or weight not in tensors:
            continue
        name, eps = norm
        keep(weight, Tied(weight), Tied(weight, norm=name, axis=OUTPUTS[node.op_type], eps=eps))
        own = f"{module}.bias" if f"{module}.bias" in tensors else None
        for constant in bias:
            keep(constant, Tied(own, norm=name, eps=eps))
    parameters = dict(network.named_parameters())
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, parameter in parameters.items():
        by_shape.setdefault(tuple(parameter.shape), []).append(name)
    for constant, array in floats.items():
        if constant in parameters:
            keep(constant, Tied(constant))
        elif array.ndim == 2:
            keep(constant, *(Tied(name, True) for name in by_shape.get(array.shape[::-1], ())))
    return found


def named_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by all their names: a shared tensor has several."""
    named = network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False)
    return {name: tensor for own in named for name, tensor in own}


def _same(guess: Tied, tensors: Tensors, array: np.ndarray) -> bool:
    with torch.no_grad():
        value = guess.of(tensors).numpy()
    if value.shape != array.shape:
        return False
    limit = CLOSE * float(np.abs(array).max(initial=0.0))
    return bool(np.allclose(value, array, rtol=0.0, atol=limit))


def _norms(network: nn.Module, example: Any) -> dict[str, tuple[str, float]]:
    """The batch norm (name and epsilon) after each module whose output it alone reads first."""
    made: dict[
        int, tuple[str, Tensor]
    ] = {}  # tensors are kept alive, since their addresses would be reused otherwise
    found: dict[str, tuple[str, float]] = {}
    names = {module: name for name, module in network.named_modules()}

    def ran(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        before = made.get(id(inputs[0])) if inputs else None
        if isinstance(module, BatchNorm) and before and module.track_running_stats:
            found[before[0]] = names[module], module.eps
        elif isinstance(output, Tensor) and isinstance(getattr(module, "weight", None), nn.Parameter):
            made[id(output)] = names[module], output

    handles = [module.register_forward_hook(ran) for module in names]
    args, kwargs = arguments(example)
    try:
        with torch.no_grad():
            network.eval()(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found
