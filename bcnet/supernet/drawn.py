"""Runs of a network on random tensors, in which everything that it does affects the outputs.

In: a network. Out: its tensors with random parameters (`drawn_state`), runs in which no layer's output is
small (`of_unit_size`), and the operators of a run (`Watcher`).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bcnet.supernet.paths import State, tensors_of

POOL = 1_000_003  # normal numbers that weights are drawn from: a prime, so that rows are not alike


def drawn_state(probe: nn.Module) -> State:
    """The network's tensors with random parameters and normalisation statistics; other buffers unchanged."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(POOL, generator=generator)
    own = {id(parameter) for parameter in probe.parameters()}
    state: State = {}
    for name, tensor in tensors_of(probe).items():
        statistic = name.endswith(("running_mean", "running_var"))
        if not tensor.is_floating_point() or not (id(tensor) in own or statistic):
            state[name] = tensor
        elif name.endswith(("bias", "running_mean")):
            state[name] = torch.empty_like(tensor).uniform_(-0.1, 0.1, generator=generator)
        elif tensor.numel() == max(tensor.shape, default=1):  # one value per channel: a scale, a slope
            state[name] = torch.empty_like(tensor).uniform_(0.5, 1.5, generator=generator)
        else:
            size = math.sqrt(max(1, tensor[0].numel()))
            first = int(torch.randint(POOL, (), generator=generator))
            values = normal.roll(first).repeat(-(-tensor.numel() // POOL))[: tensor.numel()]
            state[name] = values.reshape(tensor.shape).to(tensor.dtype) / size
    return state


@contextmanager
def of_unit_size(probe: nn.Module, sizes: list[Tensor] | None = None) -> Iterator[list[Tensor]]:
    """During a run, divide the outputs of layers by their size; the block's value is the list of these sizes.

    Otherwise the first layers of a deep network would not affect its outputs (after LSUV; Mishkin and Matas,
    ICLR 2016). With `sizes`, those of an earlier run are used, so that both compute the same function.
    """
    found: list[Tensor] = []

    def divided(module: nn.Module, _: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            return None
        if sizes is None:
            size = output.square().mean().sqrt()
            found.append(size if bool(size.isfinite()) and float(size) > 0 else torch.ones_like(size))
        else:
            found.append(sizes[len(found)] if len(found) < len(sizes) else torch.ones(()))
        return output / found[-1]

    handles = [
        module.register_forward_hook(divided)
        for module in probe.modules()
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Operator:
    """One operator of a run: its name, the module that ran it, and what does not depend on positions."""

    name: str
    where: str
    moments: tuple[float, ...]

    def near(self, other: "Operator") -> bool:
        return len(self.moments) == len(other.moments) and all(
            math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-6)
            for a, b in zip(self.moments, other.moments, strict=True)
        )


class Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every operator."""

    def __init__(self, values: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.values = values
        self.inside: list[tuple[str, nn.Module]] = []
        self.found: list[Operator] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2].strip("_")
        moments: list[float] = []
        for leaf in tree_leaves(result) if self.values else ():
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel():
                values = leaf.double()
                moments += [float(values.abs().sum()), float(values.square().sum()), float(values.max())]
        where = f"'{self.inside[-1][0]}'" if self.inside and self.inside[-1][0] else "the network's forward"
        self.found.append(Operator(name, where, tuple(moments)))
        return result


def varied(leaf: Any) -> Any:
    """The input; random values from 0 to 1 in place of a constant one, such as a placeholder."""
    if not (isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel() > 1):
        return leaf
    if bool((leaf != leaf.flatten()[0]).any()):
        return leaf
    return torch.empty_like(leaf).uniform_(generator=torch.Generator().manual_seed(2))


def doubled(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
