"""Planes of a tensor: which atom lies behind each of its entries, expanded along the axes that do not matter.

In and out: integer tensors of a tensor's shape; -1 is an entry that stays.
"""

import torch
from torch import Tensor


def axes_of(plane: Tensor) -> tuple[int, ...]:
    """The axes along which a plane is not expanded."""
    return tuple(
        axis
        for axis, (size, stride) in enumerate(zip(plane.shape, plane.stride(), strict=True))
        if size > 1 and stride != 0
    )


def compact(plane: Tensor) -> Tensor:
    """The plane with every expanded axis at one entry."""
    for axis, stride in enumerate(plane.stride()):
        if stride == 0 and plane.shape[axis] > 1:
            plane = plane.narrow(axis, 0, 1)
    return plane


def along(atoms: Tensor, axis: int, shape: torch.Size) -> Tensor:
    """A plane of `shape` that varies along one axis."""
    return atoms.reshape([-1 if i == axis else 1 for i in range(len(shape))]).expand(shape)


def tidy(plane: Tensor) -> Tensor:
    """Expand anew along every axis on which a copied plane is constant."""
    if plane.numel() == 0:
        return plane
    shape = plane.shape
    for axis in axes_of(plane):
        first = plane.narrow(axis, 0, 1)
        if torch.equal(first.expand_as(plane), plane):
            plane = first.expand(shape) if compact(first).numel() else first
    if bool((compact(plane) < 0).all()):
        return torch.full((1,) * plane.ndim, -1).expand(shape)
    return plane
