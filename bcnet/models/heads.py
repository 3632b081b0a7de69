"""Whether layers are heads: nothing that has weights is computed from what they give.

In: a network, some of its layers, what runs it once. Out: one of them that is no head, and what follows it.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from bcnet.errors import FOREIGN, BcnetError


def layer_after(
    model: nn.Module, layers: Iterable[str], run: Callable[[nn.Module], Any]
) -> tuple[str, str] | None:
    """The first of the layers on whose weights the input of another weighted layer depends, and that layer.

    None where there is none. Dependence is that of gradients in one forward pass in eval mode; layers that
    do not take part in it, such as auxiliary classifiers, and networks that do not run count as heads.
    """
    names = list(layers)
    with _eval_mode(model):
        for name in names:
            head = [p for p in model.get_submodule(name).parameters() if p.is_floating_point()]
            own = {id(parameter) for parameter in head}
            others = {
                id(p): owner for owner, p in model.named_parameters() if p.ndim > 1 and id(p) not in own
            }
            for parameter in model.parameters():
                parameter.requires_grad_(id(parameter) in own)
            try:
                with torch.enable_grad(), _Uses(head, others):
                    run(model)
            except _Found as found:
                return name, found.owner.rpartition(".")[0] or found.owner
            except BcnetError:
                raise
            except FOREIGN:  # explained where the network is run to be used
                continue
    return None


class _Found(BaseException):
    """A weighted layer follows; it ends the forward pass, whatever the network catches."""

    def __init__(self, owner: str) -> None:
        self.owner = owner


class _Uses(TorchFunctionMode):
    """Raises _Found at the first operation on one of `others` and on what depends on the head's weights."""

    def __init__(self, head: list[nn.Parameter], others: dict[int, str]) -> None:
        self.head, self.others = head, others

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        owner = next((self.others[id(tensor)] for tensor in tensors if id(tensor) in self.others), None)
        if owner is not None and any(self._depends(tensor) for tensor in tensors):
            raise _Found(owner)
        return func(*args, **(kwargs or {}))

    def _depends(self, tensor: Tensor) -> bool:
        """By gradients: a slice of a concatenation depends on its own part only."""
        if not tensor.requires_grad or tensor.is_leaf:
            return False
        weights = torch.linspace(0.5, 1.5, tensor.numel(), dtype=tensor.dtype).reshape(tensor.shape)
        found = torch.autograd.grad((tensor * weights).sum(), self.head, retain_graph=True, allow_unused=True)
        return any(gradient is not None and bool(gradient.count_nonzero()) for gradient in found)


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, wanted in trainable.items():
            parameter.requires_grad_(wanted)
