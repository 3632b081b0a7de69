"""A network's inputs: one argument (an image batch, (N, C, H, W)), a tuple of several, or a dict by name.

In: inputs as one object. Out: a call's arguments, the batch's size, the same inputs on another device.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A network's inputs as positional and keyword arguments: a tuple is several, a dict is by name."""
    if isinstance(inputs, tuple):
        return inputs, {}
    if isinstance(inputs, dict):
        return (), inputs
    return (inputs,), {}


def entries(tree: Any) -> int:
    """The number of entries of a batch: the length of a list or of the first tensor."""
    if isinstance(tree, Tensor):
        return len(tree) if tree.ndim else 1
    if isinstance(tree, list):
        return len(tree)
    values = tuple(tree.values()) if isinstance(tree, Mapping) else tree if isinstance(tree, tuple) else ()
    return entries(values[0]) if values else 1


def to_device(tree: Any, device: str | torch.device) -> Any:
    """A tensor, tuple, list or dict with all tensors on the device; other values are unchanged."""
    return tree_map_only(Tensor, lambda tensor: tensor.to(device), tree)
