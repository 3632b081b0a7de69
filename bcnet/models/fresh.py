"""Freshly initialised networks. In: a function that builds a network for a seed. Out: an untrained network.

The function may return a network with trained weights, e.g. `torchvision`'s with `weights=...`, or with a
trained encoder. Trained weights are recognised because they do not depend on the seed; their modules are
initialised by their own `reset_parameters`. So are those of a function that sets its own seed: the two cannot
be distinguished.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bcnet.seeds import seeded

RESETS = ("reset_parameters", "_reset_parameters")  # the latter is nn.MultiheadAttention's
LITTLE = 0.01  # maximum fraction of trained parameters in training from scratch
DISTINCT = 64  # distinct values of a trained weight; identities, bilinear kernels and edge filters have fewer
LISTED = 3  # maximum number of names in a message


@dataclass(frozen=True)
class Fresh:
    """A freshly initialised network, and what could not be initialised.

    `trained`: whether the function returned trained weights; `reset`: the modules that were initialised
    again; `kept`: the parameters that still have trained values, because their modules cannot initialise
    them; `kept_share`: their fraction of all parameters; `drawn`: the layers of a trained network with random
    weights, e.g. a head for other classes.
    """

    model: nn.Module
    trained: bool = False
    kept: tuple[str, ...] = ()
    kept_share: float = 0.0
    reset: tuple[str, ...] = ()
    drawn: tuple[str, ...] = ()

    @property
    def assumed(self) -> str:
        """A message about weights that were assumed to be trained and were initialised; empty without any."""
        if not self.reset:
            return ""
        names = ", ".join(f"'{name}'" for name in self.reset[:LISTED])
        more = f" and {len(self.reset) - LISTED} more" if len(self.reset) > LISTED else ""
        return (
            f"the weights of {names}{more} are the same for every seed: they are assumed to be trained (or "
            "their function sets its own seed), and were initialised by reset_parameters()"
        )

    @property
    def note(self) -> str:
        """A message about parameters that still have trained values; empty without any."""
        if not self.kept:
            return ""
        more = f" and {len(self.kept) - 1} more" if len(self.kept) > 1 else ""
        return (
            f"'{self.kept[0]}'{more} ({self.kept_share:.1%} of the parameters) keep trained values: their "
            "modules have no reset_parameters()"
        )

    @property
    def from_scratch(self) -> bool:
        """Whether its training is from scratch: almost none of its weights are trained."""
        return self.kept_share <= LITTLE


def fresh_network(build: Callable[[int], nn.Module], seed: int) -> Fresh:
    """The network of `build(seed)`; if it has trained weights, it is initialised again with the seed."""
    model, other = build(seed), build(seed + 1)
    fixed = _trained(model, _independent_of_seed(model, other))
    if not fixed:
        return Fresh(model)
    theirs = dict(other.named_parameters())
    parameters = dict(model.named_parameters())
    drawn = [
        name
        for name, own in parameters.items()
        if own.ndim > 1 and name in theirs and not _same(own, theirs[name])
    ]
    before = {name: tensor.detach().clone() for name, tensor in fixed.items()}
    trained = {id(tensor) for tensor in fixed.values()}
    # Not the seed itself: a function that sets its own seed, often 0, would get the same values again.
    reset = []
    with seeded(seed, 1):
        for name, module in model.named_modules():
            own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
            if any(id(tensor) in trained for tensor in own) and _reset(module):
                reset.append(name or type(module).__name__)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    kept = tuple(
        name
        for name, parameter in model.named_parameters()
        if name in before and torch.equal(parameter, before[name])
    )
    layers = tuple(sorted({name.rpartition(".")[0] for name in drawn}))
    share = sum(sizes[name] for name in kept) / sum(sizes.values())
    return Fresh(model, True, kept, share, tuple(reset), layers)


def _trained(model: nn.Module, fixed: dict[str, Tensor]) -> dict[str, Tensor]:
    """The trained tensors among those that do not depend on the seed (`fixed`).

    All of them if most weights are fixed: then the whole network is trained. Otherwise a part of it may be,
    but weights with few distinct values are initial ones: identities, bilinear kernels, edge filters. Weights
    that no module can initialise, e.g. a table of sines, are no evidence of training.
    """
    weights = {name for name, parameter in model.named_parameters() if parameter.ndim > 1}
    if weights and 2 * len(weights & fixed.keys()) >= len(weights):
        return fixed
    rich = {name for name in weights & fixed.keys() if _has_many_values(fixed[name])}
    if not any(_resetter(model.get_submodule(name.rpartition(".")[0])) for name in rich):
        return {}
    return {name: tensor for name, tensor in fixed.items() if name not in weights or name in rich}


def _has_many_values(tensor: Tensor) -> bool:
    return len(torch.unique(tensor.detach())) > min(tensor.numel() // 2, DISTINCT)


def _independent_of_seed(model: nn.Module, other: nn.Module) -> dict[str, Tensor]:
    """Parameters and batch-norm statistics that are equal in both networks, and not constant."""
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


def _reset(module: nn.Module) -> bool:
    """Initialise a module's own tensors; returns whether it has a method for that."""
    reset = _resetter(module)
    if reset is not None:
        reset()
    return reset is not None


def _resetter(module: nn.Module) -> Callable[[], Any] | None:
    found = (getattr(module, name, None) for name in RESETS)
    return next((reset for reset in found if callable(reset)), None)
