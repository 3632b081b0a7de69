"""One training step of a supernet: the paths of drawn widths, each with a backward pass of its own.

In: the supernet's parameters, widths, a batch. Out: the mean loss; gradients added to the parameters.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bcnet.supernet.fit import Recipe
from bcnet.supernet.paths import Path, path_of, path_state, ranges, run_with
from bcnet.supernet.space import Widths, WidthSpace
from bcnet.supernet.task import bound_to


def supernet_step(
    model: nn.Module,
    space: WidthSpace,
    parameters: Mapping[str, nn.Parameter],
    buffers: Mapping[str, Tensor],
    widths: Widths,
    inputs: Any,
    targets: Any,
    recipe: Recipe,
) -> float:
    """Run every side's path on the batch and add its gradients, at equal weight; the mean loss.

    Left and right run one after the other, so only one path's activations are held (BCNetV2). The path's
    slices are the leaves: the gradient of a narrow slice costs what the slice costs, not what the supernet
    costs.
    """
    sides = space.rule.sides
    return sum(
        _side(
            model,
            space,
            parameters,
            buffers,
            path_of(space, widths, side),
            inputs,
            targets,
            recipe,
            len(sides),
        )
        for side in sides
    )


def _side(
    model: nn.Module,
    space: WidthSpace,
    parameters: Mapping[str, nn.Parameter],
    buffers: Mapping[str, Tensor],
    path: Path,
    inputs: Any,
    targets: Any,
    recipe: Recipe,
    sides: int,
) -> float:
    """One path's part of the loss, its gradients added. A function: its slices are freed before the next."""
    with torch.no_grad():
        taken = path_state(parameters, space, path)
    leaves = {name: tensor.detach().contiguous().requires_grad_() for name, tensor in taken.items()}
    del taken  # what `contiguous` copied is not held twice
    for name, leaf in leaves.items():
        # Adding each gradient as soon as it is there frees it before the next one is made.
        leaf.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
            lambda leaf, name=name: _add(parameters[name], space, name, path, leaf)
        )
    state = {**leaves, **path_state(buffers, space, path)}
    called = bound_to(model.forward, partial(run_with, model, space, state))
    loss = recipe.training_loss(called, inputs, targets) / sides
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


def _add(parameter: nn.Parameter, space: WidthSpace, name: str, path: Path, leaf: Tensor) -> None:
    """Add a slice's gradient into the gradient of the supernet's tensor, and free it."""
    assert leaf.grad is not None
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    for part, gradient in _stretches(parameter.grad, leaf.grad, space, name, path):
        part.add_(gradient)
    leaf.grad = None


def _stretches(
    full: Tensor, part: Tensor, space: WidthSpace, name: str, path: Path
) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of a supernet tensor and of its path's slice that correspond, one pair a stretch of channels."""
    pairs = [(full, part)]
    for axis, dimension in space.dimensions.get(name, {}).items():
        split = []
        for large, small in pairs:
            start = 0
            for low, high in ranges(space, dimension, path):
                split.append((large.narrow(axis, low, high - low), small.narrow(axis, start, high - low)))
                start += high - low
        pairs = split
    yield from pairs
