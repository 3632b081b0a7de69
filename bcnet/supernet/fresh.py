"""Freshly initialised networks. In: a function that builds a network for a seed. Out: an untrained network.

A function of the user's own may return a network with trained weights inside, as `torchvision` does with
`weights=...`. They are recognised because they do not depend on the seed; the modules that hold them are
initialised by their own `reset_parameters`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bcnet.seeds import seeded

RESETS = ("reset_parameters", "_reset_parameters")  # the latter is nn.MultiheadAttention's
LITTLE = 0.01  # of the parameters


@dataclass(frozen=True)
class Fresh:
    """A freshly initialised network, and what could not be initialised.

    `trained` is whether its function returned trained weights; `kept` names the parameters that still have
    them, since no module offers a way to initialise them, and `kept_share` is their share of all parameters.
    """

    model: nn.Module
    trained: bool = False
    kept: tuple[str, ...] = ()
    kept_share: float = 0.0

    @property
    def note(self) -> str:
        """Which parameters still have trained values, in words; empty where none do."""
        if not self.kept:
            return ""
        more = f" and {len(self.kept) - 1} more" if len(self.kept) > 1 else ""
        return (
            f"'{self.kept[0]}'{more} ({self.kept_share:.1%} of the parameters) keep trained values: their "
            "modules have no reset_parameters()"
        )

    @property
    def from_scratch(self) -> bool:
        """Whether training it is training from scratch: almost none of its weights are trained."""
        return self.kept_share <= LITTLE


def fresh_network(build: Callable[[int], nn.Module], seed: int) -> Fresh:
    """The network of `build(seed)`; if it has trained weights, it is initialised again with the seed."""
    model = build(seed)
    fixed = _independent_of_seed(model, build(seed + 1))
    weights = {name for name, parameter in model.named_parameters() if parameter.ndim > 1}
    # Few deterministic weights are normal initialisation: identities, bilinear kernels, fixed filters.
    if not weights or 2 * len(weights & fixed.keys()) < len(weights):
        return Fresh(model)
    before = {name: tensor.detach().clone() for name, tensor in fixed.items()}
    trained = {id(tensor) for tensor in fixed.values()}
    # Not the seed itself: a function that sets a seed of its own, often 0, would get its own values again.
    with seeded(seed, 1):
        for module in model.modules():
            own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
            if any(id(tensor) in trained for tensor in own):
                _reset(module)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    kept = tuple(
        name
        for name, parameter in model.named_parameters()
        if name in before and torch.equal(parameter, before[name])
    )
    return Fresh(model, True, kept, sum(sizes[name] for name in kept) / sum(sizes.values()))


def _independent_of_seed(model: nn.Module, other: nn.Module) -> dict[str, Tensor]:
    """Parameters, and batch-norm statistics, that are equal in both networks and not constant."""
    theirs = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    statistics = {
        f"{name}.{buffer}" if name else buffer
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for buffer, _ in module.named_buffers(recurse=False)
    }
    own = {
        **dict(model.named_parameters()),
        **{name: tensor for name, tensor in model.named_buffers() if name in statistics},
    }
    return {
        name: tensor
        for name, tensor in own.items()
        if name in theirs and _same(tensor, theirs[name]) and _varies(tensor)
    }


def _same(tensor: Tensor, other: Tensor) -> bool:
    return tensor.shape == other.shape and torch.equal(tensor, other)


def _varies(tensor: Tensor) -> bool:
    values = tensor.detach().flatten()
    return values.numel() > 1 and bool((values != values[0]).any())


def _reset(module: nn.Module) -> None:
    for name in RESETS:
        reset = getattr(module, name, None)
        if callable(reset):
            reset()
            return
