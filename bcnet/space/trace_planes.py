"""Planes of a tensor: the atom of each of its entries, expanded along irrelevant axes.

In and out: integer tensors of a tensor's shape. -1 is a fixed entry; ANY and below are entries of a tensor
whose size the forward computes, e.g. of an expanded view: they follow the entries with which they are
combined.
"""

import torch
from torch import Tensor

STAYS = -1
ANY = -2


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


def fits_any(plane: Tensor) -> bool:
    """Whether none of its entries is an atom or fixed."""
    return bool((compact(plane) <= ANY).all())


def first_along(plane: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The plane as its first entries along these axes, expanded."""
    shape = plane.shape
    for axis in axes:
        plane = plane.narrow(axis, 0, 1)
    return plane.expand(shape)


def merged(first: Tensor, second: Tensor) -> Tensor:
    """The first plane, with the second's entries where the first fits any: shapes can be broadcast."""
    first, second = compact(first), compact(second)
    return torch.where(first <= ANY, second, first)


def tidy(plane: Tensor) -> Tensor:
    """Expand again along every axis on which a copied plane is constant."""
    if plane.numel() == 0:
        return plane
    shape = plane.shape
    for axis in axes_of(plane):
        first = plane.narrow(axis, 0, 1)
        if torch.equal(first.expand_as(plane), plane):
            plane = first.expand(shape) if compact(first).numel() else first
    if bool((compact(plane) == STAYS).all()):
        return torch.full((1,) * plane.ndim, STAYS).expand(shape)
    return plane
